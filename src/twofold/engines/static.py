"""Decoding in few kernels per token, and without waiting for the device: the native engine's path on a CUDA device.

A step runs every row's last token and draws the next one. Its shapes and places in memory stay the same from token to token, so
it is captured as a CUDA graph and replayed by one launch. The host looks at the tokens once in ``LOOK`` steps: it takes note of
the samples that stop tokens have ended, and drops their rows when only half of the rows are left. The keys and values are those
of a ``KV``, so whatever begins with a finished sample reads them as always.

On a CPU, which only the tests ask for, the same step runs uncaptured, with the plain versions of the kernels.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from twofold.engines.base import Finished
from twofold.engines.decoding import Decoding
from twofold.engines.sampling import confidences, draw, draw_one
from twofold.models.decoder import Affine, Decoder, Layer
from twofold.models.fused import add_norm, attend_one, gated
from twofold.models.norm import rms_norm

LOOK = 16
"""Steps between two looks of the host."""
FEWEST = 8
"""No step has fewer rows, unless the call has."""
ROOM = 256
"""Tokens per row that a cache first allocates memory for, or its ``room`` if that is less; then the memory doubles."""


def obstacle(model: Any) -> str:
    """Return why ``model`` cannot be decoded by ``StaticDecoder`` on its device, or "" if it can."""
    if model.device.type != "cuda":
        return "it is not on a CUDA device"
    if not Decoder.suits(model):
        return f"{type(model).__name__} is not of Llama's family, or has changed layers"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(model.device) < (8, 0):
        return "the device is older than compute capability 8.0"
    return ""


class StaticDecoder:
    """A network whose samples are decoded by ``Step``. Make another when its weights change."""

    def __init__(self, network: Decoder) -> None:
        self.network = network
        self.gates = [self._join(i) for i in range(len(network.layers))]

    def _join(self, i: int) -> Affine:
        """Return gate and up of layer i as one matrix. The network's own become views of it, so that memory holds them once."""
        layer = self.network.layers[i]
        (gate, gate_bias), (up, up_bias) = layer.gate, layer.up
        weight = torch.cat([gate, up])
        bias = None if gate_bias is None or up_bias is None else torch.cat([gate_bias, up_bias])
        gate, up = weight.chunk(2)
        self.network.layers[i] = replace(layer, gate=(gate, gate_bias), up=(up, up_bias))
        return weight, bias

    def decode(self, decoding: Decoding, finished: Finished) -> int:
        """Draw all tokens of ``decoding``, whose cache is a fork that holds no token yet. Return how many tokens were run."""
        computed, count = 0, 1
        with torch.autocast(decoding.logits.device.type, enabled=False):
            step = Step(self.network, self.gates, decoding)
            step.draw(decoding.logits)
            decoding.logits = decoding.logits.new_empty(0)  # hundreds of megabytes that no later step reads
            run = Replayed(step)
            while True:
                decoding.extend([x[decoding.steps :][:count, : decoding.kv.active].T.tolist() for x in step.found])
                decoding.report(finished)
                if decoding.done:
                    return computed
                count = min(LOOK, decoding.sampling.max_tokens - decoding.steps)
                if step.drop_rows() | decoding.kv.reserve(count, ROOM):
                    run = Replayed(step)
                for _ in range(count):
                    run()
                computed += count * step.rows


