"""Claude.ai's export: conversations.json, or the zip that holds it.

Kept are what the person and the assistant said, the artifacts that the assistant wrote (as part of what it said), and
the text of attachments, each as a turn of the person's after the message that it came with: a long text that is pasted
becomes an attachment. Left out are thoughts, tool calls and their results, images, and files that came without their
text. A message that does nothing but call tools is kept as those calls.

Source: the types at https://github.com/socketteer/Claude-Conversation-Exporter, and the parser of
https://github.com/davidteren/claude_desktop_export_browser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from latent_memory.messages import kind
from latent_memory.records import Conversation, Turn

DESCRIPTION = "Claude.ai export (conversations.json, or the zip)"

_MEMBER = re.compile(r"(.*/)?conversations(-\d+)?\.json")
_ROLES = {"human": "user", "user": "user", "assistant": "assistant"}


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
        turns: list[Turn] = []
        for number, message in enumerate(entry["chat_messages"]):
            turns += _turns(message, f"{where}, chat_messages[{number}]", reading)
        project = entry.get("project")
        found = reading.conversation(
            where,
            identifier,
            turns,
            title=entry.get("name"),
            timestamp=entry.get("created_at"),
            metadata={"source": "claude", "project": project.get("name") if isinstance(project, dict) else None},
        )
        if found is not None:
            yield found


def _turns(message: object, where: str, reading: Reading) -> Iterator[Turn]:
    """Yield what a message says, then what its attachments do."""
    if not isinstance(message, dict):
        return reading.bad(where, f"a message was expected, not {kind(message)}")
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
    said, calls = [], []
    for block in _list(message, "content"):
        block = block if isinstance(block, dict) else {}
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
    if not text and isinstance(message.get("text"), str):
        # What older exports have, and what remains if all blocks are of another kind.
        text = message["text"]
    if text.strip():
        for _ in calls:
            reading.on_skip("a tool call")
        return text
    return "\n".join(call for call in calls if call)


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else []
