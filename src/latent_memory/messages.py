"""Chat messages, as applications and files have them -> turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_memory.errors import InputError
from latent_memory.records import Turn


def turn_of(message: object, where: str) -> Turn:
    """Read a turn from a message: "role" and "content", and "timestamp" and "name" where they are.

    Args:
        message: a mapping.
        where: its place, for the error message.

    Raises:
        InputError: if it is no message, or says nothing.
    """
    if not isinstance(message, Mapping):
        raise InputError(f"{where}: an object was expected, not {kind(message)}")
    role = message.get("role")
    if not isinstance(role, str):
        raise InputError(f'{where}: no "role"')
    try:
        return Turn(role, content_text(message), message.get("timestamp"), message.get("name"))
    except InputError as error:
        told = str(error)
        raise InputError(
            f"{where}.{told.replace('text:', 'content:', 1) if told.startswith('text:') else told}"
        ) from None


def content_text(message: Mapping[str, Any]) -> str:
    """Return what a chat message says: its content, the text parts of it, or the tools it calls.

    Raises:
        InputError: if the content is neither a text nor a list of parts.
    """
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        return content
    if isinstance(content, list):
        told = [part.get("text") for part in content if isinstance(part, Mapping)]
        said = "\n".join(text for text in told if isinstance(text, str))
        if said.strip():
            return said
    elif content is not None and not isinstance(content, str):
        raise InputError(f"content: a text was expected, not {kind(content)}")
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    called = (f for f in functions if isinstance(f, Mapping) and isinstance(f.get("name"), str))
    return "\n".join(f"{f['name']}({f.get('arguments') or ''})" for f in called)


def kind(value: object) -> str:
    """Return what a JSON value is, in words for an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
