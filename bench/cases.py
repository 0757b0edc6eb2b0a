"""What is measured: the table of cases, by set."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from args_fast.bench import baselines, models, roofline

EVERY = tuple(baselines.METHODS)


@dataclass(frozen=True)
class Case:
    """One setting, in which all ``methods`` are measured in one process.

    Attributes:
        lm, rm: names in ``models.CONFIGS``.
        k, w: candidates and the reward's weight.
        prompt: tokens of each prompt; batch: prompts at once.
        dtype: of weights and caches.
        new_tokens: decoded per prompt; the slow baselines decode fewer (``tokens_of``).
        methods: names in ``baselines.METHODS``.
    """

    lm: str
    rm: str
    k: int = 10
    prompt: int = 128
    batch: int = 1
    dtype: str = "bfloat16"
    new_tokens: int = 128
    w: float = 1.5
    methods: tuple[str, ...] = EVERY

    @property
    def key(self) -> str:
        """Names the setting; the methods are no part of it."""
        return (
            f"{self.lm}+{self.rm} k={self.k} prompt={self.prompt} batch={self.batch} "
            f"{self.dtype} new={self.new_tokens}"
        )

    def floor(self, device: roofline.Device) -> roofline.Floor:
        """Of a step in the middle of the decode."""
        return roofline.floor(
            self.lm,
            self.rm,
            k=self.k,
            t=self.prompt + self.new_tokens // 2,
            batch=self.batch,
            dtype=self.dtype,
            device=device,
        )

    def tokens_of(self, method: str) -> int:
        """New tokens per prompt that a method decodes: enough to time a step of it."""
        most = {baselines.K_COPIES: 32, baselines.NAIVE: 4}.get(method, self.new_tokens)
        return min(most, self.new_tokens)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"methods": list(self.methods)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Case":
        return cls(**record | {"methods": tuple(record["methods"])})


HEADLINE = [
    Case("opt-2.7b", "opt-350m", prompt=128),
    Case("opt-2.7b", "opt-350m", prompt=1900),
    Case("opt-2.7b", "opt-125m", prompt=128),
    Case("llama-7b", "llama-7b", prompt=128),
]
# Curves hold what they compare; the other baselines, and ours with other options, stand in the
# headline cases.
CURVE = (baselines.ARGS, baselines.GREEDY, baselines.TRANSFORMERS, baselines.K_COPIES)
# The no-cache baseline decodes one prompt at a time, and k copies of a large batch fit nowhere.
LARGE = (baselines.ARGS, baselines.GREEDY, baselines.TRANSFORMERS, baselines.STATIC)
BATCHED = (*LARGE, baselines.K_COPIES)
OURS_TOO = (*CURVE, *baselines.COMPILED)

PAIR = Case("opt-2.7b", "opt-350m")
CPU = Case("opt-125m", "opt-125m", dtype="float32", new_tokens=16, methods=CURVE)
SETS: dict[str, list[Case]] = {
    "smoke": [
        Case("opt-125m", "opt-125m", prompt=32, dtype="float32", new_tokens=8, methods=CURVE)
    ],
    # For two cores and 25 minutes. Lookahead loses on a CPU, whose products cost by the row: one
    # case shows it. Ours compiled stands where something else takes part than at the first.
    "cpu": [
        replace(CPU, methods=(*OURS_TOO, baselines.LOOKAHEAD, baselines.NAIVE)),
        replace(CPU, prompt=512),
        *(replace(CPU, k=k) for k in (2, 5, 20, 40)),
        replace(CPU, batch=4, methods=OURS_TOO),
        replace(CPU, lm="opt-350m", methods=OURS_TOO),
        replace(CPU, prompt=1024),
        replace(CPU, batch=16, methods=(baselines.ARGS, baselines.GREEDY, baselines.TRANSFORMERS)),
    ],
    "headline": HEADLINE,
    "batch": [replace(PAIR, batch=B, methods=BATCHED if B <= 4 else LARGE) for B in (1, 4, 16, 64)],
    "k": [replace(PAIR, k=k, methods=CURVE) for k in (2, 5, 10, 20, 40)],
    "prompts": [replace(PAIR, prompt=t, methods=CURVE) for t in (128, 512, 1024, 1900)],
    "models": [
        Case("opt-6.7b", "opt-350m", methods=BATCHED),
        Case("llama-3-8b", "llama-3-8b", methods=BATCHED),
        Case("qwen3-8b", "qwen3-0.6b", methods=BATCHED),
        Case("qwen3-4b", "qwen3-1.7b", methods=BATCHED),
    ],
}
COMPILING = (baselines.STATIC, *baselines.COMPILED)  # what a dry run leaves out
# Most wanted first, so that a budget that ends too soon ends in the right place.
ALL = ("headline", "batch", "k", "prompts", "models")


def chosen(name: str) -> list[Case]:
    """The cases of a set, or of all the sets for a GPU; each setting once. The headline comes in
    two stages, since it has to fit the time of one run: what has to be compiled for minutes is
    added to its cases when all of them have the rest."""
    names = ALL if name == "all" else (name,)
    cases = [case for each in names for case in SETS[each]]
    if "headline" in names:
        cases = [without(case, baselines.COMPILED) for case in HEADLINE] + cases
    return once(cases)


def once(cases: Iterable[Case]) -> list[Case]:
    """Those that have a method which no case before them has in their setting."""
    found, seen = [], dict[str, set[str]]()
    for case in cases:
        before = seen.setdefault(case.key, set())
        if not set(case.methods) <= before:
            found.append(case)
            before.update(case.methods)
    return found


def without(case: Case, methods: Iterable[str]) -> Case:
    return replace(case, methods=tuple(name for name in case.methods if name not in methods))


def tiny(case: Case) -> Case:
    """The same case in miniature: for a dry run of everything but the time."""
    return replace(
        case,
        lm=models.tiny(case.lm),
        rm=models.tiny(case.rm),
        prompt=max(8, case.prompt // 16),
        batch=min(case.batch, 4),
        dtype="float32",
        new_tokens=12,
        methods=tuple(name for name in case.methods if name not in COMPILING),
    )


def on_device(case: Case, device: str, methods: tuple[str, ...] | None) -> Case:
    """The case with the methods that are asked for; on the CPU, unless it is, without the one that
    spends its time compiling."""
    if methods is not None:
        return replace(case, methods=methods)
    return without(case, (baselines.STATIC,)) if device == "cpu" else case
