"""Sessions of coding agents: Claude Code and Codex.

The forms are those that https://github.com/simonw/claude-code-transcripts reads, and that the source of
https://github.com/openai/codex writes (codex-rs/protocol/src/models.rs); the talk is made up.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError


def read(path: Path, *records: object, **options: Any) -> tuple[list[Conversation], Counter[str]]:
    skipped: Counter[str] = Counter()
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(importers.read(path, on_skip=lambda what: skipped.update([what]), **options)), skipped


def at(minute: int) -> datetime:
    return datetime(2025, 5, 26, 7, minute, tzinfo=UTC)


# -- Claude Code --------------------------------------------------------------------------------------------


def line(kind: str, content: object, minute: int = 0, **fields: Any) -> dict[str, Any]:
    message = {"role": kind, "content": content}
    if "of" in fields:
        message |= {"id": fields.pop("of"), "model": "claude", "type": "message"}
    return {
        "parentUuid": None,
        "isSidechain": False,
        "userType": "external",
        "cwd": "/home/ana/garden",
        "sessionId": "s1",
        "version": "2.0.0",
        "gitBranch": "main",
        "type": kind,
        "message": message,
        "uuid": f"u{minute}",
        "timestamp": f"2025-05-26T07:{minute:02}:00.000Z",
        **fields,
    }


def tool(name: str, call: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": given}


def result(call: str, content: object) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call, "content": content}


SESSION: list[dict[str, Any]] = [
    {"type": "summary", "summary": "Another session", "leafUuid": "elsewhere"},
    {"type": "summary", "summary": "Garden watering script", "leafUuid": "u6"},
    {"type": "file-history-snapshot", "messageId": "u0", "snapshot": {}},
    line("user", "Write a watering script.", 1),
    line("assistant", [{"type": "thinking", "thinking": "Hm", "signature": "x"}], 2, of="m1"),
    line("assistant", [{"type": "text", "text": "I look first."}], 3, of="m1"),
    line("assistant", [tool("Bash", "t1", command="ls")], 4, of="m1"),
    line("user", [result("t1", [{"type": "text", "text": "tap.py"}])], 5),
    line("assistant", [tool("Read", "t2", file_path="tap.py")], 6, of="m2"),
    line("user", [result("t2", "print()")], 7),
    line("assistant", [{"type": "text", "text": "Done."}], 8, of="m3"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "4f35e220.jsonl"


def test_a_session_is_a_conversation(path: Path) -> None:
    (found,), skipped = read(path, *SESSION)
    assert importers.recognise(path) == "claude_code"
    assert found == Conversation(
        "s1",
        [
            Turn("user", "Write a watering script.", at(1)),
            Turn("assistant", "I look first.", at(2)),
            Turn("tool", "tap.py", at(5), "Bash"),
            Turn("assistant", 'Read({"file_path": "tap.py"})', at(6)),
            Turn("tool", "print()", at(7), "Read"),
            Turn("assistant", "Done.", at(8)),
        ],
        title="Garden watering script",
        timestamp=at(1),
        metadata={"source": "claude_code", "cwd": "/home/ana/garden", "git_branch": "main"},
    )
    assert skipped == {"a program record": 1, "a thought": 1, "a tool call": 1}


def test_a_title_that_was_given_comes_first(path: Path) -> None:
    titles = [{"type": "ai-title", "aiTitle": "Taps", "sessionId": "s1"}]
    assert read(path, *SESSION, *titles)[0][0].title == "Taps"
    titles.append({"type": "custom-title", "customTitle": "My taps", "sessionId": "s1"})
    assert read(path, *SESSION, *titles)[0][0].title == "My taps"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (line("user", "Hello", 9, isSidechain=True), "a side message"),
        (line("user", "Caveat: do not answer", 9, isMeta=True), "a program note"),
        (line("assistant", [{"type": "text", "text": "API Error"}], 9, isApiErrorMessage=True), "a program note"),
        (line("user", "This session continues", 9, isCompactSummary=True), "a context summary"),
        (line("user", "<command-name>/clear</command-name>", 9), "a program note"),
        (line("user", "<local-command-stdout>x</local-command-stdout>", 9), "a program note"),
        (line("user", [{"type": "text", "text": "[Request interrupted by user]"}], 9), "a program note"),
        (line("user", [{"type": "image", "source": {}}], 9), "an image"),
        (line("user", "Again", 1), "a repeated line"),
        (line("user", [result("t1", "")], 9), "an empty message"),
        (line("user", [result("t1", "x" * 1_000_001)], 9), "an overlong text"),
        ({"type": "system", "content": "compacted", "subtype": "compact_boundary"}, "a system message"),
        ({"type": "queue-operation", "operation": "enqueue", "sessionId": "s1"}, "a program record"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_claude_code_wrote_for_itself_is_left_out(path: Path, record: dict[str, Any], told: str) -> None:
    before, skipped = read(path, *SESSION)
    after, more = read(path, *SESSION, record)
    assert after == before
    assert more - skipped == Counter({told: 1})


def test_a_note_beside_what_was_typed(path: Path) -> None:
    content = [{"type": "text", "text": "<system-reminder>x</system-reminder>"}, {"type": "text", "text": "Hello"}]
    (found,), _ = read(path, line("user", content))
    assert [turn.text for turn in found.turns] == ["Hello"]


def test_a_session_of_a_subagent_is_none(path: Path) -> None:
    found, skipped = read(path, line("user", "Search", 1, isSidechain=True, agentId="a"))
    assert found == []
    assert skipped == {"a side message": 1}


def test_a_directory_of_projects(tmp_path: Path, memory: LatentMemory) -> None:
    projects = tmp_path / "projects"
    for number, name in enumerate(("-home-ana-garden/a", "-home-ana-garden/b", "-home-ana-kitchen/c")):
        path = projects / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [{**each, "sessionId": f"s{number}"} if "sessionId" in each else each for each in SESSION]
        read(path, *records)
    (projects / "-home-ana-garden" / "sessions-index.json").write_text("{}")
    assert importers.recognise(projects) == "claude_code"
    assert memory.add(importers.read(projects)).added == 3
    assert memory.add(importers.read(projects)).unchanged == 3


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (5, "an object was expected, not a number"),
        ({"messages": []}, '"type": a text was expected'),
        (line("user", 5), "a text or a list of parts was expected, not a number"),
        ({"type": "user", "message": 5}, '"message": an object was expected, not a number'),
        (line("user", "Hello", timestamp="soon", uuid="x"), "'soon' is no time"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_bad_line_is_told(path: Path, record: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, *SESSION, record, source="claude_code")
    assert str(caught.value).startswith(f"{path}, line {len(SESSION) + 1}: ")
    assert told in str(caught.value)


# -- Codex --------------------------------------------------------------------------------------------------

ID = "019a2d7a-41c4-78b1-b7cc-a45d62a89cd5"


def said(role: str, *texts: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": each} for each in texts]}


def item(payload: dict[str, Any], minute: int = 0, kind: str = "response_item") -> dict[str, Any]:
    return {"timestamp": f"2025-05-26T07:{minute:02}:00.000Z", "type": kind, "payload": payload}


META = {"id": ID, "timestamp": "2025-05-26T07:00:00.000Z", "cwd": "/home/ana", "git": {"branch": "main"}}
CALL = {"type": "function_call", "name": "shell", "arguments": '{"command": ["ls"]}', "call_id": "c1"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "tap.py"}
ITEMS = [
    said("developer", "Be brief."),
    said(
        "user", "# AGENTS.md instructions for /home/ana\n\nUse tabs.", "<environment_context>\n</environment_context>"
    ),
    said("user", "<environment_context>\n</environment_context>", "Fix the tap."),
    {"type": "reasoning", "summary": [], "encrypted_content": "x"},
    CALL,
    OUTPUT,
    {"type": "custom_tool_call", "name": "apply_patch", "input": "*** Begin Patch", "call_id": "c2"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "Success"},
    said("assistant", "Fixed."),
]
TURNS = [
    ("user", None, "Fix the tap."),
    ("assistant", None, 'shell({"command": ["ls"]})'),
    ("tool", "shell", "tap.py"),
    ("assistant", None, "apply_patch(*** Begin Patch)"),
    ("tool", "apply_patch", "Success"),
    ("assistant", None, "Fixed."),
]


@pytest.fixture
def rollout(tmp_path: Path) -> Path:
    return tmp_path / f"rollout-2025-05-26T07-00-00-{ID}.jsonl"


def spoken(found: Conversation) -> list[tuple[str, str | None, str]]:
    return [(turn.role, turn.name, turn.text) for turn in found.turns]


def test_a_rollout_is_a_conversation(rollout: Path) -> None:
    records = [item(META, kind="session_meta"), *(item(each, i) for i, each in enumerate(ITEMS))]
    records.insert(3, item({"type": "user_message", "message": "Fix the tap."}, 1, "event_msg"))
    records.insert(3, item({"cwd": "/home/ana", "model": "gpt-5"}, 1, "turn_context"))
    (found,), skipped = read(rollout, *records)
    assert importers.recognise(rollout) == "codex"
    assert spoken(found) == TURNS
    assert found.conversation_id == ID
    assert found.timestamp == at(0)
    assert found.turns[0].timestamp == at(2)
    assert found.metadata == {"source": "codex", "cwd": "/home/ana", "git_branch": "main"}
    assert skipped == {"an instruction": 4, "a thought": 1, "a program record": 2}


def test_an_older_rollout_without_envelopes(rollout: Path) -> None:
    first = {"id": ID, "timestamp": "2025-05-26T07:00:00.000Z", "instructions": None, "git": {"branch": "main"}}
    (found,), _ = read(rollout, first, {"record_type": "state"}, *ITEMS, {"record_type": "state"})
    assert importers.recognise(rollout) == "codex"
    assert spoken(found) == TURNS
    assert (found.conversation_id, found.timestamp) == (ID, at(0))


def test_a_rollout_that_goes_on_from_another_is_its_own(rollout: Path) -> None:
    other = {**META, "id": "another"}
    (found,), _ = read(rollout, item(META, kind="session_meta"), item(other, kind="session_meta"), item(ITEMS[-1]))
    assert found.conversation_id == ID


def test_without_its_first_line_a_rollout_is_called_as_its_file(rollout: Path) -> None:
    (found,), _ = read(rollout, *(item(each) for each in ITEMS))
    assert found.conversation_id == ID
    (found,), _ = read(rollout.with_name("talk.jsonl"), *(item(each) for each in ITEMS))
    assert found.conversation_id is None


def test_a_directory_of_rollouts(rollout: Path, tmp_path: Path, memory: LatentMemory) -> None:
    day = tmp_path / "sessions" / "2025" / "05" / "26"
    day.mkdir(parents=True)
    for i in range(3):
        read(day / f"rollout-{i}.jsonl", item({**META, "id": f"s{i}"}, kind="session_meta"), item(ITEMS[-1]))
    assert importers.recognise(tmp_path / "sessions") == "codex"
    assert memory.add(importers.read(tmp_path / "sessions")).added == 3


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (5, "an object was expected, not a number"),
        ({"messages": []}, '"type": a text was expected, not none'),
        ({"type": "response_item", "payload": 5}, '"payload": an object was expected, not a number'),
        (item({"type": "message", "role": "robot", "content": []}), "role: 'robot' is unknown"),
        (item({"type": "message", "role": "user", "content": 5}), "a list of parts was expected, not a number"),
        (item({"type": "function_call_output", "output": 5}), "a text or a list of parts was expected"),
        ({**item(ITEMS[-1]), "timestamp": "soon"}, "'soon' is no time"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_bad_record_is_told(rollout: Path, record: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(rollout, item(META, kind="session_meta"), record, source="codex")
    assert str(caught.value).startswith(f"{rollout}, line 2: ")
    assert told in str(caught.value)
