"""Claude.ai's export: conversations.json, or the zip that holds it.

Kept are what the person and the assistant said, the artifacts that the assistant wrote (as part of what it said), and
the text of attachments, each as a turn of the person's after the message that it came with: a long text that is pasted
becomes an attachment. Left out are thoughts, tool calls and their results, images, and files that came without their
text. A message that does nothing but call tools is kept as those calls.

Editing a message or asking for another answer begins a new branch. In newer exports a message tells which one it
follows (`parent_message_uuid`); then the branch is read that ends with `current_leaf_message_uuid`, or else with the
leaf that was written last, and `branches` tells what becomes of the others. A message that does not tell, or follows
one that is not there, follows the one before it.

Source: the types at https://github.com/socketteer/Claude-Conversation-Exporter, and the parser of
https://github.com/davidteren/claude_desktop_export_browser; for branches
https://github.com/Sinity/polylogue and https://github.com/agarwalvishal/claude-chat-exporter/pull/32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import (
    Member,
    Reading,
    Sample,
    call_text,
    identifier_of,
    json_values,
    medium,
    members,
)
from latent_memory.importers.branches import SILENT, Tree, called, kept
from latent_memory.messages import kind
from latent_memory.records import Conversation, Turn
from latent_memory.times import parse_time

DESCRIPTION = "Claude.ai export (conversations.json, or the zip)"

_MEMBER = re.compile(r"(.*/)?conversations(-\d+)?\.json")
_ROLES = {"human": "user", "user": "user", "assistant": "assistant"}
# What the first message of a conversation follows.
_ROOTS = ("00000000-0000-4000-8000-000000000000", "00000000-0000-0000-0000-000000000000")
# What stands in a message's text, not in its content, for each block that the text has no form for.
_PLACEHOLDER = "```\nThis block is not supported on your current device yet.\n```"
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


def recognises(sample: Sample) -> bool:
    """Tell whether a file begins with a conversation of Claude.ai's."""
    return isinstance(sample.first, dict) and isinstance(sample.first.get("chat_messages"), list)


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the conversations of an export.

    Raises:
        InputError: for what cannot be used, unless `reading.on_bad` takes it.
    """
    for member in members(path, reading, lambda name: bool(_MEMBER.fullmatch(name)), "conversations.json"):
        yield from _of_member(member, reading)


def _of_member(member: Member, reading: Reading) -> Iterator[Conversation]:
    for where, entry in json_values(member, reading):
        if not isinstance(entry, dict) or not isinstance(entry.get("chat_messages"), list):
            told = '"chat_messages": a list was expected' if isinstance(entry, dict) else f"not {kind(entry)}"
            reading.bad(where, told if isinstance(entry, dict) else f"a conversation was expected, {told}")
            continue
        identifier = identifier_of(entry.get("uuid"))
        where = f"{where} ({identifier})" if identifier else where
        yield from _of_entry(entry, identifier, where, reading)


def _of_entry(entry: Mapping[str, Any], identifier: str | None, where: str, reading: Reading) -> Iterator[Conversation]:
    messages: dict[int, Mapping[str, Any]] = {}
    for number, message in enumerate(entry["chat_messages"]):
        if isinstance(message, dict):
            messages[number] = message
        else:
            reading.bad(_place(where, number), f"a message was expected, not {kind(message)}")
    tree = Tree(_parents(messages))
    try:
        main = tree.path(_last(entry, messages, tree))
        others = tree.others(main, lambda number: _speaks(messages[number]))
    except InputError:
        # Messages that follow each other in a circle are read as they stand.
        main, others = [*messages], []
    yield from _conversation(entry, identifier, messages, main, where, reading)
    for number, leaf in kept(others, reading):
        node = identifier_of(messages[number].get("uuid")) or str(number)
        name, of = called(identifier, node)
        yield from _conversation(entry, name, messages, tree.path(leaf), f"{where}, branch {node}", reading, **of)


def _conversation(
    entry: Mapping[str, Any],
    identifier: str | None,
    messages: Mapping[int, Mapping[str, Any]],
    path: Iterable[int],
    where: str,
    reading: Reading,
    **metadata: str,
) -> Iterator[Conversation]:
    turns = [turn for number in path for turn in _turns(messages[number], _place(where, number), reading)]
    project = entry.get("project")
    found = reading.conversation(
        where,
        identifier,
        turns,
        title=entry.get("name"),
        timestamp=entry.get("created_at"),
        metadata={
            "source": "claude",
            "project": project.get("name") if isinstance(project, dict) else None,
            **metadata,
        },
    )
    if found is not None:
        yield found


def _place(where: str, number: int) -> str:
    return f"{where}, chat_messages[{number}]"


# -- the tree -----------------------------------------------------------------------------------------------


def _parents(messages: Mapping[int, Mapping[str, Any]]) -> dict[int, int | None]:
    """Return which message each follows."""
    named = {uuid: number for number, message in messages.items() if isinstance(uuid := message.get("uuid"), str)}
    told = {number: message.get("parent_message_uuid") for number, message in messages.items()}
    tells = any(isinstance(parent, str) and parent in named for parent in told.values())
    parents: dict[int, int | None] = {}
    before = None
    for number, parent in told.items():
        if tells and isinstance(parent, str) and parent in named:
            parents[number] = named[parent]
        elif tells and "parent_message_uuid" in messages[number] and (parent is None or parent in _ROOTS):
            parents[number] = None
        else:
            parents[number] = before
        before = number
    return parents


def _last(entry: Mapping[str, Any], messages: Mapping[int, Mapping[str, Any]], tree: Tree[int]) -> int | None:
    """Return the message with which the conversation ends."""
    current = entry.get("current_leaf_message_uuid")
    if isinstance(current, str):
        for number, message in messages.items():
            if message.get("uuid") == current:
                return number
    return max(tree.leaves, key=lambda leaf: (_written(messages[leaf]), leaf), default=None)


def _written(message: Mapping[str, Any]) -> datetime:
    try:
        when = parse_time(message.get("created_at")) or _LONG_AGO
    except InputError:
        return _LONG_AGO
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _speaks(message: Mapping[str, Any]) -> bool:
    """Tell whether something of a message is kept."""
    return any(True for _ in _turns(message, "", SILENT))


# -- messages -----------------------------------------------------------------------------------------------


def _turns(message: Mapping[str, Any], where: str, reading: Reading) -> Iterator[Turn]:
    """Yield what a message says, then what its attachments do."""
    role = _ROLES.get(str(message.get("sender")))
    if role is None:
        return reading.bad(where, '"sender": human or assistant was expected')
    when = message.get("created_at")
    attached = [each for each in _list(message, "attachments") if isinstance(each, dict)]
    text = _text(message, reading)
    if text.strip() or not attached:
        turn = reading.turn(where, role, text, when)
        if turn is not None:
            yield turn
    for attachment in attached:
        content = attachment.get("extracted_content")
        if not isinstance(content, str) or not content.strip():
            reading.on_skip("an attachment")
            continue
        title = attachment.get("file_name")
        told = f"{title}:\n{content}" if isinstance(title, str) and title else content
        turn = reading.turn(f"{where}, attachment", role, told, when, spare=True)
        if turn is not None:
            yield turn
    for file in _list(message, "files") + _list(message, "files_v2"):
        # An attachment is often among the files too.
        if isinstance(file, dict) and file.get("file_name") not in [each.get("file_name") for each in attached]:
            reading.on_skip("a file")
    return None


def _text(message: Mapping[str, Any], reading: Reading) -> str:
    said, calls, other_blocks = [], [], False
    for block in _list(message, "content"):
        block = block if isinstance(block, dict) else {}
        other_blocks = other_blocks or block.get("type") != "text"
        match block.get("type"):
            case "text" if isinstance(block.get("text"), str):
                said.append(block["text"])
            case "thinking" | "redacted_thinking":
                reading.on_skip("a thought")
            case "tool_use":
                given = block.get("input")
                written = given.get("content") if isinstance(given, dict) and block.get("name") == "artifacts" else None
                if isinstance(written, str) and written.strip():
                    said.append(written)
                else:
                    calls.append(call_text(block.get("name"), given))
            case "tool_result":
                reading.on_skip("a tool result")
            case "token_budget":
                pass
            case other:
                reading.on_skip(medium(str(other)))
    text = "\n".join(each for each in said if each.strip())
    if not text and not other_blocks and isinstance(message.get("text"), str):
        # What older exports have. Beside other blocks it holds their thoughts, and placeholders.
        text = message["text"].replace(_PLACEHOLDER, "").strip("\r\n")
    if text.strip():
        for _ in calls:
            reading.on_skip("a tool call")
        return text
    return "\n".join(call for call in calls if call)


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else []
