"""The memory's own embedder as the OpenAI API has one: /v1/embeddings, and what it is among the models."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from latent_memory.embedders import Embedder
from latent_memory.passages import count_tokens
from latent_memory.records import check_text
from latent_memory.server.problems import ProblemError
from latent_memory.server.service import Service
from latent_memory.server.writing import written
from latent_memory.vectors import Vectors, checked

# The embedder, whatever its name is.
NAME = "latent-memory"
_MOST_INPUTS = 2048
_MOST_CHARACTERS = 2_000_000
# Between these it is seen whether the client is still there.
_AT_A_TIME = 32
_FORMATS = ("float", "base64")


async def answer(service: Service, embedder: Embedder, body: Mapping[str, Any]) -> Response:
    """Answer a request for vectors.

    Args:
        service: whose threads compute them.
        embedder: makes them.
        body: the request.

    Raises:
        ProblemError: for a request that cannot be answered.
    """
    texts = _inputs(body.get("input"))
    form = body.get("encoding_format")
    if form is not None and form not in _FORMATS:
        raise _wrong(f"encoding_format: {str(form)[:60]!r}; use one of {', '.join(_FORMATS)}")
    dimensions = body.get("dimensions")
    if dimensions is not None and dimensions != embedder.dimension:
        raise _wrong(f"dimensions: {embedder.name} makes {embedder.dimension}; leave it out")
    tokens = 0
    data: list[dict[str, Any]] = []

    def more(texts: list[str]) -> int:
        made = checked(embedder.embed(texts), rows=len(texts), dimension=embedder.dimension, made_by=embedder.name)
        for vector in made:
            data.append({"object": "embedding", "index": len(data), "embedding": _written(vector, form)})
        return sum(map(count_tokens, texts))

    for start in range(0, len(texts), _AT_A_TIME):
        tokens += await service.embed(more, texts[start : start + _AT_A_TIME])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    told = {"object": "list", "data": data, "model": embedder.name, "usage": usage}
    # Not `written`, which takes a second for a million numbers.
    return Response(await service.embed(orjson.dumps, told), media_type="application/json")


def listed(embedder: Embedder) -> Response:
    """Return the list of models where there is no other."""
    return _json({"object": "list", "data": [_described(embedder.name)]})


def described(embedder: Embedder, name: str) -> Response:
    """Return what is told of one model where there is no other.

    Raises:
        ProblemError: if it is another.
    """
    if name not in (NAME, embedder.name):
        raise ProblemError(404, f"model: there is no {name[:100]!r}", code="model_not_found")
    return _json(_described(name))


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": NAME}


def _inputs(given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _wrong("input: a text, or a list of texts, was expected; lists of tokens are not read")
    if len(texts) > _MOST_INPUTS:
        raise _wrong(f"input: {len(texts):,} texts; at most {_MOST_INPUTS:,} may be sent at once")
    for place, text in enumerate(texts):
        if not text:
            raise _wrong(f"input[{place}]: empty")
        check_text(text, f"input[{place}]")
    characters = sum(map(len, texts))
    if characters > _MOST_CHARACTERS:
        told = f"input: {characters:,} characters; at most {_MOST_CHARACTERS:,} may be sent at once"
        raise ProblemError(413, told, code="size")
    return texts


def _written(vector: Vectors, form: object) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(number) for number in vector.astype(np.float64)]


def _wrong(told: str) -> ProblemError:
    return ProblemError(400, told, code="input")


def _json(told: object) -> Response:
    return Response(written(told), media_type="application/json")
