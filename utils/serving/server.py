"""The model over HTTP: OpenAI's chat completions with images and masks, and class queries. See docs/serving.md.

Needs fastapi, uvicorn and prometheus-client; chat.py imports this file when it is asked to serve.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from model.errors import UserError
from model.outputs import Segmentation
from utils.serving import label_studio
from utils.serving.answers import Answer, answer_of
from utils.serving.batching import QueueFullError, StoppingError
from utils.serving.dialect import ChatRequest, Completion, SegmentRequest, error_body, read_messages
from utils.serving.files import draw
from utils.serving.gate import CLIENT_GONE, RETRY_SECONDS, Gate
from utils.serving.jobs import ChatJob, SegmentJob
from utils.serving.label_host import LabelHost
from utils.serving.schema import answer_json
from utils.serving.service import GoneError, Service

logger = logging.getLogger(__name__)

PATHS = ("/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/segment")


def build_app(
    service: Service,
    *,
    api_key: str = "",
    hosts: frozenset[str] | None = None,
    label_host: LabelHost | None = None,
    with_api: bool = True,
    is_for_browsers: bool = False,
) -> FastAPI:
    """The application behind its gate.

    Args:
        hosts: names under which requests may ask for the server; None: any.
        with_api: requests are answered; without it there is /health alone.
        is_for_browsers: they are told to ask for the key.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.batcher.close)

    app = FastAPI(title="LaSagnA", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(
        Gate,
        api_key=api_key,
        max_bytes=service.limits.max_bytes,
        counts=service.counts,
        paths=frozenset((*PATHS, *label_studio.PATHS)),
        hosts=hosts,
        is_for_browsers=is_for_browsers,
    )
    add_error_handlers(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": service.name, "waiting": service.batcher.num_waiting}

    if with_api:
        add_routes(app, service)
        label_studio.add_label_studio(app, service, label_host or LabelHost())
    return app


def add_routes(app: FastAPI, service: Service) -> None:
    """Requests to the model, and what is counted of them."""

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(service.counts.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_entry(service.name)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return model_entry(service.name)

    @app.post("/v1/segment")
    async def segment(body: SegmentRequest, request: Request) -> Any:
        service.check_model(body.model)
        image = await service.image(body.image)
        job = service.segment_job(body, image)
        found = await service.answer(job, request)
        return await run_in_threadpool(segment_json, service, found, job, body)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        service.check_model(body.model)
        body.check()
        conversation, url = read_messages(body.messages, service.model.processor.format)
        job = service.chat_job(body, await service.image(url), conversation)
        completion = Completion(service.name)
        if body.stream:
            return await streamed(service, job, body, completion, request)
        found = await service.answer(job, request)
        answer, masks, usage = await service.chat_result(job, found, body)
        return completion.whole(answer.text, masks, finish_of(answer), usage)


async def streamed(
    service: Service, job: ChatJob, body: ChatRequest, completion: Completion, request: Request
) -> StreamingResponse:
    """The answer as server-sent events. What goes wrong before the first word is an ordinary error."""
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[str | None] = asyncio.Queue()  # parts of the text; None: the answer is there

    def tell(part: str | None) -> None:  # called by the model's thread
        loop.call_soon_threadsafe(lambda: news.put_nowait(part))

    job.on_text = tell
    job.answer.add_done_callback(lambda _: tell(None))
    service.batcher.submit(job)
    first = await service.unless_gone(news.get(), job, request)
    if first is None and (problem := job.answer.exception()) is not None:
        raise problem

    async def events() -> AsyncIterator[str]:
        try:
            yield event(completion.chunk({"role": "assistant", "content": ""}))
            part = first
            while part is not None:
                yield event(completion.chunk({"content": part}))
                part = await news.get()
            if (problem := job.answer.exception()) is not None:
                yield event(error_body(public_message(problem), 500))
                return
            answer, masks, usage = await service.chat_result(job, job.answer.result(), body)
            yield event(completion.chunk({"masks": masks}, finish_of(answer)))
            if body.stream_options is not None and body.stream_options.include_usage:
                yield event(completion.usage_chunk(usage))
            yield "data: [DONE]\n\n"
        finally:
            job.withdraw()

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def add_error_handlers(app: FastAPI) -> None:
    """Every error has the form that OpenAI's clients read."""

    def failed(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(error_body(message, status), status, headers)

    @app.exception_handler(UserError)
    async def refused(_: Request, problem: UserError) -> JSONResponse:
        if isinstance(problem, QueueFullError):
            return failed(429, str(problem), {"Retry-After": str(RETRY_SECONDS)})
        return failed(503 if isinstance(problem, StoppingError) else 400, str(problem))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        if "json" not in request.headers.get("content-type", ""):
            return failed(400, "the request is no JSON; send the header Content-Type: application/json")
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return failed(400, f"{place or 'the request'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def known(_: Request, problem: HTTPException) -> JSONResponse:
        return failed(problem.status_code, str(problem.detail), dict(problem.headers or {}))

    @app.exception_handler(GoneError)
    async def nobody(_: Request, problem: GoneError) -> JSONResponse:
        return failed(CLIENT_GONE, "the client has gone")

    @app.exception_handler(Exception)
    async def ours(_: Request, problem: Exception) -> JSONResponse:
        logger.error("a request failed", exc_info=problem)
        return failed(500, public_message(problem))


def public_message(problem: BaseException) -> str:
    """What a client is told: of a defect of ours, that there is one."""
    return str(problem) if isinstance(problem, UserError) else "the server failed; its log has the reason"


def segment_json(
    service: Service, found: Segmentation, job: SegmentJob, body: SegmentRequest
) -> dict[str, Any]:
    """The response to a class query."""
    answer = answer_of(found, service.model.processor.format, service.asking.limit(service.model))
    masks = answer.found(instances=body.instances, min_area=body.min_area)
    height, width = job.image.shape[:2]
    content: dict[str, Any] = dict(
        answer_json(
            answer,
            masks,
            size=(height, width),
            threshold=job.threshold,
            polygons=body.polygons,
            instances=body.instances,
        )
    )
    if body.overlay:
        file = io.BytesIO()
        draw(answer, job.image).save(file, "PNG")
        content["overlay"] = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return content


def model_entry(name: str) -> dict[str, Any]:
    """A model as OpenAI's clients list it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "lasagna"}


def finish_of(answer: Answer) -> str:
    """Why an answer ends."""
    return "stop" if answer.is_complete else "length"


def event(content: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n"
