"""Every knob of a decode, validated once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from args_fast.errors import ConfigError

MAX_K = 128  # what every implementation of the ops holds in registers
SMALLEST, LARGEST = 1e-30, 1e30  # of w and temperature: beyond, scores overflow float32


@dataclass(frozen=True)
class DecodingConfig:
    """How to decode (ARGS paper, section 2).

    Args:
        k: candidates per step, the k most likely tokens of the language model; 1 to 128. k = 1 is
            plain greedy decoding for every w.
        w: weight of the reward in s(v) = log p(v | x) + w * r([x, v]) (eq. 2); any finite number.
            w = 0 leaves the choice to the language model, and the reward model is not run.
        temperature: None takes the argmax (ARGS-greedy); tau > 0 draws from softmax(s / tau) over
            the candidates (ARGS-stochastic, eq. 3).
        max_new_tokens: upper bound on the new tokens per prompt.
        seed: of the draws; 0 to 2**63 - num_return_sequences. Each prompt draws from a generator of
            its own with this seed, so it gets the same tokens alone and in a batch.
        eos_token_ids: ids that end a sequence (the end token is kept in ``token_ids``); None for
            the language model's own, () for none.
        stop: strings that end a sequence; ``text`` is cut before the first of them.
        num_return_sequences: samples per prompt. Sample i draws with seed + i, so sample 0 is the
            one that a single sample would be; they share the prompt's keys and values. Without a
            temperature all are the same.
        return_candidates: report the k candidates of every step, with log-probability, reward and
            score (``Generation.candidates``). The tokens are the same.
        top_p: keep only the most likely candidates, up to the one with which their probabilities
            over the whole vocabulary add up to top_p; above 0 to 1, None for all k.
        min_p: keep only candidates with at least min_p times the probability of the most likely;
            0 to 1, None for all k. Neither renormalises, and at least one candidate is kept.
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
    reward: str | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        _whole("k", self.k, 1, MAX_K)
        _whole("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1)
        _whole("num_return_sequences", self.num_return_sequences, 1, 2**31 - 1)
        if not isinstance(self.return_candidates, bool):
            raise ConfigError(
                f"return_candidates is {self.return_candidates!r}; it must be True or False"
            )
        _whole("seed", self.seed, 0, 2**63 - self.num_return_sequences)
        if not (_is_number(self.w) and abs(self.w) <= LARGEST):
            raise ConfigError(
                f"w is {self.w!r}; it must be a finite number, such as 1.5, of a size up to "
                f"{LARGEST:g}"
            )
        if self.temperature is not None and not (
            _is_number(self.temperature) and SMALLEST <= self.temperature <= LARGEST
        ):
            raise ConfigError(
                f"temperature is {self.temperature!r}; it must be a finite number above 0, or None "
                f"for the argmax; float32 takes {SMALLEST:g} to {LARGEST:g}"
            )
        if self.eos_token_ids is not None:
            if isinstance(self.eos_token_ids, (int, str)):
                raise ConfigError(
                    f"eos_token_ids is {self.eos_token_ids!r}; it must be a list of ids, like [2]"
                )
            for token in self.eos_token_ids:
                _whole("eos_token_ids", token, 0, 2**31 - 1)
            object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop is {self.stop!r}; it must hold non-empty strings")
        object.__setattr__(self, "stop", tuple(self.stop))
        self._check_narrowing()
        self._check_reward()

    def _check_narrowing(self) -> None:
        for name, lowest in (("top_p", SMALLEST), ("min_p", 0)):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and lowest <= value <= 1):
                bound = "above 0" if lowest else "0"
                raise ConfigError(
                    f"{name} is {value!r}; it must be a number, {bound} to 1, or None for all k "
                    "candidates"
                )

    def _check_reward(self) -> None:
        if self.reward is None or isinstance(self.reward, str):
            return
        if not isinstance(self.reward, Mapping) or not self.reward:
            raise ConfigError(
                f"reward is {self.reward!r}; it must be a reward's name, or weights by name, like "
                "{'helpful': 0.7, 'safe': 0.3}, or None for all of the decoder's"
            )
        for name, weight in self.reward.items():
            if not isinstance(name, str) or not (_is_number(weight) and abs(weight) <= LARGEST):
                raise ConfigError(
                    f"reward has {name!r}: {weight!r}; it must hold finite numbers by name"
                )
        object.__setattr__(self, "reward", dict(self.reward))

    @property
    def narrowed(self) -> bool:
        """Whether a step may keep fewer than k candidates."""
        return self.top_p is not None or self.min_p is not None

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
        beside the request can change it.
        """
        shape = (self.max_new_tokens, self.k)
        if self.temperature is None:
            return torch.zeros(shape)
        generator = torch.Generator().manual_seed(self.seed)
        return -torch.empty(shape).exponential_(generator=generator).log()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{field} is {value!r}; it must be a whole number from {low} to {high}")
