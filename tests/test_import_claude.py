"""Claude.ai's export. The form is that which https://github.com/socketteer/Claude-Conversation-Exporter types, and, of
messages that follow each other, that which https://github.com/agarwalvishal/claude-chat-exporter/pull/32 reads and
https://github.com/Sinity/polylogue imports; the talk is made up."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError


def message(sender: str, *content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"uuid": "m", "sender": sender, "created_at": "2024-05-01T10:00:00.5+00:00", "content": [*content], **fields}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said, "citations": []}


ASK = message("human", text("Which tomato?"), text="Which tomato?", attachments=[], files=[])
ANSWER = message("assistant", {"type": "thinking", "thinking": "Hm."}, text("Roma."), text="Roma.")
TALK = {
    "uuid": "c1",
    "name": "Tomatoes",
    "created_at": "2024-05-01T09:59:00Z",
    "updated_at": "2024-05-02T09:59:00Z",
    "account": {"uuid": "a"},
    "chat_messages": [ASK, ANSWER],
}
WHEN = datetime(2024, 5, 1, 10, 0, 0, 500_000, UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conversations.json"


def read(path: Path, *entries: object, **options: Any) -> tuple[list[Conversation], Counter[str]]:
    skipped: Counter[str] = Counter()
    path.write_text(json.dumps(entries))
    return list(importers.read(path, on_skip=lambda what: skipped.update([what]), **options)), skipped


def only(path: Path, *messages: object) -> tuple[list[Turn], Counter[str]]:
    found, skipped = read(path, {**TALK, "chat_messages": messages})
    return [turn for each in found for turn in each.turns], skipped


def test_a_conversation(path: Path) -> None:
    (found,), skipped = read(path, TALK)
    assert found == Conversation(
        "c1",
        [Turn("user", "Which tomato?", WHEN), Turn("assistant", "Roma.", WHEN)],
        title="Tomatoes",
        timestamp=datetime(2024, 5, 1, 9, 59, tzinfo=UTC),
        metadata={"source": "claude"},
    )
    assert skipped == {"a thought": 1}


def test_the_export_as_a_zip_and_a_directory(tmp_path: Path, memory: LatentMemory) -> None:
    packed = tmp_path / "data-2024-05-01.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("users.json", '[{"uuid": "a"}]')
        archive.writestr("conversations.json", json.dumps([TALK, {**TALK, "uuid": "c2"}]))
        archive.writestr("projects.json", '[{"uuid": "p"}]')
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "data")
    for path in (packed, tmp_path / "data"):
        assert importers.recognise(path) == "claude"
    assert memory.add(importers.read(packed)).added == 2
    assert memory.add(importers.read(tmp_path / "data")).unchanged == 2


def test_older_messages_have_a_text_alone(path: Path) -> None:
    turns, _ = only(path, {"sender": "human", "text": "Hello"}, {"sender": "assistant", "text": "Hi", "content": []})
    assert turns == [Turn("user", "Hello"), Turn("assistant", "Hi")]


def test_attachments_are_turns_after_their_message(path: Path) -> None:
    attachments = [
        {"file_name": "paste.txt", "file_type": "txt", "extracted_content": "Long ago,\nin a garden"},
        {"file_name": "", "extracted_content": "no name"},
        {"file_name": "scan.pdf", "extracted_content": ""},
        {"file_name": "huge.txt", "extracted_content": "x" * 1_000_001},
    ]
    files = [{"file_name": "paste.txt"}, {"file_name": "photo.png"}]
    turns, skipped = only(path, message("human", text("Sum this up."), attachments=attachments, files=files))
    assert [turn.text for turn in turns] == ["Sum this up.", "paste.txt:\nLong ago,\nin a garden", "no name"]
    assert {turn.role for turn in turns} == {"user"}
    assert skipped == {"an attachment": 1, "an overlong text": 1, "a file": 1}


def test_an_attachment_without_a_message(path: Path) -> None:
    turns, skipped = only(path, message("human", attachments=[{"file_name": "a.txt", "extracted_content": "Hello"}]))
    assert [turn.text for turn in turns] == ["a.txt:\nHello"]
    assert not skipped


def test_artifacts_are_part_of_what_was_said(path: Path) -> None:
    written = {"type": "tool_use", "name": "artifacts", "input": {"command": "create", "content": "# A poem\nRoses"}}
    turns, skipped = only(path, message("assistant", text("Here it is:"), written, {"type": "tool_result"}))
    assert [turn.text for turn in turns] == ["Here it is:\n# A poem\nRoses"]
    assert skipped == {"a tool result": 1}


def test_tool_calls(path: Path) -> None:
    search = {"type": "tool_use", "name": "web_search", "input": {"query": "tomato"}}
    turns, skipped = only(path, message("assistant", search), message("assistant", search, text("Found it.")))
    assert [turn.text for turn in turns] == ['web_search({"query": "tomato"})', "Found it."]
    assert skipped == {"a tool call": 1}


# A message's text, which is made for devices that know fewer blocks, as people's exports quote it: with a placeholder
# for each block, and the thoughts.
PLACEHOLDER = "```\nThis block is not supported on your current device yet.\n```"


def test_placeholders_are_not_what_was_said(path: Path) -> None:
    search = {"type": "tool_use", "name": "web_search", "input": {"query": "tomato"}}
    thought = {"type": "thinking", "thinking": "Let me look."}
    turns, skipped = only(
        path,
        message("assistant", search, {"type": "tool_result"}, search, text=f"{PLACEHOLDER}\n\n\n{PLACEHOLDER}"),
        message("assistant", thought, search, text=f"Let me look.\n{PLACEHOLDER}"),
        message("assistant", search, text("Found it."), text=f"{PLACEHOLDER}\n\nFound it."),
        message("assistant", text=f"Older.\n{PLACEHOLDER}\n"),
        message("assistant", thought, text="Let me look."),
        message("assistant", text(""), text="Of the text alone."),
    )
    called = 'web_search({"query": "tomato"})'
    assert [turn.text for turn in turns] == [
        f"{called}\n{called}",
        called,
        "Found it.",
        "Older.",
        "Of the text alone.",
    ]
    assert skipped == {"a tool result": 1, "a thought": 2, "a tool call": 1, "an empty message": 1}


# -- branches -----------------------------------------------------------------------------------------------

ROOT = "00000000-0000-4000-8000-000000000000"


def node(uuid: str, parent: str | None, said: str, minute: int = 0) -> dict[str, Any]:
    sender = "human" if uuid.startswith("u") else "assistant"
    when = f"2024-05-01T10:{minute:02}:00Z"
    return {**message(sender, text(said)), "uuid": uuid, "parent_message_uuid": parent, "created_at": when}


TREE = [
    node("u0", ROOT, "Which potato?", 0),
    node("a0", "u0", "Linda.", 1),
    node("u1", ROOT, "Which tomato?", 2),
    node("a1", "u1", "Cherry.", 3),
    node("a2", "u1", "Roma.", 4),
    node("u2", "a1", "Why cherry?", 5),
    node("a3", "u2", "It is sweet.", 9),
    node("u3", "a2", "Why Roma?", 7),
    node("a4", "u3", "It is firm.", 8),
]
MAIN = ["Which tomato?", "Cherry.", "Why cherry?", "It is sweet."]
OTHER = ["Which tomato?", "Roma.", "Why Roma?", "It is firm."]


def said(found: list[Conversation]) -> list[tuple[str | None, list[str]]]:
    return [(each.conversation_id, [turn.text for turn in each.turns]) for each in found]


def test_the_branch_that_was_written_last_is_read(path: Path) -> None:
    found, skipped = read(path, {**TALK, "chat_messages": TREE})
    assert said(found) == [("c1", MAIN)]
    assert skipped == {"an unused branch": 2}


def test_the_branch_that_is_named_is_read(path: Path) -> None:
    found, skipped = read(path, {**TALK, "chat_messages": TREE, "current_leaf_message_uuid": "a4"})
    assert said(found) == [("c1", OTHER)]
    assert skipped == {"an unused branch": 2}
    found, _ = read(path, {**TALK, "chat_messages": TREE, "current_leaf_message_uuid": "elsewhere"})
    assert said(found) == [("c1", MAIN)]


def test_other_branches_are_kept_on_request(path: Path) -> None:
    found, skipped = read(path, {**TALK, "chat_messages": TREE}, branches=True)
    assert said(found) == [("c1", MAIN), ("c1/branch-u0", ["Which potato?", "Linda."]), ("c1/branch-a2", OTHER)]
    assert found[2] == Conversation(
        "c1/branch-a2",
        [
            Turn(role, told, datetime(2024, 5, 1, 10, minute, tzinfo=UTC))
            for role, told, minute in zip(("user", "assistant") * 2, OTHER, (2, 4, 7, 8), strict=True)
        ],
        title="Tomatoes",
        timestamp=datetime(2024, 5, 1, 9, 59, tzinfo=UTC),
        metadata={"source": "claude", "branch_of": "c1", "branch": "a2"},
    )
    assert not skipped


def test_what_follows_nothing_that_is_there_follows_the_one_before(path: Path) -> None:
    lost = [node("u1", ROOT, "One"), node("a1", "u1", "Two"), node("u2", "gone", "Three"), node("a2", "u2", "Four")]
    del (older := node("u3", None, "Five"))["parent_message_uuid"]
    found, skipped = read(path, {**TALK, "chat_messages": [*lost, older, node("a3", "u3", "Six")]})
    assert said(found) == [("c1", ["One", "Two", "Three", "Four", "Five", "Six"])]
    assert not skipped


@pytest.mark.parametrize("parent", [None, ROOT, "gone", 5])
def test_without_parents_messages_follow_each_other(path: Path, parent: Any) -> None:
    flat = [{**each, "parent_message_uuid": parent} for each in TREE]
    found, skipped = read(path, {**TALK, "chat_messages": flat, "current_leaf_message_uuid": "a4"})
    assert said(found) == [("c1", [each["content"][0]["text"] for each in TREE])]
    assert not skipped


def test_messages_in_a_circle_are_read_as_they_stand(path: Path) -> None:
    circle = [node("u1", "a1", "One"), node("a1", "u1", "Two"), node("u2", ROOT, "Three"), node("a2", "u2", "Four")]
    for branches in (False, True):
        found, skipped = read(path, {**TALK, "chat_messages": circle}, branches=branches)
        assert said(found) == [("c1", ["One", "Two", "Three", "Four"])]
        assert not skipped


def test_many_branches_are_read_in_time(path: Path) -> None:
    talk = [node("u0", ROOT, "0")]
    for i in range(1, 5_000):
        talk += [node(f"a{i}", f"u{i - 1}", "no"), node(f"u{i}", f"u{i - 1}", str(i))]
    found, skipped = read(path, {**TALK, "chat_messages": talk})
    assert said(found) == [("c1", [str(i) for i in range(5_000)])]
    assert skipped == {"an unused branch": 4_999}


# -- what cannot be used ------------------------------------------------------------------------------------


def test_what_says_nothing_is_told(path: Path) -> None:
    found, skipped = read(path, {**TALK, "chat_messages": []}, {**TALK, "chat_messages": [message("human", text=" ")]})
    assert found == []
    assert skipped == {"an empty conversation": 2, "an empty message": 1}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (5, "entry 2: a conversation was expected, not a number"),
        ({"chat_messages": 5}, 'entry 2: "chat_messages": a list was expected'),
        ({**TALK, "chat_messages": [5]}, "entry 2 (c1), chat_messages[0]: a message was expected, not a number"),
        ({**TALK, "chat_messages": [message("robot")]}, 'entry 2 (c1), chat_messages[0]: "sender"'),
        ({**TALK, "chat_messages": [{**ASK, "created_at": "soon"}]}, "'soon' is no time"),
        ({**TALK, "created_at": "soon"}, "entry 2 (c1): timestamp: 'soon' is no time"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told_with_its_place(path: Path, entry: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, TALK, entry)
    assert told in str(caught.value)
    bad: list[InputError] = []
    found, _ = read(path, TALK, entry, {**TALK, "uuid": "c3"}, on_bad=bad.append)
    assert (found[0].conversation_id, found[-1].conversation_id) == ("c1", "c3")
    assert len(bad) == 1
