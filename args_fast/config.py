"""Every knob of a decode, validated once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from args_fast.errors import ConfigError

MAX_K = 128  # what every implementation of the ops holds in registers
MAX_SAMPLES = 10_000  # of one prompt: each is a request that has to be held
SMALLEST, LARGEST = 1e-30, 1e30  # of w and temperature: beyond, scores overflow float32


@dataclass(frozen=True)
class DecodingConfig:
    """How to decode (ARGS paper, section 2).

    Args:
        k: candidates per step, the k most likely tokens of the language model; 1 to 128. k = 1 is
            plain greedy decoding for every w.
        w: weight of the reward in s(v) = log p(v | x) + w * r([x, v]) (eq. 2); any finite number.
            w = 0 leaves the choice to the language model, and the reward model is not run.
        temperature: None or 0 takes the argmax (ARGS-greedy); tau > 0 draws from softmax(s / tau)
            over the candidates (ARGS-stochastic, eq. 3). 0 is stored as None.
        max_new_tokens: upper bound on the new tokens per prompt.
        seed: of the draws; 0 to 2**63 - num_return_sequences. Each prompt draws from a generator of
            its own with this seed, so it gets the same tokens alone and in a batch.
        eos_token_ids: ids that end a sequence (the end token is kept in ``token_ids``); None for
            the language model's own, () for none.
        stop: strings that end a sequence; ``text`` is cut before the first of them. A string that
            is a special token of the tokenizer ends it at that id. None is the same as ().
        num_return_sequences: samples per prompt, up to 10,000. Sample i draws with seed + i, so
            sample 0 is the one that a single sample would be; they share the prompt's keys and
            values. Without a temperature all are the same.
        return_candidates: report the k candidates of every step, with log-probability, reward and
            score (``Generation.candidates``). The tokens are the same.

        top_p: keep only the most likely candidates, up to the one with which their probabilities
            over the whole vocabulary add up to top_p; above 0 to 1, None for all k.
        min_p: keep only candidates with at least min_p times the probability of the most likely;
            0 to 1, None for all k. Neither renormalises, and at least one candidate is kept.
        every: consult the reward for the first token and every n-th after it; the others are the
            language model's choice. 1 is ARGS; above it, an approximation that is not ARGS.
        certain: skip the reward where the language model's first candidate has this probability or
            more; above 0 to 1, None never skips. An approximation, too.
        reward: which of the decoder's rewards guide this request: a name, or the weight of each by
            name; None for all of them, as they were given.

    Raises:
        ConfigError: (a ValueError) naming the field, the value and the allowed range.
    """

    k: int = 10
    w: float = 1.5
    temperature: float | None = None
    max_new_tokens: int = 128
    seed: int = 0
    eos_token_ids: Sequence[int] | None = None
    stop: Sequence[str] = ()
    num_return_sequences: int = 1
    return_candidates: bool = False
    top_p: float | None = None
    min_p: float | None = None
    every: int = 1
    certain: float | None = None
    reward: str | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        self._set("k", _whole("k", self.k, 1, MAX_K))
        self._set("max_new_tokens", _whole("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1))
        samples = _whole("num_return_sequences", self.num_return_sequences, 1, MAX_SAMPLES)
        self._set("num_return_sequences", samples)
        self._set("every", _whole("every", self.every, 1, 2**31 - 1))
        self._set("seed", _whole("seed", self.seed, 0, 2**63 - self.num_return_sequences))
        if not isinstance(self.return_candidates, bool):
            raise ConfigError(
                f"return_candidates is {self.return_candidates!r}; it must be True or False"
            )
        self._set("w", _weight(self.w))
        self._set("temperature", _temperature(self.temperature))
        self._set("eos_token_ids", _ids(self.eos_token_ids))
        self._set("stop", _strings(self.stop))
        self._set("top_p", _share("top_p", self.top_p, SMALLEST))
        self._set("min_p", _share("min_p", self.min_p, 0))
        self._set("certain", _share("certain", self.certain, SMALLEST, "never to skip"))
        self._set("reward", _reward(self.reward))

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    @property
    def narrowed(self) -> bool:
        """Whether a step may keep fewer than k candidates."""
        return self.top_p is not None or self.min_p is not None

    @property
    def skips(self) -> bool:
        """Whether some steps may do without the reward: then it is not ARGS."""
        return self.every > 1 or self.certain is not None

    def skips_reward(self, step: int, likeliest: float) -> bool:
        """Whether a step (the first is 0) does without the reward, where the language model's first
        candidate has this probability."""
        return step % self.every > 0 or (self.certain is not None and likeliest >= self.certain)

    @property
    def consults_reward(self) -> bool:
        """Whether the choice depends on the reward model at all."""
        return self.k > 1 and self.w != 0

    def samples(self) -> "list[DecodingConfig]":
        """One config for each of the ``num_return_sequences``."""
        if self.num_return_sequences == 1:
            return [self]
        return [
            replace(self, seed=self.seed + i, num_return_sequences=1)
            for i in range(self.num_return_sequences)
        ]

    def noise(self) -> Tensor:
        """The draws of one request: standard Gumbel noise [max_new_tokens, k], float32, on the CPU.

        argmax(s / tau + noise) is a draw from softmax(s / tau); zeros make it the argmax. Drawn
        before decoding, from the request's own generator, so that neither the device nor what runs
        next to the request can change it.
        """
        noise = torch.zeros(self.max_new_tokens, self.k, dtype=torch.float32, device="cpu")
        if self.temperature is None:
            return noise
        generator = torch.Generator().manual_seed(self.seed)
        return -noise.exponential_(generator=generator).log()


def configs_for(
    config: DecodingConfig | Sequence[DecodingConfig] | None, prompts: int
) -> list[DecodingConfig]:
    """One config for each of several prompts.

    Args:
        config: one for all prompts, a list with one for each, or None for ``DecodingConfig()``.
        prompts: the number of prompts.

    Raises:
        ConfigError: the config is something else, or the list has another length.
    """
    if config is None:
        config = DecodingConfig()
    if isinstance(config, DecodingConfig):
        return [config] * prompts
    if isinstance(config, (str, Mapping)) or not isinstance(config, Sequence):
        raise not_a_config(config)
    if len(config) != prompts:
        raise ConfigError(
            f"config is a list of {len(config)} for {prompts} prompts; give one for each, or one "
            "for all"
        )
    return list(config)


def not_a_config(value: object) -> ConfigError:
    """The error for options that are not a DecodingConfig."""
    return ConfigError(
        f"config is {value!r}; it must be a DecodingConfig, such as DecodingConfig(k=3), or a list "
        "with one for each prompt. DecodingConfig(**options) makes one of a dict."
    )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(field: str, value: object, low: int, high: int) -> int:
    """The value as an int: numpy's integers are taken too. Raises ConfigError."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise ConfigError(f"{field} is {value!r}; it must be a whole number from {low} to {high}")
    return number


