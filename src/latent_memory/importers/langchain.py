"""Messages as LangChain writes them: `messages_to_dict`, `dumps`, or the messages' own fields.

    {"type": "human", "data": {"content": ...}}
    {"lc": 1, "type": "constructor", "id": [..., "HumanMessage"], "kwargs": {"content": ...}}
    {"type": "human", "content": ...}

A list of them is a conversation. A file holds one such list, several (in an array, or one a line), an object of lists
with the conversations' ids as keys, or objects `{"messages": [...]}`, whose `thread_id`, `session_id` or `id` names
them. Single messages, one a line, are one conversation.

Kept are all messages, system ones and what tools returned too; a message that does nothing but call tools is kept as
those calls. Images and other parts that are no text are left out.

Source: https://github.com/langchain-ai/langchain, libs/core/langchain_core/messages/utils.py and load/dump.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import (
    Member,
    Reading,
    Sample,
    call_text,
    json_records,
    members,
    parts_text,
)
from latent_memory.messages import kind
from latent_memory.records import ROLES, Conversation, Turn

DESCRIPTION = "LangChain messages (JSON or JSON Lines)"

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "function"}
_TYPES = (*_ROLES, "chat", "remove")
_IDS = ("thread_id", "session_id", "conversation_id", "id")


def recognises(sample: Sample) -> bool:
    """Tell whether a file begins with a message, a list of them, or an object that holds such a list."""
    return _holds_messages(sample.first)


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the conversations of a file.

    Raises:
        InputError: for what cannot be used, unless `reading.on_bad` takes it.
    """
    for member in members(path, reading, lambda name: name.endswith((".json", ".jsonl")), "JSON file"):
        yield from _of_member(member, reading)


def _of_member(member: Member, reading: Reading) -> Iterator[Conversation]:
    loose: list[Turn] = []
    for where, entry in json_records(member, reading):
        if _fields(entry) is not None:
            turn = _turn(entry, where, reading)
            if turn is not None:
                loose.append(turn)
            continue
        for place, identifier, messages in _lists(entry, where, reading):
            found = [_turn(message, f"{place}[{i}]", reading) for i, message in enumerate(messages)]
            made = reading.conversation(
                place, identifier, [turn for turn in found if turn is not None], metadata={"source": "langchain"}
            )
            if made is not None:
                yield made
    if loose:
        made = reading.conversation(member.name, None, loose, metadata={"source": "langchain"})
        if made is not None:
            yield made


def _lists(entry: object, where: str, reading: Reading) -> Iterator[tuple[str, object, list[Any]]]:
    """Yield the lists of messages that an entry holds, each with its place and the conversation's id."""
    if isinstance(entry, list):
        yield where, None, entry
    elif isinstance(entry, dict) and isinstance(entry.get("messages"), list):
        identifier = next((entry[key] for key in _IDS if entry.get(key)), None)
        yield f"{where}, messages", identifier, entry["messages"]
    elif isinstance(entry, dict) and any(isinstance(value, list) for value in entry.values()):
        for key, value in entry.items():
            if isinstance(value, list):
                yield f"{where}, {key[:60]}", key, value
            else:
                reading.bad(f"{where}, {key[:60]}", f"a list of messages was expected, not {kind(value)}")
    else:
        reading.bad(where, f"a message or a list of messages was expected, not {kind(entry)}")


def _holds_messages(value: object, depth: int = 2) -> bool:
    if _fields(value) is not None:
        return True
    if not depth or not value:
        return False
    if isinstance(value, list):
        return _holds_messages(value[0], depth - 1)
    if isinstance(value, dict):
        inner = value.get("messages", next(iter(value.values())))
        return isinstance(inner, list) and _holds_messages(inner, depth - 1)
    return False


def _fields(value: object) -> tuple[str, Mapping[str, Any]] | None:
    """Return a message's type and fields, whichever way it was written; None if it is no message."""
    if not isinstance(value, dict):
        return None
    what = value.get("type")
    if not isinstance(what, str):
        return None
    if value.get("lc") is not None and what == "constructor":
        path, fields = value.get("id"), value.get("kwargs")
        if not isinstance(path, list) or not path or not isinstance(path[-1], str) or not isinstance(fields, dict):
            return None
        return (_type(path[-1]), fields) if path[-1].removesuffix("Chunk").endswith("Message") else None
    fields = value["data"] if isinstance(value.get("data"), dict) else value
    if _type(what) not in _TYPES or "content" not in fields:
        return None
    return _type(what), fields


def _type(name: str) -> str:
    """Return a message's type from the name of its class, or as it is."""
    return name.removesuffix("Chunk").removesuffix("Message").lower()


def _turn(message: object, where: str, reading: Reading) -> Turn | None:
    found = _fields(message)
    if found is None:
        reading.bad(where, f"no message of LangChain's but {kind(message)}")
        return None
    what, fields = found
    if what == "remove":
        reading.on_skip("a removed message")
        return None
    role = _ROLES.get(what)
    if what == "chat":
        given = str(fields.get("role")).lower()
        role = _ROLES.get(given, given if given in ROLES else None)
    if role is None:
        reading.bad(where, f"a message of the type {what[:40]!r} has no role that is known")
        return None
    try:
        text = parts_text(fields.get("content"), reading)
    except InputError as error:
        reading.bad(where, error)
        return None
    if not text.strip():
        text = _calls(fields)
    return reading.turn(where, role, text, fields.get("timestamp"), fields.get("name"))


def _calls(fields: Mapping[str, Any]) -> str:
    """Return the tool calls of a message as a text."""
    calls = fields.get("tool_calls")
    if not calls and isinstance(fields.get("additional_kwargs"), dict):
        calls = fields["additional_kwargs"].get("tool_calls")
    told = []
    for call in calls if isinstance(calls, list) else []:
        if isinstance(call, dict) and isinstance(call.get("function"), dict):
            told.append(call_text(call["function"].get("name"), call["function"].get("arguments")))
        elif isinstance(call, dict):
            told.append(call_text(call.get("name"), call.get("args")))
    return "\n".join(call for call in told if call)
