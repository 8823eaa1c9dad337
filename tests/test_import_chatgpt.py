"""ChatGPT's export. The form is that which https://github.com/mitkury/chatgpt-export-parser describes; the talk is made
up. The marks of citations are those that https://github.com/pionxzh/chatgpt-exporter/pull/276 and
https://github.com/Laumss/loominary/issues/17 describe."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError

Cli = Callable[..., CompletedProcess[str]]


def node(
    parent: str | None, role: str = "", said: str | None = None, at: float | None = None, **content: Any
) -> dict[str, Any]:
    """A node of the tree; without a role one without a message."""
    if not role:
        return {"message": None, "parent": parent, "children": []}
    given = content or {"content_type": "text", "parts": [said]}
    message: dict[str, Any] = {
        "id": "m",
        "author": {"role": role, "name": None, "metadata": {}},
        "create_time": at,
        "content": given,
    }
    return {"message": {**message, "metadata": {}}, "parent": parent, "children": []}


def conversation(mapping: dict[str, Any], current: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"title": "Talk", "create_time": 1700000000.5, "mapping": mapping, "current_node": current, **fields}


TREE = {
    "root": node(None),
    "system": node("root", "system", ""),
    "ask": node("system", "user", "Which bread?", 1700000001.25),
    "first": node("ask", "assistant", "White bread.", 1700000002),
    "thanks": node("first", "user", "Thanks for white.", 1700000003),
    "second": node("ask", "assistant", "Rye bread.", 1700000004),
    "more": node("second", "user", "Why rye?", 1700000005),
    "end": node("more", "assistant", "It keeps.", 1700000006),
    "other": node("ask", "assistant", "Corn bread.", 1700000007),
}
BREAD = conversation(TREE, "end", id="c1", conversation_id="c1", title="Bread", default_model_slug="gpt-4o")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conversations.json"


def read(path: Path, *entries: object, **options: Any) -> tuple[list[Conversation], Counter[str]]:
    skipped: Counter[str] = Counter()
    path.write_text(json.dumps(entries))
    return list(importers.read(path, on_skip=lambda what: skipped.update([what]), **options)), skipped


def texts(found: Conversation) -> list[str]:
    return [turn.text for turn in found.turns]


def only(path: Path, *nodes: dict[str, Any]) -> tuple[list[Turn], Counter[str]]:
    """The turns of a conversation in which these nodes follow each other."""
    names = [str(i) for i in range(len(nodes))]
    mapping = {
        name: {**each, "parent": before} for name, before, each in zip(names, [None, *names], nodes, strict=False)
    }
    found, skipped = read(path, conversation(mapping, names[-1], id="c"))
    return [turn for each in found for turn in each.turns], skipped


def test_the_branch_that_was_seen_last_is_read(path: Path) -> None:
    (found,), skipped = read(path, BREAD)
    assert found == Conversation(
        "c1",
        [
            Turn("user", "Which bread?", datetime.fromtimestamp(1700000001.25, UTC)),
            Turn("assistant", "Rye bread.", datetime.fromtimestamp(1700000004, UTC)),
            Turn("user", "Why rye?", datetime.fromtimestamp(1700000005, UTC)),
            Turn("assistant", "It keeps.", datetime.fromtimestamp(1700000006, UTC)),
        ],
        title="Bread",
        timestamp=datetime.fromtimestamp(1700000000.5, UTC),
        metadata={"source": "chatgpt", "model": "gpt-4o"},
    )
    assert skipped == {"a system message": 1, "an unused branch": 2}


def test_other_branches_are_kept_on_request(path: Path) -> None:
    found, skipped = read(path, BREAD, branches=True)
    assert "an unused branch" not in skipped
    assert [(c.conversation_id, texts(c)) for c in found] == [
        ("c1", ["Which bread?", "Rye bread.", "Why rye?", "It keeps."]),
        ("c1/branch-first", ["Which bread?", "White bread.", "Thanks for white."]),
        ("c1/branch-other", ["Which bread?", "Corn bread."]),
    ]
    assert found[1].metadata == {"source": "chatgpt", "model": "gpt-4o", "branch_of": "c1", "branch": "first"}


def test_branches_keep_their_ids_when_the_export_grows(path: Path, memory: LatentMemory) -> None:
    memory.add(read(path, BREAD, branches=True)[0])
    grown = {**TREE, "late": node("thanks", "assistant", "Any time.", 1700000009), "x": node("first", "user", "Hm?", 1)}
    report = memory.add(read(path, {**BREAD, "mapping": grown}, branches=True)[0])
    assert (report.added, report.changed, report.unchanged, report.turns_added) == (1, 1, 2, 4)


def test_a_branch_in_which_nothing_was_said_is_none(path: Path) -> None:
    hidden = node("ask", "system", "Regenerated")
    (_,), skipped = read(path, {**BREAD, "mapping": {**TREE, "hidden": hidden, "empty": node("end")}})
    assert skipped["an unused branch"] == 2


@pytest.mark.parametrize("current", [None, "missing", 5])
def test_without_a_current_node_the_latest_leaf_is_the_end(path: Path, current: Any) -> None:
    (found,), _ = read(path, {**BREAD, "current_node": current})
    assert texts(found) == ["Which bread?", "Corn bread."]


def test_several_files_of_an_export_are_one(tmp_path: Path) -> None:
    parts = [conversation({"a": node(None, "user", f"Number {i}")}, "a", id=f"c{i}") for i in range(3)]
    files = {
        "conversations-000.json": parts[:2],
        "conversations-001.json": parts[2:],
        "shared_conversations.json": [{"id": "s"}],
        "user.json": {"id": "u"},
        "__MACOSX/conversations-000.json": "x",
    }
    folder, packed = tmp_path / "export", tmp_path / "export.zip"
    (folder / "__MACOSX").mkdir(parents=True)
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
            archive.writestr(name, json.dumps(content))
    for path in (folder, packed):
        assert importers.recognise(path) == "chatgpt"
        assert [c.conversation_id for c in importers.read(path)] == ["c0", "c1", "c2"]


def test_one_conversation_by_itself(path: Path) -> None:
    path.write_text(json.dumps(BREAD, indent=1))
    (found,) = importers.read(path)
    assert found.conversation_id == "c1"


def test_an_archive_without_conversations_is_told(tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("user.json", "{}")
    with pytest.raises(InputError, match=r"export\.zip: there is no conversations\.json in it"):
        list(importers.read(path, source="chatgpt"))


# -- messages -----------------------------------------------------------------------------------------------


def test_text_of_parts_is_kept_and_pictures_are_told(path: Path) -> None:
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://file-1", "width": 8}
    parts = [picture, "What is this?", {"content_type": "unheard-of"}, "And that?"]
    (turn,), skipped = only(path, node(None, "user", content_type="multimodal_text", parts=parts))
    assert turn.text == "What is this?\nAnd that?"
    assert skipped == {"an image": 1, "an attachment": 1}


def test_what_was_spoken_is_kept_as_text(path: Path) -> None:
    parts = [
        {"content_type": "audio_transcription", "text": "Good morning!", "direction": "in"},
        {"content_type": "real_time_user_audio_video_asset_pointer", "audio_asset_pointer": {"format": "wav"}},
        {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://file_1"},
    ]
    (turn,), skipped = only(path, node(None, "user", content_type="multimodal_text", parts=parts))
    assert turn.text == "Good morning!"
    assert skipped == {"a sound recording": 2}


def test_code_and_what_it_printed(path: Path) -> None:
    run = node(None, "assistant", content_type="code", language="python", text="print(6 * 7)")
    printed = node(None, "tool", content_type="execution_output", text="42")
    printed["message"]["author"]["name"] = "python"
    turns, skipped = only(path, run, printed)
    assert turns == [Turn("assistant", "print(6 * 7)"), Turn("tool", "42", name="python")]
    assert not skipped


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Rye keeps. \ue200cite\ue202turn0search0\ue201", "Rye keeps."),
        ("Rye \ue200cite\ue202turn0search0\ue202turn0news1\ue201, mostly.", "Rye, mostly."),
        ("A file.\ue200filecite\ue202turn3file0\ue202L8-L12\ue201 Next.", "A file. Next."),
        ('In \ue200entity\ue202["city","Paris","capital"]\ue201 too.', "In Paris too."),
        ("In \ue200entity\ue202Paris\ue201 too.", "In Paris too."),
        ("See \ue200url\ue202the mill\ue202https://a.example\ue201.", "See the mill (https://a.example)."),
        ("Breads:\n\ue200navlist\ue202More\ue202turn0news1\ue201\nEnd", "Breads:\n\nEnd"),
        ("\ue203Rye keeps.\ue204\ue206 Yes.", "Rye keeps. Yes."),
        ("Orphan \ue202L8-L12\ue201.", "Orphan."),
        ("Cut off \ue200cite\ue202turn0", "Cut off"),
        ("No end \ue200cite\ue202turn0search0 and more", "No end and more"),
        ("Mine \ue000 and \uf8ff stay.  ", "Mine \ue000 and \uf8ff stay.  "),
    ],
)
def test_marks_of_citations_are_taken_out(path: Path, said: str, kept: str) -> None:
    turns, skipped = only(path, node(None, "assistant", said), node(None, "tool", content_type="x", text=said))
    assert [turn.text for turn in turns] == [kept, kept]
    assert not skipped


def test_a_message_of_marks_alone_is_empty(path: Path) -> None:
    turns, skipped = only(path, node(None, "assistant", "\ue200cite\ue202turn0search0\ue201"))
    assert turns == []
    assert skipped == {"an empty message": 1, "an empty conversation": 1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (node(None, "user", content_type="user_editable_context", user_profile="I bake."), "an instruction"),
        (node(None, "assistant", content_type="thoughts", thoughts=[{"content": "Hm"}]), "a thought"),
        (node(None, "assistant", content_type="reasoning_recap", content="Thought for 5s"), "a thought"),
        (node(None, "system", "You are ChatGPT"), "a system message"),
        (node(None, "critic", "Bad."), "a message of an unknown role"),
        (node(None, "assistant", ""), "an empty message"),
        (node(None, "assistant", content_type="text", parts=[]), "an empty message"),
        (node(None, "assistant", content_type="tether_browsing_display"), "an empty message"),
        (node(None, "tool", "x" * 1_000_001), "an overlong text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_left_out_is_told(path: Path, given: dict[str, Any], told: str) -> None:
    turns, skipped = only(path, given, node(None, "user", "Hello"))
    assert [turn.text for turn in turns] == ["Hello"]
    assert skipped == {told: 1}


def test_hidden_messages_are_left_out(path: Path) -> None:
    hidden = node(None, "user", "Make it shorter")
    hidden["message"]["metadata"]["is_visually_hidden_from_conversation"] = True
    turns, skipped = only(path, hidden, node(None, "user", "Hello"))
    assert [turn.text for turn in turns] == ["Hello"]
    assert skipped == {"a hidden message": 1}


def test_a_conversation_in_which_nothing_was_said_is_told(path: Path) -> None:
    found, skipped = read(path, conversation({}, id="a"), conversation({"r": node(None)}, "r", id="b"))
    assert found == []
    assert skipped == {"an empty conversation": 2}


def test_times_that_are_missing(path: Path) -> None:
    mapping = {"a": node(None, "user", "Hi"), "b": node("a", "assistant", "Hello", 1700000000)}
    (found,), _ = read(path, {**conversation(mapping, "b"), "create_time": None, "title": None})
    assert found.conversation_id is None
    assert found.title is None
    assert found.timestamp == datetime.fromtimestamp(1700000000, UTC)
    (found,), _ = read(path, {**conversation({"a": mapping["a"]}, "a"), "create_time": None})
    assert found.generated == {"timestamp:file"}


# -- what cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (5, "entry 2: no conversation but a number"),
        ({}, '"mapping": an object was expected'),
        (conversation({"a": 5}, "a"), "message a: an object was expected, not a number"),
        (conversation({"a": {"message": "x"}}, "a"), "message a: an object was expected, not a text"),
        (conversation({"a": node("b", "user", "Hi")}, "a"), "message a: its parent 'b' is not there"),
        (conversation({"a": node("a", "user", "Hi")}, "a"), "in a circle"),
        (conversation({"a": node("b", "user", "Hi"), "b": node("a", "user", "Hi")}, "a"), "in a circle"),
        (conversation({"a": node("b", "user", "Hi"), "b": node("a", "user", "Hi")}), "in a circle"),
        (conversation({**TREE, "x": node("y", "user", "Hi"), "y": node("x", "user", "Hi")}, "end"), "in a circle"),
        (conversation({"a": {"parent": ["a"], "message": None}}, "a"), "its parent a list is not there"),
        (conversation({"a": node(None, "user", "Hi", "soon")}, "a"), "message 'm': timestamp: 'soon' is no time"),  # type: ignore[arg-type]
        (conversation({"a": node(None, "user", "\ud800")}, "a"), "half of a surrogate pair"),
        (conversation({"a": node(None, "user", "Hi")}, "a", create_time="soon"), "'soon' is no time"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told_with_its_place(path: Path, entry: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, BREAD, entry)
    assert str(caught.value).startswith(f"{path}, entry 2")
    assert told in str(caught.value)
    bad: list[InputError] = []
    found, _ = read(path, BREAD, entry, {**BREAD, "conversation_id": "c3"}, on_bad=bad.append)
    assert [c.conversation_id for c in found] == ["c1", "c3"]
    assert len(bad) == 1


def test_the_place_names_the_conversation(path: Path) -> None:
    with pytest.raises(InputError, match=r"entry 1 \(c9\): message a"):
        read(path, conversation({"a": 5}, id="c9"))


@pytest.mark.parametrize("branches", [False, True])
def test_a_tree_of_many_branches_is_read_in_time(path: Path, branches: bool) -> None:
    mapping = {"0": node(None, "user", "0")}
    for i in range(1, 10_000):
        mapping[str(i)] = node(str(i - 1), "user", str(i))
        if not branches:
            mapping[f"leaf {i}"] = node(str(i - 1), "assistant", "no")
    (found,), skipped = read(path, conversation(mapping, "9999", id="c"), branches=branches)
    assert len(found.turns) == 10_000
    assert skipped["an unused branch"] == (0 if branches else 9_999)


def test_only_the_first_hundred_branches_are_kept(path: Path) -> None:
    mapping = {"0": node(None, "user", "Which bread?")}
    for i in range(3_001):
        mapping[str(i + 1)] = node("0", "assistant", f"Bread {i}.")
    found, skipped = read(path, conversation(mapping, "3001", id="c"), branches=True)
    assert [(c.conversation_id, texts(c)) for c in found] == [
        ("c", ["Which bread?", "Bread 3000."]),
        *((f"c/branch-{i + 1}", ["Which bread?", f"Bread {i}."]) for i in range(100)),
    ]
    assert skipped == {"a branch in excess of 100": 2_900}


def test_a_large_export_is_read_in_little_memory(path: Path) -> None:
    mapping = {str(i): node(str(i - 1) if i else None, "user", f"word{i} " * 3_500) for i in range(25)}
    one = json.dumps(conversation(mapping, "24", id="the id"))
    with path.open("w") as file:
        file.write("[" + ",\n".join(one.replace("the id", f"c{i}") for i in range(90)) + "]")
    assert path.stat().st_size > 50_000_000
    tracemalloc.start()
    count = sum(len(found.turns) for found in importers.read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 90 * 25
    assert peak < 10_000_000


# -- through the command line ---------------------------------------------------------------------------------


def test_an_export_is_added_with_one_command(cli: Cli, store: Path, path: Path) -> None:
    silent = conversation({"r": node(None)}, "r", id="silent")
    path.write_text(json.dumps([BREAD, silent]))
    first = cli("add", path, "--store", store, "--embedder", "hashing")
    assert first.returncode == 0
    assert first.stderr == f"{path}: ChatGPT export\n"
    assert first.stdout.splitlines() == [
        "1 conversation added, 0 changed, 0 unchanged (4 turns added, 0 changed)",
        "left out: 2 unused branches, 1 system message, 1 empty conversation",
    ]
    again = cli("add", path, "--store", store, "--json")
    assert (again.returncode, again.stderr) == (0, "")
    told = json.loads(again.stdout)
    assert (told["added"], told["unchanged"], told["left_out"]) == (0, 1, 0)
    assert told["files"] == [{"name": str(path), "format": "chatgpt", "conversations": 1, "turns": 4}]
    assert told["skipped"] == {"unused branch": 2, "system message": 1, "empty conversation": 1}
    with LatentMemory.open(store) as memory:
        assert memory.recall("rye bread")[0].passage.conversation_id == "c1"


def test_branches_on_the_command_line(cli: Cli, store: Path, path: Path) -> None:
    path.write_text(json.dumps([BREAD]))
    told = json.loads(cli("add", path, "--branches", "--store", store, "--embedder", "hashing", "--json").stdout)
    assert told["added"] == 3
    shown = json.loads(cli("show", "c1/branch-first", "--store", store, "--json").stdout)
    assert shown["metadata"]["branch_of"] == "c1"


def test_bad_entries_on_the_command_line(cli: Cli, store: Path, path: Path) -> None:
    path.write_text(json.dumps([BREAD, conversation({"a": 5}, id="broken")]))
    refused = cli("add", path, "--store", store, "--embedder", "hashing")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"latent-memory: {path}, entry 2 (broken): message a: an object was expected, not a number\n"
    )
    assert not store.exists()
    done = cli("add", path, "--skip-bad", "--store", store, "--embedder", "hashing")
    assert done.returncode == 0
    assert f"left out: {path}, entry 2 (broken): message a: an object was expected" in done.stderr
    assert "1 bad entry" in done.stdout.splitlines()[1]
