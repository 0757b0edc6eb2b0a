"""Every option of the engine, once: default, range and meaning. Signatures and the command line
derive from this class."""

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, TypeVar

from args_fast.errors import ConfigError

F = TypeVar("F", bound=Callable)

# Those of torch.compile's modes that make no CUDA graphs of their own.
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")


def _option(default: Any, doc: str, *, flag: str | None = None) -> Any:
    """A field whose meaning travels with it.

    Args:
        default: the field's.
        doc: its meaning, as signatures and ``--help`` show it.
        flag: its name on the command line; None for an option that the command line does not have.
    """
    return field(default=default, metadata={"doc": doc, "flag": flag})


@dataclass(frozen=True)
class EngineOptions:
    """How an engine uses the machine. None of these changes a token in float32.

    Raises:
        ConfigError: (a ValueError) naming the option, its value and the allowed range.
    """

    max_batch_size: int = _option(
        64,
        "Requests decoded together at most; of longer lists others join as some end.",
        flag="--max-batch-size",
    )
    memory_fraction: float = _option(
        0.9,
        "Share of a CUDA device's memory that models and caches may take.",
        flag="--memory-fraction",
    )
    cache_bytes: int | None = _option(
        None,
        "Bytes of all K/V caches together, in place of memory_fraction. Without it the CPU takes a "
        "quarter of the RAM that is available, of which only what is used becomes resident.",
        flag="--cache-bytes",
    )
    cuda_graphs: bool = _option(
        True, "Replay decode steps as CUDA graphs (on one CUDA device only).", flag="--cuda-graphs"
    )
    lookahead: bool | Literal["auto"] = _option(
        "auto",
        "Let the language model read all k candidates while the reward model judges them, so that "
        "its next logits are there when the choice is made; pays where more rows cost little. "
        "'auto': by the number of rows and the device; on the CPU only together with an Adapter.",
    )
    draft: str | object | None = _option(
        None,
        "Guess several tokens ahead and verify them in one pass; no token changes. 'ngram': "
        "what followed the last tokens earlier in prompt and output. 'history': earlier responses "
        "to the same prompt. 'auto': both, where they pay by the rule of docs/drafting.md. Or "
        "a small language model with the same tokenizer: a folder, a hub id or the model. On the "
        "CPU, for rewards.Classifier, Adapter and Head; without lookahead and torch_compile.",
        flag="--draft",
    )
    torch_compile: bool | str = _option(
        False,
        "Run the models' decode steps through torch.compile, in its default mode (True) or in "
        "'max-autotune-no-cudagraphs': minutes once, then fewer and larger kernels.",
        flag="--compile",
    )

    fused_layers: bool | Literal["auto"] = _option(
        "auto",
        "Run the layers of a decode step as one op, for the models whose layers it knows; False: "
        "always through the model's modules. In 16 bits it rounds less often. 'auto': on the CPU, "
        "and on CUDA devices of compute capability 9.0 for passes of up to 16 rows (one text with "
        "k = 10), for which it was faster on an H100.",
        flag="--fused-layers",
    )

    def __post_init__(self) -> None:
        if self.lookahead not in (True, False, "auto"):
            raise ConfigError(f"lookahead is {self.lookahead!r}; it must be True, False or 'auto'")
        if self.draft is not None and self.lookahead is True:
            raise ConfigError(
                f"draft is {self.draft!r} and lookahead is True; the candidates along a draft are "
                "known only once it is read, so use one of the two: draft=None or lookahead=False"
            )
        if self.draft is not None and self.torch_compile:
            raise ConfigError(
                f"draft is {self.draft!r} and torch_compile is {self.torch_compile!r}; drafts of "
                "each length would be compiled again, so use one of the two"
            )
        if not _is_whole(self.max_batch_size) or self.max_batch_size < 1:
            raise ConfigError(
                f"max_batch_size is {self.max_batch_size!r}; it must be a whole number, 1 or more"
            )
        fraction = self.memory_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
            raise ConfigError(f"memory_fraction is {fraction!r}; it must be a number")
        if not 0 < fraction <= 1:
            raise ConfigError(f"memory_fraction is {fraction}; it must be above 0 and at most 1")
        if self.cache_bytes is not None and not _is_whole(self.cache_bytes):
            raise ConfigError(
                f"cache_bytes is {self.cache_bytes!r}; it must be a whole number of bytes, or None"
            )
        if not isinstance(self.cuda_graphs, bool):
            raise ConfigError(f"cuda_graphs is {self.cuda_graphs!r}; it must be True or False")
        if not isinstance(self.fused_layers, bool) and self.fused_layers != "auto":
            raise ConfigError(
                f"fused_layers is {self.fused_layers!r}; it must be True, False or 'auto'"
            )
        if not isinstance(self.torch_compile, bool) and self.torch_compile not in COMPILE_MODES:
            raise ConfigError(
                f"torch_compile is {self.torch_compile!r}; it must be False, True or one of "
                f"{', '.join(COMPILE_MODES)}. Modes that make CUDA graphs of their own cannot be "
                "used: the engine captures the whole step as one."
            )

    @property
    def compile_mode(self) -> str | None:
        """The mode for torch.compile; None for no compilation."""
        if isinstance(self.torch_compile, bool):
            return COMPILE_MODES[0] if self.torch_compile else None
        return self.torch_compile

    @classmethod
    def take(cls, options: dict[str, Any]) -> "EngineOptions":
        """The options among keyword arguments. Raises ConfigError where one is not an option."""
        unknown = sorted(set(options) - {f.name for f in fields(cls)})
        if unknown:
            known = ", ".join(f.name for f in fields(cls))
            raise ConfigError(f"{unknown[0]} is not an option of the engine; options are {known}")
        return cls(**options)


def accepts_engine_options(function: F) -> F:
    """A decorator: ``function(..., **options)`` shows the engine's options in its signature and its
    documentation, from EngineOptions."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type)
        for f in fields(EngineOptions)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    listed = "\n".join(f"    {f.name}: {doc_of(f)}" for f in fields(EngineOptions))
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nEngine options:\n{listed}\n"
    return function


def doc_of(option: Field) -> str:
    """What an option means, in a sentence or two."""
    return option.metadata["doc"]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
