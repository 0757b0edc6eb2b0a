"""args-fast: exact reward-guided decoding (ARGS) at close to the speed of greedy decoding."""

from args_fast.config import DecodingConfig
from args_fast.decoder import ArgsDecoder
from args_fast.errors import ArgsError
from args_fast.generation import Generation, Token

__version__ = "0.1.0"
__all__ = ["ArgsDecoder", "ArgsError", "DecodingConfig", "Generation", "Token", "__version__"]
