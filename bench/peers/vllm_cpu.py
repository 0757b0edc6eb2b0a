"""vLLM on the CPU: greedy decoding."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker import Decode


def load(model: str, dtype: str, threads: int, room: int) -> "dict[str, Decode]":
    """``model``: a transformers folder; ``room``: prompt and new tokens."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    # The cache of prefixes would leave nothing of a prompt's time from the second round on.
    llm = LLM(model=model, dtype=dtype, max_model_len=room, enable_prefix_caching=False)

    def greedy(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        options = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        results = llm.generate(inputs, options, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    return {"vLLM greedy": greedy}
