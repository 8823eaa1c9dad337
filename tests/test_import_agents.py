"""Sessions of coding agents: Claude Code and Codex.

The forms are those that https://github.com/simonw/claude-code-transcripts reads and
https://github.com/michaelschleiss/claude-convos describes, and that the source of https://github.com/openai/codex
writes (codex-rs/protocol/src/models.rs); the talk is made up.
"""

from __future__ import annotations

import json
import tracemalloc
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


def queued(prompt: object, minute: int = 9, **fields: Any) -> dict[str, Any]:
    """What was typed while Claude was at work, as https://github.com/kenn-io/agentsview/pull/406 reads it."""
    outer: dict[str, Any] = {key: fields.pop(key) for key in ("parentUuid", "isSidechain") if key in fields}
    attachment = {"type": "queued_command", "prompt": prompt, **fields}
    return {**line("user", "", minute), "type": "attachment", "attachment": attachment, **outer}


def synthetic(text: str) -> dict[str, Any]:
    record = line("assistant", [{"type": "text", "text": text}], 9, of="m9")
    return {**record, "message": {**record["message"], "model": "<synthetic>"}}


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
        (line("user", "<bash-input>ls -la</bash-input>", 9), "a program note"),
        (line("user", "<bash-stdout>tap.py</bash-stdout><bash-stderr></bash-stderr>", 9), "a program note"),
        (line("user", "<command-name>/cost</command-name>\n<command-args></command-args>", 9), "a program note"),
        (line("assistant", [{"type": "text", "text": "No response requested."}], 9, of="m9"), "a program note"),
        (synthetic("Prompt is too long"), "a program note"),
        (queued("<task-notification>done</task-notification>"), "a program note"),
        (queued("ls", commandMode="bash"), "a program record"),
        (queued("done", commandMode="prompt", origin={"kind": "task-notification"}), "a program record"),
        (queued("done", isMeta=True), "a program record"),
        (queued("Search", isSidechain=True), "a side message"),
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


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (
            "<command-message>init is analyzing your codebase…</command-message>\n<command-name>/init</command-name>\n"
            "<command-args>make it short please</command-args>",
            "/init make it short please",
        ),
        (
            "<command-name>note</command-name>\n            <command-message>note</command-message>\n"
            "            <command-args>\nthis\nfeature </command-args>",
            "/note this\nfeature",
        ),
        (
            "<command-args>is what the tag is called</command-args>",
            "<command-args>is what the tag is called</command-args>",
        ),
    ],
    ids=["message first", "name first", "none"],
)
def test_what_was_written_behind_a_command_is_kept(path: Path, content: str, kept: str) -> None:
    (found,), skipped = read(path, line("user", content))
    assert found.turns == (Turn("user", kept, at(0)),)
    assert not skipped


@pytest.mark.parametrize("prompt", ["Also the hose.", [{"type": "text", "text": "Also the hose."}]])
@pytest.mark.parametrize("told", [{}, {"commandMode": "prompt", "origin": {"kind": "human"}}])
def test_what_was_typed_while_claude_was_at_work_is_kept(path: Path, prompt: object, told: dict[str, Any]) -> None:
    asked, answered = line("user", "Water.", 1), line("assistant", [{"type": "text", "text": "Done."}], 4, of="m1")
    record = queued(prompt, 3, parentUuid="u1", **told)
    turns = (Turn("user", "Water.", at(1)), Turn("user", "Also the hose.", at(3)), Turn("assistant", "Done.", at(4)))
    # Some versions give it no uuid, and it is not sure that the answer is linked to it.
    nameless = {key: value for key, value in record.items() if key not in ("uuid", "parentUuid")}
    for given, parent in ((record, "u3"), (record, "u1"), (nameless, "u1")):
        (found,), skipped = read(path, asked, given, {**answered, "parentUuid": parent})
        assert found.turns == turns
        assert not skipped


# -- Claude Code: which session, and which branch --------------------------------------------------------------


def chain(*records: dict[str, Any], after: str | None = None) -> list[dict[str, Any]]:
    """Records each of which follows the one before it."""
    return [{**each, "parentUuid": before} for each, before in zip(records, [after, *uuids(records)], strict=False)]


def uuids(records: Any) -> list[str]:
    return [each["uuid"] for each in records]


def ask(text: str, minute: int, **fields: Any) -> dict[str, Any]:
    return line("user", text, minute, **fields)


def answer(text: str, minute: int, **fields: Any) -> dict[str, Any]:
    return line("assistant", [{"type": "text", "text": text}], minute, of=f"m{minute}", **fields)


