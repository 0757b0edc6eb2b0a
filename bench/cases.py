"""What is measured: one setting as a value, and the settings of a sweep over a GPU, by set."""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from args_fast import DecodingConfig
from args_fast.bench import baselines, models

USUAL = (baselines.TRANSFORMERS, baselines.GREEDY, baselines.ARGS)
# Both models of the pytest-benchmark suites; tiny-opt rehearses them.
SIZE = os.environ.get("ARGS_FAST_BENCH_MODEL", "opt-125m")


@dataclass(frozen=True)
class Case:
    """One setting, whose methods are measured in turn in one process.

    Attributes:
        lm: Language model, a name in ``models.CONFIGS``, or of one's own.
        rm: Reward model, likewise.
        k: Candidates per step.
        w: Weight of the reward.
        prompt: Tokens of each prompt.
        batch: Prompts decoded together.
        dtype: Type of weights and caches, by its name in torch.
        new_tokens: Decoded per prompt by each method; slow ones decode fewer.
        methods: Names in ``baselines.METHODS``.
    """

    lm: str
    rm: str
    k: int = 10
    w: float = 1.5
    prompt: int = 128
    batch: int = 1
    dtype: str = "bfloat16"
    new_tokens: int = 64
    methods: tuple[str, ...] = USUAL

    @property
    def name(self) -> str:
        return (
            f"{self.lm} + {self.rm}, {self.dtype}, k = {self.k}, prompt {self.prompt}, "
            f"batch {self.batch}"
        )

    @property
    def key(self) -> str:
        """Names the setting and its methods: what is in a file under it is not measured again."""
        return f"{self.name}, {self.new_tokens} new: {', '.join(self.methods)}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def tokens_of(self, method: str) -> int:
        """New tokens per prompt that a method decodes: enough to time a step of it."""
        return min(self.new_tokens, baselines.MOST_TOKENS.get(method, self.new_tokens))

    def config(self, new_tokens: int) -> DecodingConfig:
        """What decodes so many tokens of each prompt, whatever they are."""
        return DecodingConfig(k=self.k, w=self.w, max_new_tokens=new_tokens, eos_token_ids=[])

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """The prompts: random ids, the same in every run."""
        generator = torch.Generator().manual_seed(self.prompt)
        shape = (self.batch, self.prompt)
        return torch.randint(5, vocabulary, shape, generator=generator).tolist()


PAIR = Case("opt-2.7b", "opt-350m", methods=(*USUAL, baselines.STATIC))
LLAMA = replace(PAIR, lm="llama-7b", rm="llama-7b")
ONE_SET = baselines.ADAPTERS if find_spec("peft") else ()
CURVE = replace(PAIR, methods=(*USUAL, baselines.K_COPIES))
OPTIONS = (*USUAL, baselines.LOOKAHEAD, baselines.NO_LOOKAHEAD)
MODULES = (baselines.GREEDY_MODULES, baselines.ARGS_MODULES)
FUSED = (*USUAL, *MODULES, baselines.GREEDY_FUSED, baselines.ARGS_FUSED)
COMPILED = (baselines.ARGS_COMPILED, baselines.GREEDY_COMPILED)
PAPER = [  # the first visit of scripts/gpu_check.py
    replace(PAIR, rm=rm, prompt=prompt, new_tokens=48, methods=OPTIONS)
    for prompt in (128, 1900)
    for rm in ("opt-350m", "opt-125m")
]
ON_CPU = Case("opt-125m", "opt-125m", dtype="float32", new_tokens=24)
# The most wanted first, so that a budget that ends too soon ends in the right place.
SETS: dict[str, list[Case]] = {
    "A": PAPER,
    # Again with the table of products that was measured there: the engine's choice, all passes
    # through modules, and all through the fused layers.
    "B": [
        replace(case, methods=(*FUSED, *[baselines.K_COPIES] * (case.prompt > 128)))
        for case in PAPER
    ],
    "C": [
        replace(LLAMA, new_tokens=32, methods=(*FUSED, *ONE_SET)),
        replace(PAIR, batch=16, new_tokens=32, methods=FUSED),
        replace(PAIR, batch=4, new_tokens=32, methods=FUSED),
        replace(PAIR, new_tokens=32),
        replace(PAIR, methods=COMPILED, new_tokens=32),
    ],
    # Of the first case of C what an adapter is measured against: a minute.
    "adapter": [
        replace(LLAMA, new_tokens=32, methods=(baselines.GREEDY, baselines.GREEDY_FUSED, *ONE_SET))
    ],
    "cpu": [
        ON_CPU,
        replace(ON_CPU, prompt=1024),
        *(replace(ON_CPU, batch=B) for B in (4, 16)),
        replace(ON_CPU, k=40),
        replace(ON_CPU, lm="opt-1.3b", rm="opt-350m", new_tokens=12),
        replace(ON_CPU, lm="opt-1.3b", rm="opt-350m", new_tokens=12, k=40),
    ],
    "all": [
        PAIR,
        replace(PAIR, prompt=1900),
        replace(PAIR, rm="opt-125m"),
        LLAMA,
        replace(PAIR, methods=OPTIONS),
        replace(PAIR, methods=COMPILED),
        *(replace(PAIR, batch=B) for B in (4, 16, 64)),
        *(replace(CURVE, k=k) for k in (2, 5, 10, 20, 40)),
        *(replace(CURVE, prompt=t) for t in (512, 1024, 1900)),
        replace(PAIR, lm="opt-6.7b"),
        replace(PAIR, lm="llama-3-8b", rm="llama-3-8b"),
        replace(PAIR, lm="qwen3-8b", rm="qwen3-0.6b"),
        replace(PAIR, lm="qwen3-4b", rm="qwen3-1.7b"),
    ],
}


def tiny(case: Case) -> Case:
    """The case in miniature, without what has to be compiled: for a rehearsal on the CPU."""
    return replace(
        case,
        lm=models.tiny(case.lm),
        rm=models.tiny(case.rm),
        prompt=max(8, case.prompt // 16),
        batch=min(case.batch, 4),
        dtype="float32",
        new_tokens=12,
        methods=tuple(name for name in case.methods if name not in baselines.COMPILING),
    )
