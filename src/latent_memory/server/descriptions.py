"""What /openapi.json tells of the routes under /v1/memory: what they take, what they answer, and how that looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from latent_memory.server import schemas
from latent_memory.server.access import KEY_HEADER, SCOPE_HEADER
from latent_memory.server.bodies import JSON, NDJSON
from latent_memory.server.problems import PROBLEM_TYPE
from latent_memory.server.schemas import example, ref

# What any request may be answered.
_ANY = {
    401: "A key is needed, or this one opens nothing.",
    403: "The key does not open this scope, or may only read.",
    422: "Something in the request cannot be used; `detail` tells what, where, and what to do.",
    429: "Too many requests for this key; `Retry-After` tells when to come back.",
    500: "Something went wrong in the server; its log tells what.",
    503: "Busy, or not available now; come back in a second.",
}
_OF_BODIES = {
    400: "The body is no JSON, or nested too deeply.",
    408: "Nothing came of the body for too long.",
    413: "The body is too large, or holds too many values.",
    415: "The body is of another type.",
}
_OF_WRITES = {
    409: "The memory was made with another embedder.",
    507: "The disk of the server is full; nothing of the batch at hand was kept.",
}
_NOT_THERE = {404: "There is no such conversation."}
_CHANGED = {412: "The conversation is not what the condition says; nothing was changed."}

_ETAG = {
    "ETag": {"description": "Tells this state of the conversation from every other.", "schema": {"type": "string"}}
}


def _header(name: str, description: str, **told: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}, **told}


def _query(name: str, description: str, kind: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": {"type": kind}}


_SCOPE = [
    _header(SCOPE_HEADER, "Whose memory; percent-encoded where it is not ASCII.", example="ana"),
    _query("scope", f"Whose memory; goes before the header {SCOPE_HEADER}.", "string"),
]
_IF_MATCH = _header("If-Match", "Only if the conversation is still this one (an ETag).")
_IF_NONE_MATCH = _header("If-None-Match", "`*`: only if there is none yet.")
_IF_CHANGED = _header("If-None-Match", "Answer 304 if the conversation is still this one (an ETag).")


def _content(kind: str, model: type[BaseModel]) -> dict[str, Any]:
    return {kind: {"schema": ref(model), "example": example(model)}}


@dataclass(frozen=True, slots=True)
class _Operation:
    """What is told of one operation."""

    summary: str
    description: str
    # By status: a description, and what is answered.
    answers: Mapping[int, Mapping[str, Any]]
    body: Mapping[str, Any] | None = None
    parameters: list[dict[str, Any]] = field(default_factory=lambda: _SCOPE)
    problems: dict[int, str] = field(default_factory=dict)


def _answer(description: str, model: type[BaseModel], kind: str = JSON) -> dict[str, Any]:
    return {"description": description, "content": _content(kind, model)}


_CONVERSATIONS = {
    "schema": {"oneOf": [ref(schemas.OneConversation), ref(schemas.Conversations)]},
    "examples": {
        "one": {"value": example(schemas.OneConversation)},
        "several": {"value": example(schemas.Conversations)},
    },
}
_LINES = {
    "schema": {"type": "string", "description": "One JSON object a line, each a conversation (ConversationIn)."},
    "example": '{"conversation_id": "a", "messages": [{"role": "user", "content": "Hello."}]}\n'
    '{"conversation_id": "b", "messages": [{"role": "user", "content": "Good evening."}]}\n',
}
_LINES_BACK = {
    "schema": {"type": "string", "description": "One JSON object a line, each of the schema Progress."},
    "example": '{"line": 500, "added": 500}\n{"line": 1000, "added": 1000, "done": true}\n',
}

_OPERATIONS = {
    "add": _Operation(
        "Add conversations",
        "One, several, or with `Content-Type: application/x-ndjson` a stream of any length, one a line, which is added "
        "as it comes and answered line by line: what a line reports is on disk. Adding a conversation again adds what "
        "is new in it, by its id; nothing is ever there twice.",
        {
            200: {
                "description": "It is on disk. A stream is answered by a stream; its last line has `done`.",
                "content": {**_content(JSON, schemas.AddReport), NDJSON: _LINES_BACK},
            }
        },
        body={"required": True, "content": {JSON: _CONVERSATIONS, NDJSON: _LINES}},
        parameters=[
            *_SCOPE,
            _query("skip_bad", "Of a stream: leave out lines that cannot be used, and report each.", "boolean"),
        ],
        problems=_OF_BODIES | _OF_WRITES,
    ),
    "recall": _Operation(
        "Find the turns that matter",
        "Best first, with the signals that made each score.",
        {200: _answer("Hits; none if nothing was found.", schemas.Recalled)},
        body={"required": True, "content": _content(JSON, schemas.RecallRequest)},
        problems=_OF_BODIES | {409: _OF_WRITES[409]},
    ),
    "context": _Operation(
        "Get the block of text for a prompt",
        "Recalls, and writes what fits into a budget of tokens; fenced, so that what was stored cannot pose as an "
        "instruction.",
        {200: _answer("The block; its text is empty if nothing was found, or nothing fits.", schemas.Context)},
        body={"required": True, "content": _content(JSON, schemas.ContextRequest)},
        problems=_OF_BODIES | {409: _OF_WRITES[409]},
    ),
    "forget": _Operation(
        "Remove conversations for good",
        "With all that was kept of them, at once: named ones, or everything in the scope.",
        {200: _answer("What is gone.", schemas.Forgotten)},
        body={"required": True, "content": _content(JSON, schemas.ForgetRequest)},
        problems=_OF_BODIES | _OF_WRITES,
    ),
    "conversations": _Operation(
        "List conversations",
        "Newest first, a page at a time. What is added or forgotten meanwhile moves no page.",
        {200: _answer("A page, and the cursor of the next.", schemas.ConversationPage)},
    ),
    "get_conversation": _Operation(
        "Read a conversation",
        "Word for word. Its id is percent-encoded in the path.",
        {
            200: _answer("The conversation.", schemas.ConversationOut) | {"headers": _ETAG},
            304: {"description": "It is still the one that If-None-Match names.", "headers": _ETAG},
        },
        parameters=[*_SCOPE, _IF_CHANGED],
        problems=_NOT_THERE,
    ),
    "put_conversation": _Operation(
        "Make a conversation what it is to be",
        "Adds it, or changes it: turns that follow the last one sent are removed. Sending it again changes nothing.",
        {
            200: _answer("It was there, and is what was sent.", schemas.AddReport) | {"headers": _ETAG},
            201: _answer("It was not there.", schemas.AddReport) | {"headers": _ETAG},
        },
        body={"required": True, "content": _content(JSON, schemas.OneConversation)},
        parameters=[*_SCOPE, _IF_MATCH, _IF_NONE_MATCH],
        problems=_OF_BODIES | _OF_WRITES | _CHANGED,
    ),
    "delete_conversation": _Operation(
        "Remove a conversation for good",
        "With all that was kept of it, at once.",
        {204: {"description": "It is gone."}},
        parameters=[*_SCOPE, _IF_MATCH],
        problems=_NOT_THERE | _CHANGED | _OF_WRITES,
    ),
    "export": _Operation(
        "Get all conversations of a scope",
        "Whole, one a line, oldest first: what `add` takes.",
        {
            200: {
                "description": "As many lines as there are conversations.",
                "content": {
                    NDJSON: {
                        "schema": {"type": "string", "description": "One JSON object a line (ConversationOut)."},
                        "example": '{"conversation_id": "a", "title": "Hello.", "messages": []}\n',
                    }
                },
            }
        },
    ),
    "scopes": _Operation(
        "List the scopes that the key opens",
        "With the number of conversations in each.",
        {
            200: {
                "description": "By name.",
                "content": {
                    JSON: {
                        "schema": {"type": "object", "additionalProperties": {"type": "integer"}},
                        "example": {"ana": 12, "default": 3},
                    }
                },
            }
        },
        parameters=[],
    ),
    "stats": _Operation(
        "Tell how much a scope holds",
        "Nothing of others.",
        {200: _answer("Counts, and what made the vectors.", schemas.Stats)},
    ),
    "check": _Operation(
        "Look whether a scope is sound",
        "Compares everything with what was written, and tells what to do about what is not as it should be. Takes a "
        "second or more of a large scope.",
        {200: _answer("What was found.", schemas.CheckReport)},
    ),
}
_NAMES = {"conversations": "list_conversations"}


def operation(name: str) -> dict[str, Any]:
    """Return what a route is added with, so that it is described."""
    told = _OPERATIONS[name]
    problems = {
        status: {"description": description, "content": _content(PROBLEM_TYPE, schemas.Problem)}
        for status, description in sorted((_ANY | told.problems).items())
    }
    for status in (429, 503):
        seconds = {"description": "In how many seconds to come back.", "schema": {"type": "string"}}
        problems[status]["headers"] = {"Retry-After": seconds}
    extra: dict[str, Any] = {
        "parameters": list(told.parameters),
        "security": [{"bearer": []}, {"memoryKey": []}, {}],
    }
    if told.body is not None:
        extra["requestBody"] = dict(told.body)
    return {
        "operation_id": _NAMES.get(name, name),
        "summary": told.summary,
        "description": told.description,
        "status_code": min(told.answers),
        "responses": {
            **told.answers,
            **problems,
            "default": _answer("Any other problem.", schemas.Problem, PROBLEM_TYPE),
        },
        "openapi_extra": extra,
    }


def described(app: FastAPI) -> None:
    """Let the application's description have the schemas that the operations refer to, and tell of keys."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            told = plain()
            parts = told.setdefault("components", {})
            parts.setdefault("schemas", {}).update(schemas.components())
            parts["securitySchemes"] = parts.get("securitySchemes", {}) | {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key: lmem_…"},
                "memoryKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": KEY_HEADER,
                    "description": "A key, where Authorization holds another server's.",
                },
            }
            app.openapi_schema = told
        return app.openapi_schema

    # FastAPI's own way to change its description.
    app.openapi = openapi  # type: ignore[method-assign]
