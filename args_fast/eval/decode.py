"""Prompts through one method: whatever the method, one response for each prompt."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from args_fast.config import DecodingConfig
from args_fast.errors import ArgsError, EvaluationError, LengthError
from args_fast.eval.contrastive import contrastive_search
from args_fast.eval.cuts import keep_tokens
from args_fast.eval.methods import KINDS, Method
from args_fast.eval.nucleus import nucleus_sampling
from args_fast.generation import Generation
from args_fast.text import TextStream

if TYPE_CHECKING:
    from args_fast.decoder import ArgsDecoder

Prompt = Any  # a text, a conversation, or ids
FIRST_TOKEN = DecodingConfig(k=1, w=0.0, max_new_tokens=1)


@dataclass(frozen=True)
class Response:
    """What a method answered to one prompt.

    Attributes:
        text: the answer, cut before a stop string.
        token_ids: its tokens, an end token included.
        prompt_token_ids: the prompt as the language model saw it.
        finish_reason: "eos", "stop" or "length".
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True)
class Limits:
    """When a response ends, besides at the language model's own end tokens.

    Attributes:
        max_new_tokens: upper bound on its tokens.
        stop: strings that end it.
        endless: go on after an end token too, so that every response has the same length.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    endless: bool = False


def decode(
    decoder: "ArgsDecoder", method: Method, requests: Iterable[tuple[Prompt, int]], limits: Limits
) -> Iterator[tuple[int, Response | ArgsError]]:
    """Decode prompts by one method.

    Args:
        decoder: of the method's language model and the guiding reward.
        method: how.
        requests: prompts, each with the seed of its draws.
        limits: when responses end.

    Yields:
        (number of the request, its response or the error of this request alone), in the order in
        which they end.
    """
    asked = list(requests)
    if KINDS[method.kind].config is None:
        yield from _own_loops(decoder, method, asked, limits)
        return
    samples: dict[int, list[Generation]] = {}
    count = dict(method.options).get("n", 1)
    configured = ((prompt, _config(method, seed, limits)) for prompt, seed in asked)
    for index, result in decoder.complete(configured):
        if isinstance(result, ArgsError):
            yield index, result
            continue
        samples.setdefault(index, []).append(result)
        if len(samples[index]) == count:
            yield index, _best(decoder, asked[index][0], samples.pop(index))


def _config(method: Method, seed: int, limits: Limits) -> DecodingConfig:
    config = method.config(limits.max_new_tokens, seed, limits.stop)
    return replace(config, eos_token_ids=()) if limits.endless else config


def _best(
    decoder: "ArgsDecoder", prompt: Prompt, samples: Sequence[Generation]
) -> Response | ArgsError:
    """The sample with the highest reward; the earliest of equals."""
    best = 0
    if len(samples) > 1:
        kept = [keep_tokens(decoder.tokenizer, s.token_ids, s.text or "") for s in samples]
        try:
            rewards = decoder.rewards([prompt] * len(samples), kept)
        except ArgsError as error:
            return error
        best = max(range(len(samples)), key=rewards.__getitem__)
    chosen = samples[best]
    return Response(
        chosen.text or "", chosen.token_ids, chosen.prompt_token_ids, chosen.finish_reason
    )


def _own_loops(
    decoder: "ArgsDecoder", method: Method, asked: Sequence[tuple[Prompt, int]], limits: Limits
) -> Iterator[tuple[int, Response | ArgsError]]:
    """Responses by a loop over the language model as transformers runs it, in batches of as many
    rows as the decoder has."""
    ready: list[tuple[int, list[int]]] = []  # number of the request, ids of its prompt
    # The decoder's own reading of the prompts, whatever kind of prompts they are.
    for index, start in decoder.complete((prompt, FIRST_TOKEN) for prompt, _ in asked):
        try:
            if isinstance(start, ArgsError):
                raise start
            ids = list(start.prompt_token_ids)
            _check_own_loop(decoder.language_model, method, len(ids), limits.max_new_tokens)
            ready.append((index, ids))
        except ArgsError as error:
            yield index, error
    size = max(1, decoder.max_batch_size // KINDS[method.kind].lm_rows(dict(method.options)))
    for chunk in (ready[place : place + size] for place in range(0, len(ready), size)):
        ends = [_End(decoder, limits) for _ in chunk]
        options: dict[str, Any] = {**dict(method.options), "enough": ends}
        if method.kind == "nucleus":
            options["seeds"] = [asked[index][1] for index, _ in chunk]
        loop = nucleus_sampling if method.kind == "nucleus" else contrastive_search
        responses = loop(decoder.language_model, [ids for _, ids in chunk], **options)
        for (index, ids), tokens, end in zip(chunk, responses, ends, strict=True):
            yield index, Response(end.text, tokens, ids, end.reason)


def _check_own_loop(model: Any, method: Method, prompt: int, new: int) -> None:
    k, vocabulary = dict(method.options).get("k", 1), model.get_input_embeddings().num_embeddings
    if int(k) > vocabulary:
        raise EvaluationError(
            f"k of {method.kind} is {k}, but the vocabulary has {vocabulary} tokens"
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and prompt + new > longest:
        raise LengthError(
            f"the prompt has {prompt} tokens and {new} new ones are asked for; the language model "
            f"takes {longest} together"
        )


class _End:
    """Counts and decodes the tokens of one response, and says when it is complete."""

    def __init__(self, decoder: "ArgsDecoder", limits: Limits) -> None:
        generation = decoder.language_model.generation_config
        eos = (generation or decoder.language_model.config).eos_token_id
        self._ends = set([] if eos is None else [eos] if isinstance(eos, int) else eos)
        self._stops = _special_stops(decoder.tokenizer, limits.stop)
        self._limits = limits
        self._count = 0
        self._stream = TextStream(decoder.tokenizer, limits.stop) if decoder.tokenizer else None
        self.reason = "length"

    @property
    def text(self) -> str:
        return "" if self._stream is None else self._stream.text

    def __call__(self, token: int) -> bool:
        self._count += 1
        ended = token in self._ends | self._stops and not self._limits.endless
        last = ended or self._count == self._limits.max_new_tokens
        if self._stream is not None:
            self._stream.push(token, last=last)
            if self._stream.stopped:
                self.reason = "stop"
                return True
        if ended:
            self.reason = "eos" if token in self._ends else "stop"
        return last


def _special_stops(tokenizer: Any, stop: Sequence[str]) -> set[int]:
    """Ids of stop strings that are special tokens, which a decoded text leaves out."""
    if tokenizer is None:
        return set()
    added = tokenizer.added_tokens_decoder.items()
    return {id for id, token in added if token.special and token.content in stop}
