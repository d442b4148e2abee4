"""The process: where it listens, who may come, how it stops."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from pathlib import Path
from types import FrameType

import uvicorn

from twofold.serve.api import app
from twofold.serve.service import Service

KEY = "TWOFOLD_API_KEY"
"""Environment variable that may hold the key."""


def read_key(file: Path | None, host: str) -> str | None:
    """The API key, from a file or the environment. Raises ValueError if ``host`` needs one and there is none."""
    key = file.read_text(encoding="utf-8").strip() if file else os.environ.get(KEY, "").strip()
    if file and not key:
        raise ValueError(f"{file} holds no key")
    if key and not key.isascii():
        raise ValueError("an API key is ASCII: no other characters pass in a header")
    if not key and not _loopback(host):
        raise ValueError(f"to listen on {host}, others need a key: set {KEY}, or give --api-key-file")
    return key or None


def serve(service: Service, host: str, port: int, key: str | None) -> None:
    """Until SIGTERM or SIGINT: then requests under way are answered, new ones refused; a second signal cuts them off.

    Raises OSError if it cannot listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family, backlog=2048) as listening:
            Server(service, key).run(sockets=[listening])
    finally:
        service.close()


class Server(uvicorn.Server):
    def __init__(self, service: Service, key: str | None) -> None:
        super().__init__(
            uvicorn.Config(
                app(service, key), log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
                timeout_graceful_shutdown=5,
            )
        )  # fmt: skip
        self.service = service
        self._cut = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        host, port = sockets[0].getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(f"ready: {self.service.name} at {url}/v1, page {url}/", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal: no new requests. The second: no more waiting."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
        else:
            self.service.draining = True
            self._cut = time.monotonic() + self.service.limits.grace

    async def on_tick(self, counter: int) -> bool:
        if self.service.draining:
            late = time.monotonic() - self._cut
            if late >= 0:
                self.service.hurry()
            self.should_exit |= not self.service.works or late >= 2
        return await super().on_tick(counter)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
