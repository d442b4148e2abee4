"""Machines: what one device can do at most, and what it costs. Options of ``twofold plan`` change any of these numbers."""

from __future__ import annotations

from typing import Literal

from twofold.ranges import Count, Positive, checked
from twofold.types import Precision

GIB = 2**30
Family = Literal["gpu", "cpu"]


@checked
class Machine:
    """One device, and how devices are joined."""

    name: str
    family: Family
    bfloat16: Positive
    """TFLOP/s of a large matrix product in bfloat16."""
    float32: Positive
    """The same in float32."""
    bandwidth: Positive
    """TB/s of its memory."""
    memory: Positive
    """GiB of memory."""
    price: Positive
    """Money for an hour of one device. The defaults are of the order of what clouds ask in US dollars; they are no offer."""
    link: Positive = 0.01
    """TB/s to another device of the same machine, in one direction."""
    network: Positive = 0.01
    """TB/s of one device to other machines, in one direction."""
    together: Count = 1
    """Devices of one machine."""

    @property
    def precision(self) -> Precision:
        """What ``train.precision = "auto"`` means here."""
        return "bfloat16" if self.bfloat16 > self.float32 else "float32"

    def products(self, precision: Precision) -> float:
        """FLOP/s of a large matrix product."""
        return 1e12 * (self.bfloat16 if precision == "bfloat16" else self.float32)

    def between(self, devices: int) -> float:
        """Bytes per second from each of so many devices to the next one."""
        return 1e12 * (self.link if devices <= self.together else self.network)


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("h100", "gpu", 790, 50, 3.35, 79, 3.0, link=0.45, network=0.05, together=8),
        Machine("h200", "gpu", 790, 50, 4.8, 140, 4.0, link=0.45, network=0.05, together=8),
        Machine("a100", "gpu", 250, 15, 2.04, 79, 1.8, link=0.3, network=0.025, together=8),
        Machine("cpu", "cpu", 1.32, 0.2, 0.02, 8, 0.1),
    )
}
"""``cpu`` is two cores with AMX. A large product reaches about 0.8 of a GPU's data sheet (H100 and H200 989, A100 312 TFLOP/s in
bfloat16): 766 was measured on an H100. The rest of a GPU's numbers is of its data sheet, with 400 (A100: 200) Gb/s of network for
each GPU."""
