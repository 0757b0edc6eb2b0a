"""What an evaluation compares and measures, and what is open while it runs."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from args_fast.errors import EvaluationError
from args_fast.eval.data import Item
from args_fast.eval.judges import Judge
from args_fast.eval.methods import Method
from args_fast.eval.records import Records

if TYPE_CHECKING:
    from args_fast.decoder import ArgsDecoder

OpenPair = Callable[[str, str], "ArgsDecoder"]
Report = Callable[[str, int, int], None]  # what is under way, how many are done, of how many


@dataclass(frozen=True)
class Settings:
    """What every record of a run depends on.

    Attributes:
        lm, rm: the language model and the guiding reward.
        dtype: of both.
        data: where prompts come from, as ``data.load`` takes it.
        split: of the data set; None for the published one.
        chat: as ``data.load`` takes it.
        limit: how many prompts are drawn; None for all.
        seed: of the draw of prompts, of all methods that draw, and of the bootstrap.
        max_new_tokens: upper bound on a response, in tokens.
        max_prompt_tokens: longer prompts are skipped and counted.
        stop: strings that end a response.
        logits_processor: of the decoder, "model" or None.
    """

    lm: str
    rm: str
    dtype: str
    data: str
    split: str | None = None
    chat: bool | None = None
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int = 128
    max_prompt_tokens: int = 2048
    stop: tuple[str, ...] = ()
    logits_processor: str | None = None

    def __post_init__(self) -> None:
        least = {"limit": 1, "seed": 0, "max_new_tokens": 1, "max_prompt_tokens": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise EvaluationError(f"{name} is {value}; it must be at least {low}")


@dataclass(frozen=True)
class Plan:
    """What a run compares and measures.

    Attributes:
        settings: what every record depends on.
        methods: the methods, the first of kind "greedy" (else the first) being the baseline.
        judges: rewards that do not guide.
        encoder: a sentence encoder for coherence; None leaves coherence out.
        pooling: of the encoder.
        timing_prompts: how many prompts each method is timed on; 0 leaves times out.
    """

    settings: Settings
    methods: tuple[Method, ...]
    judges: tuple[Judge, ...] = ()
    encoder: str | None = None
    pooling: str = "auto"
    timing_prompts: int = 3

    def __post_init__(self) -> None:
        keys = [method.key for method in self.methods]
        names = [judge.name for judge in self.judges]
        for subject, choices in (("method", keys), ("judge", names)):
            twice = next((name for name in choices if choices.count(name) > 1), None)
            if twice is not None:
                raise EvaluationError(f"the {subject} {twice} is named twice; name it once")
        if not keys:
            raise EvaluationError("there is no method to evaluate; name at least one")

    @property
    def baseline(self) -> Method:
        """The method that the others are compared with."""
        return next((m for m in self.methods if m.kind == "greedy"), self.methods[0])


class Pairs:
    """Loads pairs of models, one at a time: a GPU may not hold two decoders."""

    def __init__(self, open_pair: OpenPair) -> None:
        self._open = open_pair
        self._names: tuple[str, str] | None = None
        self._decoder: ArgsDecoder | None = None

    def get(self, lm: str, rm: str) -> "ArgsDecoder":
        """The decoder of this pair; the one before it is dropped."""
        if self._decoder is not None and self._names != (lm, rm):
            self._drop()
        if self._decoder is None:
            self._decoder, self._names = self._open(lm, rm), (lm, rm)
        return self._decoder

    def _drop(self) -> None:
        import torch

        self._decoder = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Run:
    """An open run: its plan, its prompts and its records.

    Attributes:
        plan: what is compared and measured.
        folder: where it is kept.
        items: the prompts.
        skipped: how many prompts were too long.
        samples: a record for each method and prompt, named by "method" and "index".
        scores: a record for each measured value, named by "measure", "method" and "index".
    """

    plan: Plan
    folder: Path
    items: list[Item]
    skipped: int
    samples: Records
    scores: Records
