"""Every failure as OpenAI clients expect it: ``{"error": {message, type, param, code}}``."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from args_fast.errors import ArgsError, ConfigError, DecoderClosedError, LengthError, PromptError

log = logging.getLogger("args_fast.serve")

INVALID = "invalid_request_error"
LONGEST_PATH = 200  # characters of a path that an answer repeats
CODES = {404: "not_found", 405: "method_not_allowed"}


class ErrorDetail(BaseModel):
    """What went wrong, and which field of the request was the cause."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


class ApiError(Exception):
    """A failure with its HTTP status.

    Args:
        status: the HTTP status.
        message: what was given, what is allowed, what to do next.
        type: OpenAI's class of the error.
        param: the field of the request that was the cause.
        code: a word for programs.
        retry_after: seconds after which to try once more, sent as a header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        # A lone surrogate in a user's field name cannot be sent as UTF-8.
        message = message.encode(errors="replace").decode()
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        """The answer that carries this error."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400: the request is at fault."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: BaseException) -> ApiError:
    """Any failure of a request as an answer. Unexpected ones are logged, and not shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LengthError):
        return invalid(str(error), code="context_length_exceeded")
    if isinstance(error, (ConfigError, PromptError)):
        return invalid(str(error))
    if isinstance(error, DecoderClosedError):
        message = "the engine has stopped, or is stopping; try another server, or try later"
        return ApiError(503, message, type="server_error", code="engine_stopped", retry_after=5)
    log.error("failure", exc_info=error)
    if isinstance(error, ArgsError):
        return ApiError(500, str(error), type="server_error", code=type(error).__name__)
    message = "the server failed at this request; its log has the reason under the request's id"
    return ApiError(500, message, type="server_error", code="internal_error")


def install(app: FastAPI) -> None:
    """Have the framework's own failures answered in the same shape."""

    @app.exception_handler(ApiError)
    async def _ours(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return validation_error(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        said = f"{request.method} {request.url.path[:LONGEST_PATH]}: {error.detail}"
        return ApiError(error.status_code, said, code=CODES.get(error.status_code)).response()

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()


def validation_error(problems: Any) -> ApiError:
    """A 400 that names the first field that is wrong, and how many others are."""
    problem = problems[0]
    where = [str(part) for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {problem.get('ctx', {}).get('error', '')}")
    if problem["type"] == "string_unicode":
        return invalid("a name in the body contains half of a surrogate pair")
    if not where:
        return invalid(
            "the body is not a JSON object with the header 'Content-Type: application/json'"
        )
    param = ".".join(where)
    more = f" ({len(problems) - 1} more like this)" if len(problems) > 1 else ""
    said = problem["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return invalid(f"{param}: {said}{more}", param=param)
