"""The routes: OpenAI's, the page, health and metrics."""

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
from twofold.serve.middleware import Guard, failure
from twofold.serve.parse import Job
from twofold.serve.render import ChatShape, Chunks, Shape, TextShape, whole
from twofold.serve.schema import ChatRequest, ErrorReply, Refused, TextRequest
from twofold.serve.schema import Request as Body
from twofold.serve.service import Service, Work

_FIELD = re.compile(r"[a-z_]+|\d+")  # not the name of one of a field's forms, such as constrained-str
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorReply}, "5XX": {"model": ErrorReply}}
STREAMED = ERRORS | {200: {"content": {"text/event-stream": {}}}}


def app(service: Service, key: str | None = None) -> Guard:
    """The server as an ASGI application. With ``key``, all but the page and ``/health`` ask for it."""
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
        one = {"object": "model", "created": service.began, "owned_by": "twofold", "max_model_len": service.context}
        names = [service.name, *(f"{service.name}:{plan}" for plan in ("majority-16", "best-16", "weighted-16"))]
        return {"object": "list", "data": [{"id": name, **one} for name in names]}

    @api.post("/v1/chat/completions", responses=STREAMED)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        s = service
        job, plan = await asyncio.to_thread(parse.read_chat, body, s.name, s.chat, s.context, s.same)
        return await _serve(service, body, job, ChatShape(body, service.chat, plan is not None), request)

    @api.post("/v1/completions", responses=STREAMED)
    async def completions(body: TextRequest, request: Request) -> Response:
        job = await asyncio.to_thread(parse.read_text, body, service.name, service.chat, service.context)
        return await _serve(service, body, job, TextShape(body, service.chat), request)

    _refusals(api)
    paths = frozenset(route.path for route in api.routes if hasattr(route, "path"))
    return Guard(api, paths, service.metrics, key, service.limits.body)


async def _serve(service: Service, body: Body, job: Job, shape: Shape, request: Request) -> Response:
    parse.check_logprobs(body, service.raw)
    work = service.begin(job, parse.ticket(body, service.chat, service.context, service.limits.seconds))
    identity = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
    if body.stream:
        return EventStream(work, Chunks(shape, identity, body, work.client))
    gone = asyncio.create_task(_gone(request.receive))
    either: list[asyncio.Future[Any]] = [work.future, gone]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not work.future.done():
            work.cancel()
            return Response(status_code=499)
        return JSONResponse(whole(shape, identity, work.future.result()))
    except Exception as error:  # of the strategy or the engine
        raise failure(error) from None
    finally:
        gone.cancel()


class EventStream(Response):
    """Server-sent events while a request is worked on; when the client leaves, so does the work."""

    media_type = "text/event-stream"

    def __init__(self, work: Work, chunks: Chunks) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.work, self.chunks = work, chunks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(_gone(receive))
        writing = asyncio.create_task(self._write(send))
        try:
            await asyncio.wait([gone, writing], return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            gone.cancel()
            writing.cancel()
            if not self.work.future.done():
                self.work.cancel()

    async def _write(self, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events():
            await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[str]:
        work, chunks = self.work, self.chunks
        try:
            for chunk in chunks.first():
                yield json.dumps(chunk)
            while not work.future.done():
                news = asyncio.create_task(work.news.wait())
                either: list[asyncio.Future[Any]] = [work.future, news]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                work.news.clear()
                for chunk in chunks.more():
                    yield json.dumps(chunk)
                await asyncio.sleep(chunks.pause)
            for chunk in chunks.last(work.future.result()):
                yield json.dumps(chunk)
        except Exception as error:  # the status was sent: say it in the stream
            yield json.dumps(failure(error).body)
        yield "[DONE]"


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusals(api: FastAPI) -> None:
    """Every error in OpenAI's shape."""

    def reply(refused: Refused) -> JSONResponse:
        wait = refused.retry_after
        return JSONResponse(refused.body, refused.status, {} if wait is None else {"retry-after": str(wait)})

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        deepest = max(error.errors(), key=lambda e: len(e["loc"]))  # of several forms a field may have, the one meant
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
        return reply(failure(error))


def _content_policy(page: str) -> str:
    """Only this page's own script and style may run, and it may speak to this server alone."""

    def allowed(tag: str) -> str:
        inside = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        return f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; connect-src 'self'; script-src {allowed('script')}; style-src {allowed('style')}; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
