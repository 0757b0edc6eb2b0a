"""Which prompts on CUDA flash kernels can take: torch's, or those of the flash-attn package."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature

import torch

from args_fast.kvcache.storage import CacheLayout

LARGEST_HEAD = 256


@cache
def _varlen() -> tuple[Callable | None, str]:
    """flash_attn_varlen_func and "used", or None and why not."""
    if find_spec("flash_attn") is None:
        return None, "optional, CUDA only: pip install 'args-fast[flash]'"
    try:  # it is built for one torch and one CUDA, and often meets others
        varlen: Callable = import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, OSError, AttributeError) as error:
        return None, f"installed, but it cannot be imported ({error}); reinstall it for this torch"
    if not {"window_size", "softcap"} <= set(signature(varlen).parameters):
        return None, "older than 2.6, which has no softcap: pip install -U flash-attn"
    return varlen, "used"


def status() -> str:
    """ "used" (for prompts in 16 bits, on a GPU of capability 8.0 or higher), or why not."""
    return _varlen()[1]


def varlen_attention(layout: CacheLayout) -> Callable | None:
    """flash_attn_varlen_func, where it is and takes rows of this layout. Windows and softcaps it
    takes all, sinks it does not."""
    return _varlen()[0] if torch_has_flash(layout) else None


def torch_has_flash(layout: CacheLayout) -> bool:
    """Whether torch's flash kernel, which is the same without windows and softcaps, takes rows of
    this layout."""
    return (
        layout.device.type == "cuda"
        and layout.dtype in (torch.float16, torch.bfloat16)
        and layout.head_size <= LARGEST_HEAD
        and torch.cuda.get_device_capability(layout.device) >= (8, 0)
    )
