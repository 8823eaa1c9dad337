"""ChatGPT's export: conversations.json, or the zip that holds it (also as conversations-000.json, -001, ...).

Each conversation is a tree of messages: editing a message or asking for another answer begins a new branch. The
branch that the app shows last is followed from `current_node` up by `parent`; where that is missing, from the leaf
that was written last. Other branches are left out; if they are kept (`Reading.branches`), each becomes a conversation
of its own with the id `ID/branch-NODE`, where NODE is the first message in which it differs from those before it. It
holds the whole path from the beginning, and `branch_of` in its metadata names the conversation.

Kept are what the user and the assistant said, transcripts of what was spoken, code that was run, and what tools
answered. Left out are system messages, instructions, hidden messages, thoughts, images, recordings and files.

Source: the files' description and parser at https://github.com/mitkury/chatgpt-export-parser, and the content types
that https://github.com/YuanpingSong/chatgpt-analytics and others read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import Member, Reading, Sample, identifier_of, json_values, medium, members
from latent_memory.messages import kind
from latent_memory.records import Conversation, Turn

DESCRIPTION = "ChatGPT export (conversations.json, or the zip)"

_MEMBER = re.compile(r"(.*/)?conversations(-\d+)?\.json")
_LEFT_OUT = {
    "thoughts": "a thought",
    "reasoning_recap": "a thought",
    "user_editable_context": "an instruction",
    "model_editable_context": "an instruction",
    "system_error": "an error message",
}
_CIRCLE = "its messages follow each other in a circle"
_ROLES = ("user", "assistant", "tool")
# Tells nobody; for a look at what a message would say.
_SILENT = Reading("", datetime(1970, 1, 1, tzinfo=UTC), on_bad=lambda _: None)


def recognises(sample: Sample) -> bool:
    """Tell whether a file begins with a conversation that is a tree of messages."""
    return isinstance(sample.first, dict) and isinstance(sample.first.get("mapping"), dict)


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the conversations of an export.

    Raises:
        InputError: for what cannot be used, unless `reading.on_bad` takes it: an entry that is no conversation, a
            message whose parent is missing, messages that follow each other in a circle.
    """
    for member in members(path, reading, lambda name: bool(_MEMBER.fullmatch(name)), "conversations.json"):
        yield from _of_member(member, reading)


def _of_member(member: Member, reading: Reading) -> Iterator[Conversation]:
    for where, entry in json_values(member, reading):
        if not isinstance(entry, dict) or not isinstance(entry.get("mapping"), dict):
            told = (
                '"mapping": an object was expected' if isinstance(entry, dict) else f"no conversation but {kind(entry)}"
            )
            reading.bad(where, told)
            continue
        identifier = identifier_of(entry.get("conversation_id")) or identifier_of(entry.get("id"))
        where = f"{where} ({identifier})" if identifier else where
        try:
            tree = _Tree(entry["mapping"])
            main = tree.path(tree.current(entry.get("current_node")))
            others = tree.others(main)
        except InputError as error:
            reading.bad(where, error)
            continue
        yield from _conversation(entry, identifier, tree, main, where, reading)
        for node, leaf in others:
            if not reading.branches:
                reading.on_skip("an unused branch")
                continue
            name = f"{identifier}/branch-{node}" if identifier else None
            of = {"branch_of": identifier or "", "branch": node}
            yield from _conversation(entry, name, tree, tree.path(leaf), f"{where}, branch {node}", reading, **of)


def _conversation(
    entry: Mapping[str, Any],
    identifier: str | None,
    tree: _Tree,
    path: list[str],
    where: str,
    reading: Reading,
    **metadata: str,
) -> Iterator[Conversation]:
    turns = [turn for node in path if (turn := _turn(tree.message(node), where, reading)) is not None]
    kept = {"source": "chatgpt", "model": entry.get("default_model_slug"), "gizmo_id": entry.get("gizmo_id")}
    found = reading.conversation(
        where,
        identifier,
        turns,
        title=entry.get("title"),
        timestamp=entry.get("create_time") or None,
        metadata=kept | metadata,
    )
    if found is not None:
        yield found


