"""What requests bring as JSON: read strictly, within limits, and told of in words where it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from latent_memory.server.problems import ProblemError
from latent_memory.server.service import Service

JSON = "application/json"
NDJSON = "application/x-ndjson"

# What is larger is read in a thread: a megabyte takes some milliseconds, in which nobody else would be answered.
_AT_ONCE = 1 << 16
# Values in lists and objects. Of two million empty lists in a few megabytes, reading takes seconds in which no thread
# does anything else; of 300,000, 50 ms at most.
MOST_VALUES = 300_000

P = ParamSpec("P")
T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


def media_type(headers: Headers) -> str:
    """Return what a request says that its body is, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def wrong_type(*expected: str) -> ProblemError:
    """Return the problem of a body that is of another type."""
    told = " or ".join(f"Content-Type: {each}" for each in expected)
    return ProblemError(415, f"body: send it as {told}", code="media_type")


async def json_of(request: Request, service: Service) -> Any:
    """Return a request's body, read as JSON.

    Raises:
        ProblemError: 415 if it is of another type, 400 if it is no JSON, or nested too deeply.
    """
    if media_type(request.headers) != JSON:
        raise wrong_type(JSON)
    body = await body_of(request)
    return await sized(service, len(body), parsed, body, service.settings.most_depth)


async def sized(service: Service, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something with a body, in a thread if it is large."""
    if size <= _AT_ONCE:
        return work(*args, **kwargs)
    return await service.run(work, *args, **kwargs)


async def body_of(request: Request) -> bytes:
    """Return a request's body as it came."""
    try:
        return await request.body()
    except ClientDisconnect:
        # Nobody is there to read this.
        raise ProblemError(400, "the client has left before its request was read") from None


def parsed(data: bytes, most_depth: int) -> Any:
    """Read JSON as RFC 8259 has it: UTF-8, and no NaN or Infinity.

    Raises:
        ProblemError: if it is none, has too many values in it, or is nested more deeply.
    """
    check_values(data)
    too_deep = f"body: nested too deeply; at most {most_depth} levels are read"
    try:
        value = json.loads(data.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise ProblemError(400, f"body: not UTF-8 (byte {error.start})", code="json") from None
    except ValueError as error:
        raise ProblemError(400, f"body: not JSON ({error})", code="json") from None
    except RecursionError:
        raise ProblemError(400, too_deep, code="json") from None
    # Each level takes a bracket of its own, so that nearly always counting them is enough.
    if data.count(b"[") + data.count(b"{") > most_depth:
        level = [value]
        for _ in range(most_depth + 1):
            level = [each for each in level if isinstance(each, dict | list)]
            if not level:
                return value
            level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
        raise ProblemError(400, too_deep, code="json")
    return value


def check_values(data: bytes) -> None:
    """Raise ProblemError if JSON has more values in it than are read at once; it need not be JSON.

    Takes 5 ms for 1 MB of prose, much less than reading it where there are few commas.
    """
    if _structure(data) <= MOST_VALUES:
        return
    # Commas in what is said do not count. Each value has at most two texts, of which one is its name.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * MOST_VALUES or _structure(b"".join(bare.split(b'"')[::2])) > MOST_VALUES:
        raise ProblemError(
            413,
            f"body: more than {MOST_VALUES:,} values in its lists and objects; send it in several, or conversations "
            f"as {NDJSON}",
            code="size",
        )


def _structure(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON's")


def model_of(kind: type[Model], value: object) -> Model:
    """Return what a request asks for.

    Raises:
        ProblemError: 422, naming the field and what was expected.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ProblemError(422, _told(kind, error), code="input") from None


def _told(kind: type[BaseModel], error: ValidationError) -> str:
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    # A name that is not known is more often the mistake than one that is missing because of it.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    if not first["loc"]:
        return f"body: {first['msg']}"
    field = str(first["loc"][0])[:100]
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown; this request takes {', '.join(kind.model_fields)}"
    # Of a field that may be of several types, each says why it is none of them.
    of_field = [each for each in errors if each["loc"][0] == first["loc"][0]]
    reasons = dict.fromkeys(each["msg"][:1].lower() + each["msg"][1:] for each in of_field)
    return f"{field}: {', or '.join(list(reasons)[:3])}"
