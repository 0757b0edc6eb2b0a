"""Fields that are known, would change the answer, and are not supported: they are refused by name.

An answer that silently is not what was asked for is worse than an error.
"""

from typing import Any

from pydantic import BaseModel

from args_fast.serve.errors import ApiError, invalid

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


OURS = frozenset({"min_p"})  # supported, and found in ``args``


def refuse_unsupported(request: BaseModel) -> None:
    """Raises an ApiError that names a field which is known, would change the answer, and is not
    supported."""
    for field, value in (request.model_extra or {}).items():
        if field in NEUTRAL and value is not None and value not in NEUTRAL[field]:
            if field in OURS:
                raise invalid(f"{field} is an option of args; give args.{field}", field)
            raise unsupported(field)


def unsupported(field: str) -> ApiError:
    return invalid(
        f"{field} is not supported by this server, and ignoring it would change the answer; leave "
        "it out",
        field,
        "unsupported_parameter",
    )
