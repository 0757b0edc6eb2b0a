"""llama.cpp through llama-cpp-python: greedy decoding, one prompt at a time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker import Decode

TYPES = {"float32": 0, "bfloat16": 32}  # of llama_ftype in llama.h


def load(model: str, dtype: str, threads: int, room: int) -> "dict[str, Decode]":
    """``model``: a GGUF file that has the type already; ``room``: prompt and new tokens."""
    from llama_cpp import Llama

    llama = Llama(
        model, n_ctx=room, n_batch=room, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def greedy(prompt: list[int], new_tokens: int) -> list[int]:
        llama.reset()
        llama.eval(prompt)
        token_ids = [llama.sample(temp=0.0)]
        while len(token_ids) < new_tokens:
            llama.eval(token_ids[-1:])
            token_ids.append(llama.sample(temp=0.0))
        return token_ids

    return {"llama.cpp greedy": greedy}


def convert(source: str, target: str, dtype: str, threads: int) -> None:
    """Write a GGUF file of another type, of the same weights, dequantised."""
    import ctypes

    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize, options.nthread = TYPES[dtype], True, threads
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options))
    if status:
        raise RuntimeError(f"llama.cpp cannot make {dtype} of {source}: status {status}")
