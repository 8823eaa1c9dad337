"""What goes wrong, told to a client: RFC 9457 problem details, and OpenAI's shape where OpenAI's clients listen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from latent_memory import errors

PROBLEM_TYPE = "application/problem+json"
# The doors that OpenAI's clients know; they understand their own errors only.
_OPENAI_PATHS = ("/v1/chat/", "/v1/responses", "/v1/embeddings", "/v1/models")

_STATUS: tuple[tuple[type[errors.LatentMemoryError], int], ...] = (
    (errors.InputError, 422),
    (errors.MissingExtraError, 501),
    (errors.EmbedderMismatchError, 409),
    (errors.EmbedderUnavailableError, 503),
    (errors.RerankerError, 503),
    (errors.StoreBusyError, 503),
    (errors.StoreFullError, 507),
    (errors.ModelMemoryError, 503),
)
_TITLES = {
    400: "Bad request",
    401: "Key needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    411: "Length needed",
    412: "Changed meanwhile",
    413: "Too large",
    415: "Unsupported media type",
    421: "Unknown host",
    422: "Cannot be used",
    429: "Too many requests",
    499: "Client left",
    500: "Internal error",
    501: "Not installed",
    502: "Upstream failed",
    503: "Not available now",
    504: "Upstream too slow",
    507: "Disk full",
}
_OPENAI_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ProblemError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: the HTTP status.
        detail: what was wrong, where, and what to do.
        headers: for the response.
        code: a word that a program can tell it by.
    """

    def __init__(
        self, status: int, detail: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: errors.LatentMemoryError) -> ProblemError:
        """Return what one of our errors is to a client."""
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        headers = {"Retry-After": "1"} if status == 503 else {}
        # What is wrong with the server's own disk is for its log: paths are not for everybody who may ask.
        told = f"{_TITLES[status]}; the server's log tells why" if is_for_the_log(error, status) else str(error)
        return cls(status, told, code=type(error).__name__.removesuffix("Error").lower(), headers=headers)


def is_for_the_log(error: errors.LatentMemoryError, status: int) -> bool:
    """Tell whether an error says what only those who run the server should read."""
    return (status >= 500 and status != 501) or isinstance(error, errors.EmbedderMismatchError)


def response(problem: ProblemError, path: str, request_id: str | None = None) -> Response:
    """Return a problem as the clients of a path understand it."""
    if path.startswith(_OPENAI_PATHS):
        kind = _OPENAI_KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
        error = {"message": problem.detail, "type": kind, "param": None, "code": problem.code}
        return _json({"error": error}, problem, "application/json")
    told: dict[str, Any] = {
        "type": "about:blank",
        "title": _TITLES.get(problem.status, "Error"),
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.code is not None:
        told["code"] = problem.code
    if request_id is not None:
        told["request_id"] = request_id
    return _json(told, problem, PROBLEM_TYPE)


def _json(told: object, problem: ProblemError, media_type: str) -> Response:
    # ASCII: what a client has sent may be quoted in it, half of a surrogate pair included.
    return Response(json.dumps(told), problem.status, problem.headers, media_type)
