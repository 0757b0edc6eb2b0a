"""args-fast: exact reward-guided decoding (ARGS) at close to the speed of greedy decoding."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from args_fast.async_decoder import AsyncArgsDecoder
    from args_fast.config import DecodingConfig
    from args_fast.decoder import ArgsDecoder
    from args_fast.errors import ArgsError
    from args_fast.generation import Generation, Token

__version__ = "0.1.0"
__all__ = [
    "ArgsDecoder",
    "ArgsError",
    "AsyncArgsDecoder",
    "DecodingConfig",
    "Generation",
    "Token",
    "__version__",
]

# torch and transformers take seconds to import; `args-fast --help` should not.
_HOMES = {
    "ArgsDecoder": "args_fast.decoder",
    "ArgsError": "args_fast.errors",
    "AsyncArgsDecoder": "args_fast.async_decoder",
    "DecodingConfig": "args_fast.config",
    "Generation": "args_fast.generation",
    "Token": "args_fast.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'args_fast' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
