"""llama.cpp through llama-cpp-python: greedy decoding, one prompt at a time."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker import Decode

TYPES = {"float32": 0, "bfloat16": 32}  # of llama_ftype in llama.h


def load(model: str, kept: str, dtype: str, threads: int, room: int) -> "dict[str, Decode]":
    """``model``: a folder with smollm2.gguf; ``kept``: the type that its weights are rounded to
    first; ``room``: prompt and new tokens."""
    from llama_cpp import Llama

    file = Path(model, "smollm2.gguf")
    for kind in dict.fromkeys((kept, dtype)):
        file = converted(file, kind, threads)
    batch = {"n_ctx": room, "n_batch": room, "n_threads": threads, "n_threads_batch": threads}
    llama = Llama(str(file), **batch, verbose=False)

    def greedy(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        (prompt,) = prompts
        llama.reset()
        llama.eval(prompt)
        token_ids = [llama.sample(temp=0.0)]
        while len(token_ids) < new_tokens:
            llama.eval(token_ids[-1:])
            token_ids.append(llama.sample(temp=0.0))
        return [token_ids]

    return {"llama.cpp greedy": greedy}


def converted(source: Path, dtype: str, threads: int) -> Path:
    """The same weights as ``source``, dequantised to a type: written the first time."""
    import ctypes

    import llama_cpp

    target = source.with_name(f"{source.stem}-{dtype}.gguf")
    if not target.exists():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize, options.nthread = TYPES[dtype], True, threads
        part = target.with_suffix(".part")
        names = str(source).encode(), str(part).encode()
        status = llama_cpp.llama_model_quantize(*names, ctypes.byref(options))
        if status:
            raise RuntimeError(f"llama.cpp cannot make {dtype} of {source}: status {status}")
        part.replace(target)
    return target
