"""Sessions of OpenAI's Codex CLI: ~/.codex/sessions/YYYY/MM/DD/rollout-*.jsonl, one file a session, or a directory.

A line is `{"timestamp", "type", "payload"}`: `session_meta` tells the session's id, `response_item` holds what was said
and what tools were called; `event_msg`, `turn_context` and others repeat it or are the program's own. In older files
the items stand there without that envelope, after a first line with the session's id.

Kept are what the person and the assistant said, tool calls (as `name(arguments)`) and what they returned (role `tool`).
Left out are instructions and descriptions of the environment, and notes of commands and reviews that the person ran,
all of which the program sends in the person's name; thoughts; images; and what was rolled back, which stays in the file
and is taken back by an event after it.

Source: https://github.com/openai/codex, codex-rs/protocol/src/models.rs (ResponseItem) and protocol.rs (RolloutItem);
codex-rs/core/src/thread_rollout_truncation.rs (what is rolled back), core/src/context/user_shell_command.rs, and
core/templates/review/exit_success.xml (`<user_action>`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import (
    Member,
    Reading,
    Sample,
    call_text,
    identifier_of,
    json_lines,
    members,
    parts_of,
    parts_text,
)
from latent_memory.importers.branches import SILENT
from latent_memory.messages import kind
from latent_memory.records import Conversation, Turn

DESCRIPTION = "Codex CLI session (rollout-*.jsonl under ~/.codex/sessions)"

_ENVELOPES = ("session_meta", "response_item", "event_msg", "turn_context", "compacted")
# How messages begin that the program sends in the person's name.
_INJECTED = re.compile(
    r"\s*(<(environment_context|user_instructions|instructions|turn_aborted|recommended_plugins|permissions|skills?"
    r"|subagent_notification|collaboration_mode|app-context|user_shell_command|user_action)\b"
    r"|# AGENTS\.md instructions for )",
    re.IGNORECASE,
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def recognises(sample: Sample) -> bool:
    """Tell whether a file begins with a record of a session."""
    first = sample.first
    if sample.shape not in ("lines", "object") or not isinstance(first, dict):
        return False
    if first.get("type") in _ENVELOPES:
        return isinstance(first.get("payload"), dict)
    # The first line of older files.
    return {"id", "timestamp", "instructions"} <= first.keys() or first.get("record_type") == "state"


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the conversation of each session.

    Raises:
        InputError: for what cannot be used, unless `reading.on_bad` takes it.
    """

    def wanted(name: str) -> bool:
        return name.rpartition("/")[2].startswith("rollout-") and name.endswith(".jsonl")

    for member in members(path, reading, wanted, "session (rollout-*.jsonl)"):
        in_name = _UUID.search(member.name.rpartition("/")[2] or path.name)
        found = _session(member, in_name.group() if in_name else None, reading)
        if found is not None:
            yield found


def _session(member: Member, identifier: str | None, reading: Reading) -> Conversation | None:
    meta: Mapping[str, Any] = {}
    turns: list[Turn] = []
    tools: dict[str, str] = {}
    # How many turns there were when the person asked something, each time.
    asked: list[int] = []
    for where, record in json_lines(member, reading):
        if not isinstance(record, dict):
            reading.bad(where, f"an object was expected, not {kind(record)}")
            continue
        what, item, when = record.get("type"), record.get("payload"), record.get("timestamp")
        if what not in _ENVELOPES:
            item = record
            if "type" not in record:
                if "id" in record:
                    meta = meta or record
                elif "record_type" not in record:
                    reading.bad(where, '"type": a text was expected, not none')
                continue
        elif not isinstance(item, dict):
            reading.bad(where, f'"payload": an object was expected, not {kind(item)}')
            continue
        elif what == "session_meta":
            # A session that goes on from another one repeats that one's after its own.
            meta = meta or item
            continue
        elif what != "response_item":
            if not _rolled_back(item, turns, asked, reading):
                reading.on_skip("a program record")
            continue
        try:
            if _asks(item):
                asked.append(len(turns))
            turn = _turn(item, where, when, tools, reading)
        except InputError as error:
            reading.bad(where, error)
            continue
        if turn is not None:
            turns.append(turn)
    git = meta.get("git")
    if not meta and not turns:
        return None
    return reading.conversation(
        member.name,
        identifier_of(meta.get("id")) or identifier,
        turns,
        timestamp=meta.get("timestamp"),
        metadata={
            "source": "codex",
            "cwd": meta.get("cwd"),
            "git_branch": git.get("branch") if isinstance(git, dict) else None,
        },
    )


def _rolled_back(event: Mapping[str, Any], turns: list[Turn], asked: list[int], reading: Reading) -> bool:
    """Drop what an event takes back: the last `num_turns` things that were asked, and all that follows them."""
    number = event.get("num_turns")
    if event.get("type") != "thread_rolled_back" or not isinstance(number, int) or isinstance(number, bool):
        return False
    if number > 0 and asked:
        first = asked[max(len(asked) - number, 0)]
        for _ in turns[first:]:
            reading.on_skip("a rolled-back turn")
        del turns[first:], asked[max(len(asked) - number, 0) :]
    return True


def _asks(item: Mapping[str, Any]) -> bool:
    """Tell whether an item is what the program counts as asked by the person: a review is, other notes are not."""
    if item.get("type") != "message" or item.get("role") != "user":
        return False
    notes = [_INJECTED.match(parts_text([part], SILENT)) for part in parts_of(item.get("content"))]
    return all(note is None or note[2] == "user_action" for note in notes)


def _turn(item: Mapping[str, Any], where: str, when: object, tools: dict[str, str], reading: Reading) -> Turn | None:
    """Return what an item says; `tools` remembers the names of the tools that were called."""
    match item.get("type"):
        case "message":
            return _message(item, where, when, reading)
        case "function_call" | "custom_tool_call" | "local_shell_call" | "web_search_call":
            name, call = item.get("name") or str(item.get("type")).removesuffix("_call"), item.get("call_id")
            if isinstance(call, str) and isinstance(name, str):
                tools[call] = name
            given = next((item[key] for key in ("arguments", "input", "action") if item.get(key)), None)
            if given is None and item.get("type") == "web_search_call":
                # The program does not always tell what was looked for.
                reading.on_skip("a tool call")
                return None
            return reading.turn(where, "assistant", call_text(name, given), when, spare=True)
        case "function_call_output" | "custom_tool_call_output":
            output = item.get("output")
            if isinstance(output, dict):
                output = output.get("content") or output.get("output")
            name = tools.get(str(item.get("call_id")))
            return reading.turn(where, "tool", parts_text(output, reading), when, name, spare=True)
        case "reasoning":
            reading.on_skip("a thought")
        case _:
            reading.on_skip("a program record")
    return None


def _message(item: Mapping[str, Any], where: str, when: object, reading: Reading) -> Turn | None:
    role = item.get("role")
    if role in ("system", "developer"):
        reading.on_skip("an instruction")
        return None
    if role not in ("user", "assistant"):
        raise InputError(f"role: {str(role)[:40]!r} is unknown; user or assistant was expected")
    said = []
    for part in parts_of(item.get("content")):
        text = parts_text([part], reading)
        if role == "user" and _INJECTED.match(text):
            reading.on_skip("an instruction")
        else:
            said.append(text)
    if not said:
        return None
    return reading.turn(where, str(role), "\n".join(text for text in said if text.strip()), when)
