"""What the routes share: the engine, what is made once for it, and how requests are prepared."""

import time
from typing import Any

from args_fast.serve.chat import ChatFormat, top_logprobs
from args_fast.serve.completions import CompletionFormat
from args_fast.serve.decoding import Decoding, base_config, samples
from args_fast.serve.engine_view import EngineView, ScoredPrompt
from args_fast.serve.errors import ApiError, invalid
from args_fast.serve.formats import AnswerFormat
from args_fast.serve.limits import Admission
from args_fast.serve.metrics import Metrics
from args_fast.serve.options import ServerOptions
from args_fast.serve.prompts import Prompts
from args_fast.serve.protocol import ChatRequest, CompletionRequest
from args_fast.serve.vocabulary import Vocabulary

Prepared = tuple[AnswerFormat, Decoding]


class Service:
    """One engine, as the routes use it.

    Args:
        engine: where requests are decoded.
        options: what the operator decided.
    """

    def __init__(self, engine: EngineView, options: ServerOptions) -> None:
        self.engine = engine
        self.options = options
        self.metrics = Metrics(engine, options.model_names[0])
        self.prompts = Prompts(engine.encoder, engine.max_model_len)
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
                "rewards": self.engine.rewards,
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
            prompt = body.prompts[part.index // config.num_return_sequences]
            whole = prompt if isinstance(prompt, str) else self.vocabulary.whole(prompt)
            echoes[part.index] = whole
            if body.logprobs is not None:
                scored[part.index] = await self.engine.score(part.prompt.ids, body.logprobs)
        name = self.name(body.model)
        shape = CompletionFormat(name, self.vocabulary, body.logprobs, echoes, scored)
        return shape, Decoding(self.engine, self.metrics, parts, began)
