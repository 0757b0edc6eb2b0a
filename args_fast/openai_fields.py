"""The fields of OpenAI's requests: our names for them, and those that are not supported and would
change the answer. The server and batch jobs read the same table.

An answer that silently is not what was asked for is worse than an error; a field that no one knows
is ignored, as OpenAI's own servers do for their clients' sake.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Field of DecodingConfig -> OpenAI's name for it.
OPENAI_NAMES = {
    "temperature": "temperature",
    "max_new_tokens": "max_tokens",
    "seed": "seed",
    "stop": "stop",
    "num_return_sequences": "n",
    "top_p": "top_p",
}
ALSO_MAX_TOKENS = "max_completion_tokens"  # a second name, which newer clients send

# Field -> the values that leave the answer as it is, besides null; any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # of OpenAI
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
    # of other servers that speak this protocol
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_p": (0,),
    "min_tokens": (0,),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "top_k": (0, -1),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
}

IN_ARGS = frozenset({"min_p"})  # supported, and found in ``args``


class Refusal(NamedTuple):
    """A field that a request must not set, and what its sender is told."""

    field: str
    message: str


def refused_field(body: Mapping[str, Any]) -> Refusal | None:
    """The first field of a request that is known, would change the answer, and is not supported at
    its place; None where there is none."""
    for field, value in body.items():
        if field in NEUTRAL and value is not None and value not in NEUTRAL[field]:
            if field in IN_ARGS:
                return Refusal(field, f"{field} is an option of args; give args.{field}")
            return Refusal(field, unsupported(field))
    return None


def unsupported(field: str) -> str:
    """What the sender of an unsupported field is told."""
    return f"{field} is not supported, and ignoring it would change the answer; leave it out"


def disagreement(body: Mapping[str, Any]) -> Refusal | None:
    """The upper bound on new tokens where its two names have different values."""
    short, long = body.get(OPENAI_NAMES["max_new_tokens"]), body.get(ALSO_MAX_TOKENS)
    if None in (short, long) or short == long:
        return None
    message = f"max_tokens is {short} and {ALSO_MAX_TOKENS} is {long}; give one of them"
    return Refusal(ALSO_MAX_TOKENS, message)