def texts(found: list[Conversation]) -> list[tuple[str | None, list[str]]]:
    return [(each.conversation_id, [turn.text for turn in each.turns]) for each in found]


ONE, TWO = "3240e317-05c7-4101-9375-18a3544dd18e", "1575475e-ede7-481e-b026-6e01c57d5d5d"


@pytest.mark.parametrize(("one", "two"), [("s-1", "s-2"), (ONE, TWO)])
def test_a_session_that_goes_on_from_another_is_its_own(
    tmp_path: Path, memory: LatentMemory, one: str, two: str
) -> None:
    """As https://github.com/siteboon/claudecodeui/issues/1022 tells it: what is copied keeps its sessionId."""
    project = tmp_path / "projects" / "-home-ana-garden"
    project.mkdir(parents=True)
    copied = chain(ask("Water.", 1, sessionId=one), answer("Done.", 2, sessionId=one))
    first = [*copied, *chain(ask("Only in the first.", 9, sessionId=one), after="u2")]
    place = {"cwd": "/home/ana/kitchen", "gitBranch": "soup"}
    second = [*copied, *chain(ask("Only in the second.", 10, sessionId=two, **place), after="u2")]
    read(project / f"{one}.jsonl", *first)
    read(project / f"{two}.jsonl", *second)
    found = sorted(importers.read(tmp_path / "projects"), key=lambda each: [turn.text for turn in each.turns])
    assert texts(found) == [
        (one, ["Water.", "Done.", "Only in the first."]),
        (two, ["Water.", "Done.", "Only in the second."]),
    ]
    assert [each.metadata for each in found] == [
        {"source": "claude_code", "cwd": "/home/ana/garden", "git_branch": "main"},
        {"source": "claude_code", "cwd": "/home/ana/kitchen", "git_branch": "soup"},
    ]
    assert memory.add(importers.read(tmp_path / "projects")).added == 2
    again = memory.add(importers.read(tmp_path / "projects"))
    assert (again.added, again.changed, again.unchanged) == (0, 0, 2)


@pytest.mark.parametrize(
    ("name", "expected"), [(f"{ONE}.jsonl", ONE), (f"{ONE}-copy.jsonl", "s1"), ("0", "s1"), ("talk.jsonl", "s1")]
)
def test_a_session_is_called_as_its_file_is_or_as_it_says(tmp_path: Path, name: str, expected: str) -> None:
    (found,), _ = read(tmp_path / name, *SESSION)
    assert found.conversation_id == expected
    assert found.metadata == {"source": "claude_code", "cwd": "/home/ana/garden", "git_branch": "main"}


