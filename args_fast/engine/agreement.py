"""What ARGS itself would choose along a text that something else has chosen."""

from collections.abc import Callable, Sequence

from args_fast.engine.engine import Engine
from args_fast.engine.request import Request


def choices_along(
    engine: Engine, make_request: Callable[[], Request], tokens: Sequence[int]
) -> list[int]:
    """The token that is chosen at each place of a text, after the text's own tokens before it.

    Args:
        engine: to decode with.
        make_request: a new request, with room for as many new tokens as there are.
        tokens: of the text, without the prompt.

    Raises:
        ArgsError: what keeps a request from its token.
    """
    requests = [make_request() for _ in tokens]
    for place, request in enumerate(requests):
        for token in tokens[:place]:
            request.push(token, float("nan"), float("nan"), float("nan"))
    try:
        for request in requests:
            engine.submit(request)
        under_way = dict(enumerate(requests))
        while under_way:
            engine.step()
            for place, request in list(under_way.items()):
                if request.error is not None:
                    raise request.error
                if len(request.tokens) > place:
                    engine.cancel(under_way.pop(place))
    finally:
        for request in requests:
            engine.cancel(request)
    return [request.tokens[place].token_id for place, request in enumerate(requests)]
