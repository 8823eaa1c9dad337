"""ChatGPT's export: conversations.json, or the zip that holds it (also as conversations-000.json, -001, ...).

Each conversation is a tree of messages: editing a message or asking for another answer begins a new branch. The
branch that the app shows last is followed from `current_node` up by `parent`; where that is missing, from the leaf
that was written last. `branches` tells what becomes of the others.

Kept are what the user and the assistant said, transcripts of what was spoken, code that was run, and what tools
answered. Left out are system messages, instructions, hidden messages, thoughts, images, recordings and files, and
the marks of citations, which the app writes with private-use characters; of a mark that stands for a name or a link,
that is kept.

Source: the files' description and parser at https://github.com/mitkury/chatgpt-export-parser, and the content types
that https://github.com/YuanpingSong/chatgpt-analytics and others read; the marks as
https://github.com/pionxzh/chatgpt-exporter/pull/276 and https://github.com/Laumss/loominary/issues/17 describe them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import Member, Reading, Sample, identifier_of, json_values, medium, members
from latent_memory.importers.branches import CIRCLE, SILENT, Tree, called, kept
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
_ROLES = ("user", "assistant", "tool")
# A mark begins with U+E200 and ends with U+E201, and U+E202 parts it: what it is, and what it names. Then those that
# are cut off or have lost their beginning, and what is left of others: U+E203 and U+E204 stand around a cited text.
_MARK = re.compile(
    "\ue200([a-z_]+)\ue202([^\ue200\ue201]*)\ue201"
    "|\ue200[a-z_]*(?:\ue202[^\\s\ue200-\ue20f]*)*[\ue201-\ue20f]?"
    "|(?:\ue202(?:turn\\d+[a-z]+\\d+|L\\d+(?:-L\\d+)?))+[\ue201\ue205-\ue20f]?"
    "|[\ue200-\ue20f]"
)


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
        yield from _of_entry(entry, identifier, where, reading)


def _of_entry(entry: Mapping[str, Any], identifier: str | None, where: str, reading: Reading) -> Iterator[Conversation]:
    try:
        nodes = _checked(entry["mapping"])
        tree = Tree({name: node.get("parent") for name, node in nodes.items()})
        main = tree.path(_current(entry.get("current_node"), nodes, tree))
        others = tree.others(main, lambda name: _speaks(nodes[name].get("message")))
    except InputError as error:
        return reading.bad(where, error)
    yield from _conversation(entry, identifier, [nodes[name] for name in main], where, reading)
    for node, leaf in kept(others, reading):
        name, of = called(identifier, node)
        path = [nodes[each] for each in tree.path(leaf)]
        yield from _conversation(entry, name, path, f"{where}, branch {node}", reading, **of)
    return None


def _conversation(
    entry: Mapping[str, Any],
    identifier: str | None,
    path: Iterable[Mapping[str, Any]],
    where: str,
    reading: Reading,
    **metadata: str,
) -> Iterator[Conversation]:
    turns = [turn for node in path if (turn := _turn(node.get("message"), where, reading)) is not None]
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


def _checked(mapping: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return a conversation's nodes.

    Raises:
        InputError: if one is none, or its parent is not there.
    """
    for name, node in mapping.items():
        if not isinstance(node, dict):
            raise InputError(f"message {name}: an object was expected, not {kind(node)}")
        message, parent = node.get("message"), node.get("parent")
        if message is not None and not isinstance(message, dict):
            raise InputError(f"message {name}: an object was expected, not {kind(message)}")
        if parent is not None and (not isinstance(parent, str) or parent not in mapping):
            raise InputError(f"message {name}: its parent {_short(parent)} is not there")
    return mapping


def _current(name: object, nodes: Mapping[str, Mapping[str, Any]], tree: Tree[str]) -> str | None:
    """Return the node where the conversation ends: the one that is named, else the leaf written last."""
    if isinstance(name, str) and name in nodes:
        return name
    if nodes and not tree.leaves:
        raise InputError(CIRCLE)
    return max(tree.leaves, key=lambda leaf: _written(nodes[leaf]), default=None)


def _written(node: Mapping[str, Any]) -> float:
    message = node.get("message")
    when = message.get("create_time") if message else None
    return when if isinstance(when, (int, float)) else 0.0


def _short(value: object) -> str:
    shown = repr(value) if isinstance(value, str) else kind(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# -- messages -----------------------------------------------------------------------------------------------


def _speaks(message: Mapping[str, Any] | None) -> bool:
    """Tell whether a message is one that is kept."""
    return _turn(message, "", SILENT) is not None


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
        return _unmarked(next((text for key in ("text", "result") if isinstance(text := content.get(key), str)), ""))
    said = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            said.append(_unmarked(text))
        else:
            reading.on_skip(medium(str(part.get("content_type"))) if isinstance(part, dict) else "an attachment")
    return "\n".join(text for text in said if text.strip())


def _unmarked(text: str) -> str:
    """Return a text without the marks of citations, and without the blanks before them."""
    pieces, end = [], 0
    for mark in _MARK.finditer(text):
        before, shown = text[end : mark.start()], _shown(mark)
        # A single character may stand within a word, or before one.
        pieces += [before if shown or len(mark.group()) == 1 else before.rstrip(" \t"), shown]
        end = mark.end()
    return "".join([*pieces, text[end:]])


def _shown(mark: re.Match[str]) -> str:
    """Return what the app shows in the place of a mark: of a name the name, of a link its text and where it leads."""
    what, named = mark.groups()
    if what == "url":
        label, _, link = named.partition("\ue202")
        return f"{label} ({link})" if link else label
    if what != "entity":
        return ""
    try:
        names = json.loads(named)
    except (ValueError, RecursionError):
        names = named
    # ["city", "Paris", "capital of France"]
    found = names[1] if isinstance(names, list) and len(names) > 1 else names
    return found if isinstance(found, str) else ""
