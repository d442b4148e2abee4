"""Send many mixed requests to one server process, whose memory, threads and open files must not grow.

    python bench/soak.py --requests 10000

Every eighth client leaves before its reply. One line is printed per 1,000 requests, with the server process's figures from /proc
(Linux only).
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def request(i: int) -> tuple[str, dict[str, Any]]:
    """The i-th request. The kinds take turns and the sizes vary."""
    rng = random.Random(i)
    messages = [{"role": "user", "content": f"Start with {i % 90}. Add {rng.randrange(90)}. What is the result?"}]
    more = {"messages": messages, "max_tokens": rng.randrange(1, 24), "seed": i}
    match i % 4:
        case 0:
            return CHAT, {"model": "tiny", "n": rng.randrange(1, 5), **more}
        case 1:
            return CHAT, {"model": "tiny:weighted-4", **more}
        case 2:
            return CHAT, {"model": "tiny:majority-4", "stream": True, "progress": "samples", **more}
        case _:
            return TEXT, {
                "model": "tiny",
                "prompt": [[5 + i % 400, 7]] * 2,
                "max_tokens": 0,
                "echo": True,
                "logprobs": 0,
            }


def ask(port: int, i: int) -> int:
    """Send request i and return the status, or 0 for a client that leaves at once."""
    path, body = request(i)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    if i % 8 == 5:
        connection.close()
        return 0
    reply = connection.getresponse()
    reply.read()
    connection.close()
    return reply.status


def state(pid: int) -> str:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return f"RSS {int(status['VmRSS'].split()[0]) / 1024:.1f} MiB, {status['Threads'].strip()} threads, {files} files"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    command = [sys.executable, "-m", "twofold.cli", "serve", "tiny", "--port", "0", "--concurrent", "32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("/v1")[0].rsplit(":")[-1])
        began, done = time.monotonic(), 0
        with ThreadPoolExecutor(args.clients) as pool:
            while done < args.requests:
                size = min(1000, args.requests - done)
                statuses = list(pool.map(lambda i: ask(port, i), range(done, done + size)))
                done += size
                failed = sum(s not in (0, 200) for s in statuses)
                rate = done / (time.monotonic() - began)
                print(
                    f"{done} requests, {failed} of these {size} failed, {rate:.0f}/s: {state(server.pid)}", flush=True
                )
        server.terminate()
        print(f"exit status {server.wait(timeout=60)}")


if __name__ == "__main__":
    main()
