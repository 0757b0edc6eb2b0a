"""vLLM on the CPU: greedy decoding, one prompt at a time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker import Decode


def load(model: str, dtype: str, threads: int, room: int) -> "dict[str, Decode]":
    """``model``: a transformers folder; ``room``: prompt and new tokens."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    # The cache of prefixes would leave nothing of a prompt's time from the second round on.
    llm = LLM(model=model, dtype=dtype, max_model_len=room, enable_prefix_caching=False)

    def greedy(prompt: list[int], new_tokens: int) -> list[int]:
        options = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        inputs = [TokensPrompt(prompt_token_ids=prompt)]
        (result,) = llm.generate(inputs, options, use_tqdm=False)
        return list(result.outputs[0].token_ids)

    return {"vLLM greedy": greedy}
