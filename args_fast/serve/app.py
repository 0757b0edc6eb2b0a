"""The application: which address does what. ``create_app`` makes it from an engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from args_fast import __version__
from args_fast.serve import errors, playground
from args_fast.serve.answer import Answer
from args_fast.serve.auth import KeyCheck
from args_fast.serve.engine_view import EngineView
from args_fast.serve.errors import ErrorBody, invalid
from args_fast.serve.limits import BodyLimit
from args_fast.serve.logs import RequestLog
from args_fast.serve.options import ServerOptions
from args_fast.serve.protocol import ChatRequest, CompletionRequest, TokenizeRequest
from args_fast.serve.service import Service

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 413, 429, 500, 503)
}


def create_app(engine: EngineView, options: ServerOptions) -> FastAPI:
    """The ASGI application of one engine.

    Args:
        engine: where requests are decoded; closed when the application shuts down.
        options: what the operator decided.

    Returns:
        An application for uvicorn, or to mount in a larger one.
    """
    service = Service(engine, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="args-fast",
        version=__version__,
        description="Reward-guided decoding (ARGS) with OpenAI's API.",
        docs_url=None,  # its page loads scripts from a network
        redoc_url=None,
        lifespan=lifespan,
        responses=FAILURES,
    )
    app.state.service = service
    errors.install(app)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit, max_bytes=options.max_body, seconds=options.body_seconds)
    app.add_middleware(KeyCheck, keys=options.api_keys)
    app.add_middleware(RequestLog, metrics=service.metrics)
    _add_decoding_routes(app, service)
    _add_other_routes(app, service)
    playground.add_route(app)
    return app


def _add_decoding_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest) -> Response:
        """The assistant's next turn in a conversation."""
        return Answer(service, body, 1, lambda began: service.prepare_chat(body, began))

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest) -> Response:
        """What follows a text, or each of several."""
        count = len(body.prompts)
        return Answer(service, body, count, lambda began: service.prepare_completion(body, began))


def _add_other_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The names that requests may ask for."""
        names = service.options.model_names
        return {"object": "list", "data": [service.card(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return service.card(service.name(name))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """The token ids of a text or of a conversation."""
        service.name(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise invalid("give either prompt or messages")
        if body.messages is not None:
            messages = [message.for_template() for message in body.messages]
            ids = (await service.prompts.encode_chat(messages)).ids
        elif body.add_special_tokens:
            ids = (await service.prompts.encode(body.prompt or "")).ids
        else:
            ids = await service.prompts.encode_bare(body.prompt or "")
        longest = service.engine.max_model_len
        return {"tokens": ids, "count": len(ids), "max_model_len": longest}

    @app.get("/health")
    async def health() -> Response:
        """200 while the engine takes requests, else 503."""
        alive = service.engine.alive
        status = {"status": "ok" if alive else "the engine has stopped"}
        return JSONResponse(status, 200 if alive else 503)

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The version of args-fast."""
        return {"version": __version__}

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")
