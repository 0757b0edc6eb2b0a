"""The response to a request for tokens: admitted, prepared, decoded and sent, or cancelled."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from args_fast.serve.decoding import Decoding
from args_fast.serve.errors import as_api_error
from args_fast.serve.formats import as_json
from args_fast.serve.logs import note
from args_fast.serve.protocol import DecodingRequest
from args_fast.serve.service import Prepared, Service
from args_fast.serve.streaming import ClientGoneError, collect, send_events, until_gone
from args_fast.serve.unsupported import refuse_unsupported


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
        started = False

        async def noticed(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await until_gone(receive, self._respond(scope, noticed))
        except ClientGoneError:
            note(scope, gone=True)
        except Exception as error:
            failure = as_api_error(error)
            if not started:
                await failure.response()(scope, receive, send)

    async def _respond(self, scope: Scope, send: Send) -> None:
        body, service = self._body, self._service
        began = time.perf_counter()
        service.name(body.model)
        refuse_unsupported(body)
        with service.admission.admit(self._samples):
            shape, decoding = await self._prepare(began)
            try:
                if body.stream:
                    await send_events(send, shape, decoding, body.stream_options)
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
            note(scope, prompts=[whole(part.prompt.ids) for part in decoding.parts])


async def _nothing() -> Any:
    raise AssertionError("a plain response reads nothing")