def _weight(w: float) -> float:
    if not (_is_number(w) and abs(w) <= LARGEST):
        raise ConfigError(
            f"w is {w!r}; it must be a finite number, such as 1.5, of a size up to {LARGEST:g}"
        )
    return _plain(w)


def _temperature(temperature: float | None) -> float | None:
    if temperature is None or (_is_number(temperature) and temperature == 0):
        return None
    if not (_is_number(temperature) and SMALLEST <= temperature <= LARGEST):
        raise ConfigError(
            f"temperature is {temperature!r}; it must be a finite number above 0, or None or 0 "
            f"for the argmax; float32 takes {SMALLEST:g} to {LARGEST:g}"
        )
    return _plain(temperature)


def _share(
    field: str, value: float | None, lowest: float, without: str = "for all k candidates"
) -> float | None:
    if value is None:
        return None
    if not (_is_number(value) and lowest <= value <= 1):
        raise ConfigError(
            f"{field} is {value!r}; it must be a number, {'above 0' if lowest else '0'} to 1, or "
            f"None {without}"
        )
    return _plain(value)


def _reward(reward: str | Mapping[str, float] | None) -> str | dict[str, float] | None:
    if reward is None or isinstance(reward, str):
        return reward
    if not isinstance(reward, Mapping) or not reward:
        raise ConfigError(
            f"reward is {reward!r}; it must be a reward's name, or weights by name, like "
            "{'helpful': 0.7, 'safe': 0.3}, or None for all of the decoder's"
        )
    for name, weight in reward.items():
        if not isinstance(name, str) or not (_is_number(weight) and abs(weight) <= LARGEST):
            raise ConfigError(
                f"reward has {name!r}: {weight!r}; it must hold finite numbers by name"
            )
    return {name: _plain(weight) for name, weight in reward.items()}


def _plain(number: float) -> float:
    """The number without numpy's type, which JSON does not take."""
    return int(number) if isinstance(number, Integral) else float(number)


def _ids(ids: Iterable[int] | None) -> tuple[int, ...] | None:
    if ids is None:
        return None
    items = _items(ids)
    if items is None or isinstance(ids, str):
        raise ConfigError(f"eos_token_ids is {ids!r}; it must be a list of ids, like [2]")
    return tuple(_whole("eos_token_ids", token, 0, 2**31 - 1) for token in items)


def _strings(stop: Iterable[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    texts = [stop] if isinstance(stop, str) else _items(stop)
    if texts is None:
        raise ConfigError(f"stop is {stop!r}; it must be a string, or a list of strings")
    if not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"stop is {stop!r}; it must hold non-empty strings")
    return tuple(texts)


def _items(value: object) -> list[Any] | None:
    """What a list, tuple, set or array holds; None of anything else."""
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        return None
    try:
        return list(value)
    except TypeError:  # an array without a dimension
        return None