class Step:
    """One token of every row. Row r of the cache is row r here; the first ``rows`` of them take part."""

    def __init__(self, network: Decoder, gates: list[Affine], decoding: Decoding) -> None:
        self.network, self.gates, self.decoding = network, gates, decoding
        kv, tokens = decoding.kv, decoding.sampling.max_tokens
        assert kv.parent is not None and kv.source is not None
        self.shared, self.rows = kv.parent, len(kv.start)
        self.start, self.source = kv.start.to(kv.device, copy=True), kv.source.to(kv.device, copy=True)
        self.at = torch.zeros(1, dtype=torch.long, device=kv.device)  # the rows' own tokens in the cache
        self.tokens = torch.zeros_like(self.start)  # the rows' last tokens, drawn but not run
        self.randoms = decoding.randoms.T.contiguous()
        numbers = [torch.float32] * (3 if decoding.sampling.trace_top else 1)
        self.found = [torch.zeros(self.randoms.shape, dtype=t, device=kv.device) for t in (torch.long, *numbers)]
        positions = torch.arange(int(kv.start.max()) + tokens, device=kv.device)
        self.turns = torch.view_as_real(network.rotation(positions[None])[0]).flatten(1)

    def __call__(self) -> None:
        """Run the rows' last tokens and draw the next ones."""
        net, kv = self.network, self.decoding.kv
        x = embedding(self.tokens[: self.rows], net.embeddings, net.padding)
        h = rms_norm(x, net.layers[0].before_attention, net.eps, net.dtype)
        norms = [*(layer.before_attention for layer in net.layers[1:]), net.norm]
        for i, (layer, norm) in enumerate(zip(net.layers, norms, strict=True)):
            seen = attend_one(
                self._heads(layer, h), self.turns, self.at, self.start, kv.keys[i], kv.values[i],
                self.source, self.shared.keys[i], self.shared.values[i], net.width**-0.5,
            )  # fmt: skip
            h = add_norm(x, linear(seen, *layer.out), layer.before_mlp, net.eps)
            h = add_norm(x, linear(gated(linear(h, *self.gates[i])), *layer.down), norm, net.eps)
        self.at += 1
        self.draw(linear(h, *net.output))

    def _heads(self, layer: Layer, h_A_C: Tensor) -> Tensor:
        """Return queries, keys and values, [A, heads * D], before the rotation."""
        qkv, net = linear(h_A_C, *layer.heads), self.network
        if layer.query_norm is None or layer.key_norm is None:
            return qkv
        sizes = [net.heads, net.kv_heads, net.kv_heads]
        q, k, v = qkv.view(len(qkv), -1, net.width).split(sizes, 1)
        q, k = (rms_norm(x, w, net.eps, net.dtype) for x, w in ((q, layer.query_norm), (k, layer.key_norm)))
        return torch.cat([q, k, v], 1).flatten(1)

    def draw(self, logits_A_V: Tensor) -> None:
        """Draw a token for every row."""
        s, randoms_A = self.decoding.sampling, self.randoms.index_select(0, self.at)[0, : self.rows]
        if s.filtered and s.temperature > 0:
            drawn = draw(logits_A_V, randoms_A, s.temperature, s.top_p, s.top_k, s.min_p)
        else:
            drawn = draw_one(logits_A_V, randoms_A, s.temperature)
        self.tokens[: self.rows] = drawn[0]
        more = confidences(logits_A_V, s.trace_top) if s.trace_top else ()
        for store_T_R, numbers_A in zip(self.found, (*drawn, *more), strict=True):
            store_T_R[:, : self.rows].index_copy_(0, self.at, numbers_A[None])

    def drop_rows(self) -> bool:
        """Halve the rows as often as the live samples allow; return whether there are fewer. Ended samples leave the cache's
        active rows then."""
        decoding, rows = self.decoding, self.rows
        while rows // 2 >= max(FEWEST, decoding.live):
            rows //= 2
        if rows == self.rows:
            return False
        self.rows = rows
        ended = [i for i, r in enumerate(decoding.order[: decoding.kv.active]) if decoding.stopped(r)]
        if pairs := decoding.retire(ended):
            a, b = torch.tensor(pairs, device=self.at.device).T
            to, fro = torch.cat([a, b]), torch.cat([b, a])
            self.randoms[:, to] = self.randoms[:, fro]
            for x in (self.tokens, self.start, self.source):
                x[to] = x[fro]
        return True


class Replayed:
    """A step that runs as it is the first time, which compiles and loads its kernels, and from then on as one CUDA graph."""

    def __init__(self, step: Step) -> None:
        self.step, self.ran = step, False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.graph is None and self.ran and self.step.at.is_cuda:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.step()
        self.ran = True
        if self.graph is None:
            self.step()
        else:
            self.graph.replay()
