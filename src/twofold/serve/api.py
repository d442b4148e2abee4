"""The routes: OpenAI's two kinds of completion and its models, the page, health and metrics."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from twofold.serve import parse
from twofold.serve.jobs import Job
from twofold.serve.middleware import Guard, to_refused
from twofold.serve.render import ChatFormat, ChunkWriter, ReplyFormat, TextFormat, full_reply
from twofold.serve.schema import ChatRequest, ErrorReply, Refused, TextRequest
from twofold.serve.schema import Request as Body
from twofold.serve.service import ActiveRequest, Service

_FIELD = re.compile(r"[a-z_]+|\d+")
"""A field's name or index in an error's location. Other parts name a form that the field may have, such as constrained-str."""
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorReply}, "5XX": {"model": ErrorReply}}
STREAMED = ERRORS | {200: {"content": {"text/event-stream": {}}}}


def app(service: Service, key: str | None = None) -> Guard:
    """Return the server as an ASGI application. With a ``key``, every path but the page and ``/health`` needs it."""
    api = FastAPI(title="twofold", docs_url=None, redoc_url=None, separate_input_output_schemas=False)
    page = (files("twofold") / "serve" / "page.html").read_text(encoding="utf-8")
    policy = _content_policy(page)

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})

    @api.get("/health", responses=ERRORS)
    async def health() -> dict[str, str]:
        if service.draining:
            raise Refused(503, "the server is shutting down", "shutting_down")
        return {"status": "ok"}

    @api.get("/metrics", response_class=PlainTextResponse, responses=ERRORS)
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(service.gauges()), media_type="text/plain; version=0.0.4")

    @api.get("/v1/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        names = [service.name, *(f"{service.name}:{plan}" for plan in ("majority-16", "best-16", "weighted-16"))]
        return {"object": "list", "data": [_model(service, name) for name in names]}

    @api.get("/v1/models/{name}", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        parse.plan_named(name, service.name)
        return _model(service, name)

    @api.post("/v1/chat/completions", responses=STREAMED)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        s = service
        with service.entering():
            job, plan = await asyncio.to_thread(parse.chat_job, body, s.name, s.chat, s.context, s.same)
            active = _begin(service, body, job)
        return await _reply(service, body, active, ChatFormat(body, service.chat, plan is not None), request)

    @api.post("/v1/completions", responses=STREAMED)
    async def completions(body: TextRequest, request: Request) -> Response:
        with service.entering():
            job = await asyncio.to_thread(parse.text_job, body, service.name, service.chat, service.context)
            active = _begin(service, body, job)
        return await _reply(service, body, active, TextFormat(body, service.chat), request)

    _handle_errors(api)
    paths = frozenset(route.path for route in api.routes if hasattr(route, "path"))
    return Guard(api, paths, service.metrics, key, service.limits.body, service.check_room)


def _model(service: Service, name: str) -> dict[str, Any]:
    about = {"owned_by": "twofold", "max_model_len": service.context, "description": service.description}
    return {"id": name, "object": "model", "created": service.created, **about}


def _begin(service: Service, body: Body, job: Job) -> ActiveRequest:
    parse.check_logprobs(body, service.raw_logprobs)
    return service.begin(job, parse.request_state(body, service.chat, service.context, service.limits.seconds))


async def _reply(service: Service, body: Body, active: ActiveRequest, fmt: ReplyFormat, request: Request) -> Response:
    """Reply to a request that was let in, in full or as a stream. Cancels it when its client leaves."""
    identity = {"id": f"{fmt.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
    if body.stream:
        return EventStream(service, active, ChunkWriter(fmt, identity, body, active.engine, service.chat))
    client_left = asyncio.create_task(_disconnect(request.receive))
    either: list[asyncio.Future[Any]] = [active.future, client_left]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not active.future.done():
            active.cancel()
            return Response(status_code=499)
        return JSONResponse(full_reply(fmt, identity, service.result(active)))
    except Exception as error:  # from the strategy or the engine
        raise to_refused(error) from None
    finally:
        client_left.cancel()


class EventStream(Response):
    """Server-sent events while a request runs. It is cancelled when its client leaves."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, active: ActiveRequest, writer: ChunkWriter) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.service, self.active, self.writer = service, active, writer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        client_left = asyncio.create_task(_disconnect(receive))
        sending = asyncio.create_task(self._send_all(send))
        try:
            await asyncio.wait([client_left, sending], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            client_left.cancel()
            sending.cancel()
            if not self.active.future.done():
                self.active.cancel()

    async def _send_all(self, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events():
            await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[str]:
        active, writer = self.active, self.writer
        try:
            for chunk in writer.first():
                yield json.dumps(chunk)
            while not active.future.done():
                progress = asyncio.create_task(active.progress.wait())
                either: list[asyncio.Future[Any]] = [active.future, progress]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                progress.cancel()
                active.progress.clear()
                for chunk in writer.new():
                    yield json.dumps(chunk)
                await asyncio.sleep(writer.pause)
            for chunk in writer.last(self.service.result(active)):
                yield json.dumps(chunk)
        except Exception as error:  # the status was sent already, so the error goes into the stream
            yield json.dumps(to_refused(error).body)
        yield "[DONE]"


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _handle_errors(api: FastAPI) -> None:
    """Make every error a reply in OpenAI's shape."""

    def reply(refused: Refused) -> JSONResponse:
        return JSONResponse(refused.body, refused.status, refused.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # if a field may have several forms, the error of the one that was most likely meant
        deepest = max(error.errors(), key=lambda e: len(e["loc"]))
        if deepest["type"] == "json_invalid":
            problem = f"{deepest['ctx']['error']} at character {deepest['loc'][-1]}"
            return reply(Refused(400, f"the body is no JSON: {problem}"[:400], "invalid_request"))
        named = [str(x) for x in deepest["loc"][1:]]
        if deepest["type"] != "extra_forbidden":
            named = [x for x in named if _FIELD.fullmatch(x)]
        else:
            named = [*(x for x in named[:-1] if _FIELD.fullmatch(x)), named[-1]]
        where = ".".join(named)[:100] or None
        return reply(Refused(400, f"{where or 'body'}: {deepest['msg']}", "invalid_request", where))

    @api.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        answer = reply(Refused(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    @api.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return reply(error)

    @api.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return reply(to_refused(error))


def _content_policy(page: str) -> str:
    """Return the content security policy: only the page's own script and style run, and they reach only this server."""

    def allowed(tag: str) -> str:
        inside = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        return f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; connect-src 'self'; script-src {allowed('script')}; style-src {allowed('style')}; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