# -- the tree -----------------------------------------------------------------------------------------------


class _Tree:
    """A conversation's messages and how they follow each other.

    Raises:
        InputError: if they do not make a tree.
    """

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self._nodes = mapping
        for name, node in mapping.items():
            if not isinstance(node, dict):
                raise InputError(f"message {name}: an object was expected, not {kind(node)}")
            message, parent = node.get("message"), node.get("parent")
            if message is not None and not isinstance(message, dict):
                raise InputError(f"message {name}: an object was expected, not {kind(message)}")
            if parent is not None and (not isinstance(parent, str) or parent not in mapping):
                raise InputError(f"message {name}: its parent {_short(parent)} is not there")
        parents = {node.get("parent") for node in mapping.values()}
        self._leaves = [name for name in mapping if name not in parents]

    def current(self, name: object) -> str | None:
        """Return the node where the conversation ends: the one that is named, else the leaf written last."""
        if isinstance(name, str) and name in self._nodes:
            return name
        if self._nodes and not self._leaves:
            raise InputError(_CIRCLE)
        return max(self._leaves, key=self._written, default=None)

    def path(self, name: str | None) -> list[str]:
        """Return the nodes from the beginning to one of them."""
        path: dict[str, None] = {}
        while name is not None:
            if name in path:
                raise InputError(_CIRCLE)
            path[name] = None
            name = self._nodes[name].get("parent")
        return [*path][::-1]

    def others(self, main: list[str]) -> list[tuple[str, str]]:
        """Return the other branches in which something was said: the first node of their own, and the last."""
        seen = set(main)
        found = []
        for leaf in self._leaves:
            own: dict[str, None] = {}
            name: str | None = leaf
            while name is not None and name not in seen:
                if name in own:
                    raise InputError(_CIRCLE)
                own[name] = None
                name = self._nodes[name].get("parent")
            seen.update(own)
            said = [each for each in own if _speaks(self.message(each))]
            if said:
                found.append((said[-1], leaf))
        if len(seen) < len(self._nodes):
            raise InputError(_CIRCLE)
        return found

    def message(self, name: str) -> Mapping[str, Any] | None:
        """Return a node's message, if it has one."""
        message: Mapping[str, Any] | None = self._nodes[name].get("message")
        return message

    def _written(self, name: str) -> float:
        message = self.message(name)
        when = message.get("create_time") if message else None
        return when if isinstance(when, (int, float)) else 0.0


def _short(value: object) -> str:
    shown = repr(value) if isinstance(value, str) else kind(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# -- messages -----------------------------------------------------------------------------------------------


def _speaks(message: Mapping[str, Any] | None) -> bool:
    """Tell whether a message is one that is kept."""
    return _turn(message, "", _SILENT) is not None


def _turn(message: Mapping[str, Any] | None, where: str, reading: Reading) -> Turn | None:
    if message is None:
        return None
    author, content = _object(message, "author"), _object(message, "content")
    role, content_type = author.get("role"), content.get("content_type")
    left_out = _LEFT_OUT.get(content_type) if isinstance(content_type, str) else None
    if role == "system":
        left_out = "a system message"
    elif _object(message, "metadata").get("is_visually_hidden_from_conversation"):
        left_out = "a hidden message"
    elif role not in _ROLES:
        left_out = "a message of an unknown role"
    if left_out is not None:
        reading.on_skip(left_out)
        return None
    name = author.get("name") if role == "tool" else None
    place = f"{where}, message {_short(message.get('id'))}"
    return reading.turn(
        place, str(role), _text(content, reading), message.get("create_time") or None, name, spare=role == "tool"
    )


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _text(content: Mapping[str, Any], reading: Reading) -> str:
    """Return the text of a message: its parts, or, for code and what tools answer, its text or result."""
    parts = content.get("parts")
    if not isinstance(parts, list):
        return next((text for key in ("text", "result") if isinstance(text := content.get(key), str)), "")
    said = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            said.append(text)
        else:
            reading.on_skip(medium(str(part.get("content_type"))) if isinstance(part, dict) else "an attachment")
    return "\n".join(text for text in said if text.strip())
