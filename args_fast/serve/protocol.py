"""The requests that the server takes: OpenAI's fields, and ``args`` with ours.

Fields that no one knows are ignored, as OpenAI's own servers do for their clients' sake; those that
are known and not supported are in openai_fields.py.
"""

from dataclasses import fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_validator,
)

from args_fast.config import DecodingConfig
from args_fast.openai_fields import OPENAI_NAMES, disagreement
from args_fast.serve.errors import invalid
from args_fast.serve.unsupported import unsupported

MOST_STOPS, LONGEST_STOP, MOST_MESSAGES, MOST_TOP_LOGPROBS = 16, 256, 4096, 128


class _Known(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, body: Any) -> Any:
        for name in body if isinstance(body, dict) else ():
            if name in OPENAI_NAMES:
                raise ValueError(
                    f"{name} is not an option of args; give {OPENAI_NAMES[name]} of the request"
                )
            if name not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                raise ValueError(f"{name!r} is not an option of args; those are {known}")
        return body


def _must_be(allowed: str) -> WrapValidator:
    """Says in one sentence what a field of several types may be."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValueError(f"it must be {allowed}") from error

    return WrapValidator(check)


def _args_model() -> type[BaseModel]:
    hints = get_type_hints(DecodingConfig)
    ours = [f for f in fields(DecodingConfig) if f.name not in OPENAI_NAMES]
    # DecodingConfig checks the ranges; a field is written once, there.
    options: dict[str, Any] = {f.name: (hints[f.name] | None, None) for f in ours}
    made: type[BaseModel] = create_model("ArgsOptions", __base__=_Known, **options)
    made.__doc__ = "Options of guided decoding: fields of args_fast.DecodingConfig."
    return made


ArgsOptions = _args_model()


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None


class StreamOptions(BaseModel):
    """What a stream carries besides its text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="Usage in every chunk.")


StopText = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Stop = Annotated[
    StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)],
    _must_be(
        f"a string of 1 to {LONGEST_STOP} characters, or a list of up to {MOST_STOPS} of them"
    ),
]


class DecodingRequest(_Body):
    """The fields that both kinds of completion share."""

    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(
        None, ge=0, description="0 or absent: ARGS-greedy; above 0: ARGS-stochastic's tau."
    )
    top_p: float | None = None
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, description="Absent: drawn, and reported in choices[i].args.")
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    args: ArgsOptions | None = None  # type: ignore[valid-type]

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def new_tokens(self) -> int | None:
        """Upper bound on the new tokens, under either of its names. Raises an ApiError where they
        disagree."""
        refusal = disagreement(vars(self))
        if refusal is not None:
            raise invalid(refusal.message, refusal.field)
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | list[TextPart],
        _must_be('a string, or a list of parts such as {"type": "text", "text": "..."}'),
    ]
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The turn as chat templates take it. Raises an ApiError for what is not text."""
        for field in ("tool_calls", "function_call", "audio", "refusal"):
            if (self.model_extra or {}).get(field):
                raise unsupported(f"messages.{field}")
        if isinstance(self.content, str):
            text = self.content
        else:
            for part in self.content:
                if part.type != "text" or part.text is None:
                    raise invalid(
                        f"a message has a part of type {part.type!r}; this server takes text only",
                        "messages",
                    )
            text = "\n".join(part.text or "" for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text} | ({"name": self.name} if self.name else {})


Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]


class ChatRequest(DecodingRequest):
    """A body of POST /v1/chat/completions."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)


Ids = Annotated[list[int], Field(min_length=1)]
Prompt = Annotated[
    str
    | Ids
    | Annotated[list[str], Field(min_length=1)]
    | Annotated[list[Ids], Field(min_length=1)],
    _must_be(
        "a string, a list of strings, a list of token ids, or a list of such lists; not empty"
    ),
]


class CompletionRequest(DecodingRequest):
    """A body of POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One prompt or several, as a list."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return list(self.prompt) if several else [self.prompt]  # type: ignore[list-item,arg-type]


class TokenizeRequest(_Body):
    """A body of POST /tokenize: a text, or a conversation."""

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
