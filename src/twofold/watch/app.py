"""The page of a run, for this machine alone: plain ASGI with two paths, the page and its numbers."""

from __future__ import annotations

import json
import socket
from base64 import b64encode
from collections.abc import MutableMapping
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from twofold.serve.metrics import Metrics
from twofold.serve.middleware import Guard, Receive, Send
from twofold.serve.schema import Refused
from twofold.serve.server import PageServer
from twofold.watch.read import Run

PATHS = frozenset({"/", "/data"})


def watch(run: Run, port: int) -> None:
    """Serve the page on 127.0.0.1 until SIGTERM or SIGINT. Raises OSError if it cannot listen there."""
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise OSError(f"port {port}: {error.strerror}; choose another with --port N (0: any free one)") from error
    with listening:
        PageServer(app(run), f"the page of {run.directory}").run(sockets=[listening])


def app(run: Run) -> Guard:
    """Return the ASGI application: ``/`` is the page, ``/data`` its numbers (``have=VERSION``: only what is newer).

    As the model's server does without a key, it answers only to a name of this machine as the Host.
    """
    page, policy = _page()
    as_page = {"content-type": "text/html; charset=utf-8", "content-security-policy": policy}

    async def routes(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"] not in PATHS:
            raise Refused(404, "there is nothing here but / and /data")
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "this page only shows: use GET")
        if scope["path"] == "/":
            await _send(send, page, as_page)
            return
        have = parse_qs(scope["query_string"].decode("latin-1")).get("have", [""])[0]
        try:
            data = {"version": have, "state": run.state()} if have == run.version else run.data()
        except (ValueError, OSError) as error:
            raise Refused(500, str(error), "damaged_file") from error
        await _send(send, json.dumps(data).encode(), {"content-type": "application/json"})

    return Guard(routes, PATHS, Metrics(), None, 0, lambda: None)


async def _send(send: Send, body: bytes, headers: dict[str, str]) -> None:
    headers = {
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "content-length": str(len(body)),
    } | headers
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _page() -> tuple[bytes, str]:
    """Return the page, with the style of the reports, and the policy by which only its own script and style run."""
    package = files("twofold")
    script = (package / "watch" / "page.js").read_text(encoding="utf-8")
    style = "".join((package / folder / "page.css").read_text(encoding="utf-8") for folder in ("evals", "watch"))
    page = (
        (package / "watch" / "page.html")
        .read_text(encoding="utf-8")
        .replace("/*style*/", style)
        .replace("/*script*/", script)
    )
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
