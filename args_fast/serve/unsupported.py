"""Fields that are known and not supported, as errors of the API."""

from pydantic import BaseModel

from args_fast.openai_fields import IN_ARGS, refused_field
from args_fast.openai_fields import unsupported as message_of
from args_fast.serve.errors import ApiError, invalid


def refuse_unsupported(request: BaseModel) -> None:
    """Raises an ApiError that names a field which is known, would change the answer, and is not
    supported."""
    refusal = refused_field(request.model_extra or {})
    if refusal is not None:
        code = None if refusal.field in IN_ARGS else "unsupported_parameter"
        raise invalid(refusal.message, refusal.field, code)


def unsupported(field: str) -> ApiError:
    """The error for a field by name."""
    return invalid(message_of(field), field, "unsupported_parameter")
