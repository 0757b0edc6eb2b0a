"""The application: which address does what. ``create_app`` makes it from an engine."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from args_fast import __version__
from args_fast.serve import errors, playground
from args_fast.serve.auth import KeyCheck
from args_fast.serve.chat import ChatFormat, top_logprobs
from args_fast.serve.completions import CompletionFormat
from args_fast.serve.decoding import Decoding, base_config, samples
from args_fast.serve.engine_view import EngineView, ScoredPrompt
from args_fast.serve.errors import ApiError, ErrorBody, as_api_error, invalid
from args_fast.serve.formats import AnswerFormat
from args_fast.serve.limits import Admission, BodyLimit
from args_fast.serve.logs import RequestLog, note
from args_fast.serve.metrics import Metrics
from args_fast.serve.options import ServerOptions
from args_fast.serve.prompts import Prompts
from args_fast.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DecodingRequest,
    TokenizeRequest,
    refuse_unsupported,
)
from args_fast.serve.streaming import ClientGoneError, as_json, collect, send_events, until_gone
from args_fast.serve.vocabulary import Vocabulary

Prepared = tuple[AnswerFormat, Decoding]
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 413, 429, 500, 503)
}


class Service:
    """What the routes share: the engine, and everything that is made once for it."""

    def __init__(self, engine: EngineView, options: ServerOptions) -> None:
        self.engine = engine
        self.options = options
        self.metrics = Metrics(engine, options.model_names[0])
        self.prompts = Prompts(engine.tokenizer, engine.max_model_len, engine.vocab_size)
        self.vocabulary = Vocabulary(engine.tokenizer)
        self.admission = Admission(engine.places)
        self.started = int(time.time())

    async def close(self) -> None:
        """End the engine and the threads."""
        await self.engine.close()
        self.prompts.close()

    def name(self, asked: str | None) -> str:
        """The model's name for an answer. Raises a 404 where it is not one of this server's."""
        if asked is None:
            return self.options.model_names[0]
        if asked not in self.options.model_names:
            raise ApiError(
                404,
                f"there is no model {asked!r} here; this server has "
                f"{', '.join(self.options.model_names)}",
                param="model",
                code="model_not_found",
            )
        return asked

    def card(self, name: str) -> dict[str, Any]:
        """A model as /v1/models lists it."""
        defaults = self.options.defaults
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "args-fast",
            "max_model_len": self.engine.max_model_len,
            "args": {
                "k": defaults.k,
                "w": defaults.w,
                "chat": self.prompts.has_template,
                "demonstration": self.options.demonstration,
            },
        }

    async def prepare_chat(self, body: ChatRequest, began: float) -> Prepared:
        """What a chat completion decodes, and how its answer looks."""
        top = top_logprobs(body)
        config = base_config(body, self.options, candidates=top or 0)
        prompt = await self.prompts.encode_chat([each.for_template() for each in body.messages])
        parts = samples(body, [prompt], config, self.engine.max_model_len)
        if parts[0].config is None:
            raise invalid("max_tokens is 0; it must be at least 1", "max_tokens")
        shape = ChatFormat(self.name(body.model), self.vocabulary, top)
        return shape, Decoding(self.engine, self.metrics, parts, began)

    async def prepare_completion(self, body: CompletionRequest, began: float) -> Prepared:
        """What a text completion decodes, and how its answer looks."""
        config = base_config(body, self.options, candidates=body.logprobs or 0)
        prompts = [await self.prompts.encode(prompt) for prompt in body.prompts]
        parts = samples(body, prompts, config, self.engine.max_model_len)
        if parts[0].config is None and not body.echo:
            raise invalid("max_tokens is 0; without echo it must be at least 1", "max_tokens")
        echoes: dict[int, str] = {}
        scored: dict[int, ScoredPrompt] = {}
        for part in parts if body.echo else []:
            given = body.prompts[part.index // config.num_return_sequences]
            whole = given if isinstance(given, str) else self.vocabulary.whole(part.prompt)
            echoes[part.index] = whole
            if body.logprobs is not None:
                scored[part.index] = await self.engine.score(part.prompt, body.logprobs)
        name = self.name(body.model)
        shape = CompletionFormat(name, self.vocabulary, body.logprobs, echoes, scored)
        return shape, Decoding(self.engine, self.metrics, parts, began)


class Answer(Response):
    """The response to one request for tokens. All of its work is done while it is being sent, so
    that a client which leaves at any moment ends all of it."""

    def __init__(
        self,
        service: Service,
        body: DecodingRequest,
        prompts: int,
        prepare: Callable[[float], Awaitable[Prepared]],
    ) -> None:
        super().__init__()
        self._service = service
        self._body = body
        self._samples = prompts * (body.n or 1)
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._respond(scope, send))
        except ClientGoneError:
            note(scope, gone=True)
        except Exception as error:
            await as_api_error(error).response()(scope, receive, send)

    async def _respond(self, scope: Scope, send: Send) -> None:
        body, service = self._body, self._service
        began = time.perf_counter()
        service.name(body.model)
        refuse_unsupported(body)
        with service.admission.admit(self._samples):
            shape, decoding = await self._prepare(began)
            try:
                if body.stream:
                    usage = body.stream_options is not None and body.stream_options.include_usage
                    await send_events(send, shape, decoding, include_usage=bool(usage))
                else:
                    tokens = await collect(decoding)
                    choices = map(shape.choice, decoding.parts, tokens)
                    whole = as_json(shape.whole(list(choices), decoding.usage))
                    answer = Response(whole, media_type="application/json")
                    await answer(scope, _nothing, send)
            finally:
                self._note(scope, decoding)

    def _note(self, scope: Scope, decoding: Decoding) -> None:
        config = next((part.config for part in decoding.parts if part.config), None)
        note(
            scope,
            samples=len(decoding.parts),
            stream=bool(self._body.stream),
            prompt_tokens=decoding.prompt_tokens,
            completion_tokens=decoding.new_tokens,
            first_token_seconds=decoding.first_token and round(decoding.first_token, 4),
        )
        if config is not None:
            note(scope, k=config.k, w=config.w, temperature=config.temperature)
        if self._service.options.log_prompts:
            whole = self._service.vocabulary.whole
            note(scope, prompts=[whole(part.prompt) for part in decoding.parts])


async def _nothing() -> Any:
    raise AssertionError("a plain response reads nothing")


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
            ids = await service.prompts.encode_chat([m.for_template() for m in body.messages])
        else:
            ids = await service.prompts.encode(body.prompt or "", special=body.add_special_tokens)
        longest = service.engine.max_model_len
        return {"tokens": ids, "count": len(ids), "max_model_len": longest}

    @app.get("/health")
    async def health(_: Request) -> Response:
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