def test_files_of_subagents_are_no_sessions(tmp_path: Path) -> None:
    """Their places: https://github.com/plmbr/notebook-intelligence/pull/169."""
    for name in (f"p/{ONE}.jsonl", "p/agent-aeb76f0.jsonl", f"p/{ONE}/subagents/agent-b1.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        side = {} if name == f"p/{ONE}.jsonl" else {"agentId": "b1"}
        read(tmp_path / name, *chain(ask("Water.", 1, **side), answer("Done.", 2, **side)))
    skipped: Counter[str] = Counter()
    found = list(importers.read(tmp_path, on_skip=lambda what: skipped.update([what])))
    assert texts(found) == [(ONE, ["Water.", "Done."])]
    assert skipped == {"a side message": 4}


REWOUND = [
    *chain(ask("Water.", 1), answer("Done.", 2), ask("Now dig.", 3), answer("Dug.", 4)),
    *chain(ask("Now plant.", 5), answer("Planted.", 6), after="u2"),
    *chain(ask("Now rake.", 7), answer("Raked.", 8), after="u2"),
]


def test_of_branches_the_one_begun_last_is_read(path: Path) -> None:
    found, skipped = read(path, *REWOUND)
    assert texts(found) == [("s1", ["Water.", "Done.", "Now rake.", "Raked."])]
    assert skipped == {"an unused branch": 2}


def test_other_branches_are_kept_on_request(path: Path) -> None:
    found, skipped = read(path, *REWOUND, branches=True)
    assert texts(found) == [
        ("s1", ["Water.", "Done.", "Now rake.", "Raked."]),
        ("s1/branch-u3", ["Water.", "Done.", "Now dig.", "Dug."]),
        ("s1/branch-u5", ["Water.", "Done.", "Now plant.", "Planted."]),
    ]
    assert found[1].metadata == {**found[0].metadata, "branch_of": "s1", "branch": "u3"}
    assert not skipped


def test_going_back_to_the_beginning_begins_anew(path: Path) -> None:
    found, skipped = read(path, *chain(ask("Dig.", 1), answer("Dug.", 2)), *chain(ask("Rake.", 3), answer("Raked.", 4)))
    assert texts(found) == [("s1", ["Rake.", "Raked."])]
    assert skipped == {"an unused branch": 1}


def test_tools_that_run_at_one_time_are_no_branches(path: Path) -> None:
    """Each result follows the block that called it, and the answer goes on after one of them."""
    records = [
        *chain(
            ask("Look.", 1),
            line("assistant", [{"type": "text", "text": "I look."}], 2, of="m1"),
            line("assistant", [tool("Bash", "t1", command="ls")], 3, of="m1"),
            line("user", [result("t1", "tap.py")], 4),
        ),
        *chain(
            line("assistant", [tool("Read", "t2")], 5, of="m1"), line("user", [result("t2", "hose.py")], 6), after="u3"
        ),
        *chain(answer("Seen.", 7), ask("Thanks.", 8), after="u4"),
    ]
    found, skipped = read(path, *records)
    assert texts(found) == [("s1", ["Look.", "I look.", "tap.py", "hose.py", "Seen.", "Thanks."])]
    assert [turn.name for turn in found[0].turns] == [None, None, "Bash", "Read", None, None]
    assert skipped == {"a tool call": 2}
    # An older shape: the session goes on after a progress, and the result stands beside it.
    progress = {"type": "progress", "uuid": "p1", "parentUuid": "u3", "data": {"type": "hook_progress"}}
    older = [*records[:3], progress, *chain(records[3], after="u3"), *chain(answer("Seen.", 7), after="p1")]
    found, skipped = read(path, *older)
    assert texts(found) == [("s1", ["Look.", "I look.", "tap.py", "Seen."])]
    assert skipped == {"a tool call": 1, "a program record": 1}


def test_records_that_say_nothing_are_links(path: Path) -> None:
    start = {"type": "progress", "uuid": "p0", "parentUuid": None, "data": {"type": "hook_progress"}}
    records = [
        start,
        *chain(
            ask("Water.", 1),
            {"type": "attachment", "uuid": "x1", "attachment": {"type": "skill_listing"}},
            line("assistant", [{"type": "thinking", "thinking": "Hm"}], 2, of="m2"),
            answer("Done.", 3),
            {"type": "system", "subtype": "turn_duration", "uuid": "x2"},
            ask("<command-name>/cost</command-name>", 4),
            ask("Caveat", 5, isMeta=True),
            ask("Now dig.", 6),
            after="p0",
        ),
    ]
    found, skipped = read(path, *records)
    assert texts(found) == [("s1", ["Water.", "Done.", "Now dig."])]
    assert skipped == {"a program record": 2, "a thought": 1, "a system message": 1, "a program note": 2}


@pytest.mark.parametrize(
    "told",
    [
        {"logicalParentUuid": "u6"},
        {"logicalParentUuid": "gone", "compactMetadata": {"preservedSegment": {"tailUuid": "u6"}}},
        {"logicalParentUuid": "gone"},
        {},
    ],
    ids=["logical parent", "tail", "gone", "none"],
)
def test_a_full_context_does_not_cut_a_session(path: Path, told: dict[str, Any]) -> None:
    boundary = {"type": "system", "subtype": "compact_boundary", "uuid": "b", "parentUuid": None, **told}
    summary = ask("This session continues", 7, isCompactSummary=True)
    found, skipped = read(path, *REWOUND[:6], boundary, *chain(summary, ask("Now rake.", 8), after="b"))
    assert texts(found) == [("s1", ["Water.", "Done.", "Now plant.", "Planted.", "Now rake."])]
    assert skipped == {"an unused branch": 1, "a system message": 1, "a context summary": 1}


def test_what_follows_nothing_that_is_there_follows_what_came_before(path: Path) -> None:
    found, skipped = read(path, *REWOUND[:6], *chain(ask("Now rake.", 7), answer("Raked.", 8), after="gone"))
    assert texts(found) == [("s1", ["Water.", "Done.", "Now plant.", "Planted.", "Now rake.", "Raked."])]
    assert skipped == {"an unused branch": 1}


def test_records_in_a_circle_are_read(path: Path) -> None:
    found, _ = read(
        path, ask("One", 1, parentUuid="u2"), answer("Two", 2, parentUuid="u1"), ask("3", 3, parentUuid="u3")
    )
    assert texts(found) == [("s1", ["One", "Two", "3"])]


def test_a_session_of_many_branches_is_read_in_little_memory(path: Path) -> None:
    """What says nothing is most of a file, and takes little."""
    records = chain(ask("0", 0))
    for i in range(1, 3_000):
        before = records[0]["uuid"] if i == 1 else f"q{i - 1}"
        records.append({**ask("no", 1), "uuid": f"n{i}", "parentUuid": before})
        records.append({"type": "progress", "uuid": f"p{i}", "parentUuid": before, "data": {"output": "x" * 4_000}})
        records.append({**ask(str(i), 2), "uuid": f"q{i}", "parentUuid": f"p{i}"})
    read(path, *records[:4])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    skipped: Counter[str] = Counter()
    tracemalloc.start()
    try:
        found = list(importers.read(path, on_skip=lambda what: skipped.update([what])))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert texts(found) == [("s1", [str(i) for i in range(3_000)])]
    assert skipped == {"an unused branch": 2_999, "a program record": 2_999}
    assert peak < path.stat().st_size / 2


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


def test_what_was_rolled_back_is_left_out(rollout: Path) -> None:
    """codex-rs/core/src/thread_rollout_truncation.rs, and context_manager/history.rs in it, tell what a turn is."""
    picture = {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}
    context = said("user", "<environment_context>\n</environment_context>")

    def back(turns: object) -> dict[str, Any]:
        return item({"type": "thread_rolled_back", "num_turns": turns}, 9, "event_msg")

    def turns(*given: dict[str, Any]) -> tuple[list[str], Counter[str]]:
        found, skipped = read(rollout, item(META, kind="session_meta"), *given)
        return [turn.text for each in found for turn in each.turns], skipped

    one, two, three = ([item(said("user", f"Ask {i}.")), item(said("assistant", f"Tell {i}."))] for i in range(3))
    ran = item(said("user", "<user_shell_command>\n<command>\nls\n</command>\n</user_shell_command>"))
    assert turns(*one, *two, item(CALL), item(OUTPUT), item(context), ran, back(1), *three) == (
        ["Ask 0.", "Tell 0.", "Ask 2.", "Tell 2."],
        {"a rolled-back turn": 4, "an instruction": 2},
    )
    assert turns(*one, *two, back(1), back(1), *three) == (["Ask 2.", "Tell 2."], {"a rolled-back turn": 4})
    assert turns(item(said("assistant", "Hello.")), *one, *two, back(7)) == (["Hello."], {"a rolled-back turn": 4})
    assert turns(*one, item(picture), item(said("assistant", "A tap.")), back(1)) == (
        ["Ask 0.", "Tell 0."],
        {"an image": 1, "an empty message": 1, "a rolled-back turn": 1},
    )
    review = item(said("user", "<user_action>\n  <action>review</action>\n</user_action>"))
    assert turns(*one, review, item(said("assistant", "Fine.")), back(1)) == (
        ["Ask 0.", "Tell 0."],
        {"an instruction": 1, "a rolled-back turn": 1},
    )
    assert turns(*one, back(0), back(-1)) == (["Ask 0.", "Tell 0."], {})
    assert turns(*one, back("1"), back(None)) == (["Ask 0.", "Tell 0."], {"a program record": 2})
    assert turns(back(1), *one) == (["Ask 0.", "Tell 0."], {})


@pytest.mark.parametrize(
    ("record", "told"),
    [
        # codex-rs/core/src/context/user_shell_command.rs
        (said("user", "<user_shell_command>\n<command>\nls\n</command>\n</user_shell_command>"), "an instruction"),
        # codex-rs/core/templates/review/exit_success.xml
        (said("user", "<user_action>\n  <context>User initiated a review task.</context>\n"), "an instruction"),
        # codex-rs/protocol/src/models.rs: an action is not always there.
        ({"type": "web_search_call", "status": "completed"}, "a tool call"),
        ({"type": "web_search_call", "status": "completed", "action": None}, "a tool call"),
    ],
    ids=["shell command", "review", "search", "search for null"],
)
def test_what_codex_wrote_for_itself_is_left_out(rollout: Path, record: dict[str, Any], told: str) -> None:
    (found,), skipped = read(rollout, item(META, kind="session_meta"), item(said("user", "Hello.")), item(record))
    assert spoken(found) == [("user", None, "Hello.")]
    assert skipped == {told: 1}


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
