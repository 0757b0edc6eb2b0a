"""Our own engine: ARGS, greedy decoding as its k = 1, and both with options of the decoder's."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.kvcache.storage import PAGE_SIZE, pages_for

# The decoder that each pair has beside it, with its options and the tokens that fit into it.
_kept: WeakKeyDictionary[ArgsDecoder, tuple[dict[str, Any], int, ArgsDecoder]] = WeakKeyDictionary()


def args(
    pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, k: int, w: float
) -> list[list[int]]:
    config = DecodingConfig(k=k, w=w, max_new_tokens=new_tokens, eos_token_ids=[])
    return [result.token_ids for result in pair.generate(list(prompts), config)]


def greedy(
    pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, k: int, w: float
) -> list[list[int]]:
    return args(pair, prompts, new_tokens, 1, 0.0)


def with_options(decode: Callable, **options: Any) -> Callable:
    """``args`` or ``greedy`` by a decoder over the same models that is made with these options. It
    is kept between calls, until another is wanted, ``free`` is called or the pair is gone. Call it
    with the most tokens first: the cache is as large as that and serves shorter calls."""

    def decode_with_options(
        pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, k: int, w: float
    ) -> list[list[int]]:
        return decode(_own(pair, prompts, new_tokens, options), prompts, new_tokens, k, w)

    return decode_with_options


def _own(
    pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, options: dict[str, Any]
) -> ArgsDecoder:
    tokens = len(prompts) * (len(prompts[0]) + new_tokens)
    if pair in _kept:
        kept_options, room, decoder = _kept[pair]
        if kept_options == options and tokens <= room:
            return decoder
        del decoder
        free(pair)  # before there is another one
    decoder = beside(pair, prompts, new_tokens, **options)
    _kept[pair] = (options, tokens, decoder)
    return decoder


def free(pair: ArgsDecoder) -> None:
    """Let go of the decoder that the pair has beside it, with its caches and graphs."""
    _kept.pop(pair, None)


def beside(
    pair: ArgsDecoder, prompts: Sequence[list[int]], new_tokens: int, **options: Any
) -> ArgsDecoder:
    """Another decoder over the same models, with a cache for these prompts."""
    use = pair.cache
    room = cache_bytes(
        -(-use.bytes // use.tokens),  # rounded up, as the scratch page is among the bytes
        batch=len(prompts),
        tokens=len(prompts[0]) + new_tokens,
    )
    return ArgsDecoder(pair.language_model, pair.reward_model, cache_bytes=room, **options)


def cache_bytes(per_token: int, *, batch: int, tokens: int) -> int:
    """Room for ``batch`` sequences of so many tokens, with two pages to spare for each, since the
    scheduler admits nobody whose growth it could not serve. ``per_token``: of both models."""
    pages = batch * (pages_for(tokens) + 2) + 1
    return per_token * PAGE_SIZE * pages
