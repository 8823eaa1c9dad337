"""What `add` is given: recognised, checked, and refused if it changes; through the library and the command line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, importers, inputs
from latent_memory.errors import InputError
from latent_memory.importers import jsonl, sharegpt
from latent_memory.output import many_of

Cli = Callable[..., CompletedProcess[str]]


def talk(number: int = 0) -> dict[str, Any]:
    return {"conversation_id": f"c{number}", "messages": [{"role": "user", "content": f"Talk number {number}"}]}


def shared(number: int = 0) -> dict[str, Any]:
    return {"id": f"s{number}", "conversations": [{"from": "human", "value": f"Shared number {number}"}]}


def lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "talk.json"
    path.write_bytes(lines(talk(0), talk(1)))
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(importers.read(path, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- recognising --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty; there is nothing to add"),
        (b" \r\n\n", "empty; there is nothing to add"),
        (b"\xef\xbb\xbf", "empty; there is nothing to add"),
        (b"[]", "holds nothing; there is nothing to add"),
        (b"{}", "holds nothing; there is nothing to add"),
        (b'{"results": [], "count": 0}', "holds nothing; there is nothing to add"),
        (b"5", "unknown format"),
        (b"SQLite format 3\0" + bytes(1_000), "not readable as an SQLite database"),
        (b'{"a": 1}', "unknown format"),
        (b'{"a": []}\n{"a": 1}', "unknown format"),
        (b'[{"a": 1}]', "unknown format"),
        (b'[{"title": "A talk", "map', "not JSON (Unterminated string starting at: line 1)"),
        (b'[{"title": "A talk"},\n', "line 2)"),
        (b"\xff\xfe\0x", "not UTF-8"),
        (b'{"oops', "line 1: not JSON"),
        (b"PK\x03\x04 and no zip", "a zip that cannot be read"),
    ],
    ids=ascii,
)
def test_what_is_of_no_format_is_told(path: Path, content: bytes, told: str) -> None:
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(str(path))
    assert told in message
    if told == "unknown format":
        assert message.endswith(f"unknown format; name it with --from: {', '.join(importers.NAMES)}")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.zip", b"no zip", "called a zip, and not one; download it again"),
        ("a.db", b"no database", "called a database, and not one of SQLite"),
        ("a.yaml", b"- !!python/object/apply:os.system [ls]\n", "!!python/object/apply:os.system"),
        ("a.yaml", b"a: [1\n", "line 2"),
        ("a.yaml", b"[]", "holds nothing"),
        ("a.yaml", b"a: 1\n", "unknown format"),
        ("a.txt", b"[12:00] [ding]", "unknown format"),
        ("a", b'[{"oops', "not JSON"),
        ("a", b"[oops", "unknown format"),
    ],
)
def test_what_is_wrong_is_told_where_the_name_or_the_content_says_what_it_should_be(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert told in message


def test_an_export_of_no_conversations_is_told(cli: Cli, path: Path, store: Path) -> None:
    path.write_bytes(b"[]")
    result = cli("add", path, "--from", "chatgpt", "--store", store)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"latent-memory: {path}: holds no conversations (ChatGPT export); there is nothing to add\n"
    )
    assert not store.exists()


def test_an_empty_zip_is_of_no_format(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    zipfile.ZipFile(path, "w").close()
    assert "empty" in refused(path)


def test_a_broken_beginning_does_not_hide_the_format(path: Path) -> None:
    path.write_bytes(b"{oops\nnull\n" + lines({"conversations": []}, shared()))
    assert importers.recognise(path) == "sharegpt"
    path.write_bytes(json.dumps([None, 5, {}, shared()]).encode())
    assert importers.recognise(path) == "sharegpt"


def test_a_first_entry_of_many_megabytes(path: Path) -> None:
    long = {**shared(), "conversations": [{"from": "human", "value": "x" * 900_000}] * 6}
    one, two = json.dumps(long), json.dumps(shared(2))
    for content, count in ((f"[{one}, {two}]", 2), (f"[{one},\n{two}\n]", 2), (f"{one}\n{two}\n", 2), (f"{one}\n", 1)):
        path.write_text(content)
        assert importers.recognise(path) == "sharegpt"
        assert len(list(importers.read(path))) == count


def test_a_first_line_of_many_megabytes_that_is_a_list(path: Path) -> None:
    said = json.dumps([{"type": "human", "data": {"content": "x" * 900_000}}] * 6)
    for content, count in ((f"{said}\n{said}\n", 2), (f"{said}\n", 1), (f"[{said},\n{said}]", 2), (f"[{said}\n]", 1)):
        path.write_text(content)
        assert importers.recognise(path) == "langchain"
        assert len(list(importers.read(path))) == count


def test_a_name_overrules_what_was_recognised(path: Path) -> None:
    assert importers.recognise(path) == "jsonl"
    assert '"conversations": a list of messages was expected' in refused(path, source="sharegpt")
    assert "no importer is called 'nonsense'; there are chatgpt" in refused(path, source="nonsense")


def test_importers_are_loaded_by_name_alone() -> None:
    with pytest.raises(InputError, match="no importer is called"):
        importers.load("base")


# -- files that cannot be read ------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "gone.json")
    told = f"cannot read {link}: a symbolic link to {tmp_path / 'gone.json'}, which is not there"
    assert refused(link) == told
    assert refused(link, source="chatgpt") == told


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_to_a_file_is_followed(path: Path) -> None:
    link = path.with_name("link.json")
    link.symlink_to(path)
    assert len(list(importers.read(link))) == 2


def test_a_directory_where_a_file_is_expected(tmp_path: Path) -> None:
    told = refused(tmp_path)
    assert told == f"cannot read {tmp_path}: Is a directory, and no export that is read as one; name the files in it"
    (tmp_path / "notes.md").write_text("# Notes")
    assert "Is a directory" in refused(tmp_path)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(path: Path) -> None:
    path.chmod(0)
    assert refused(path) == f"cannot read {path}: Permission denied"


# -- files that change --------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["grows", "is touched", "is replaced", "is gone", "is cut"])
def test_a_file_that_changes_while_it_is_read(path: Path, change: str) -> None:
    path.write_bytes(lines(*map(talk, range(2_000))))
    found = importers.read(path)
    next(found)
    if change == "grows":
        path.write_bytes(path.read_bytes() + lines(talk(2_000)))
    elif change == "is touched":
        os.utime(path, ns=(1, 1))
    elif change == "is replaced":
        path.with_name("new").write_bytes(path.read_bytes())
        path.with_name("new").replace(path)
    elif change == "is cut":
        os.truncate(path, 70_000)
    else:
        path.unlink()
    with pytest.raises(InputError, match="changed while it was read" if change != "is gone" else "^cannot read"):
        list(found)


def test_a_change_in_a_directory_is_seen(tmp_path: Path) -> None:
    record = {"type": "user", "sessionId": "s", "uuid": "u", "message": {"role": "user", "content": "Hello"}}
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_bytes(lines({**record, "sessionId": f"s{i}"}))
    found = importers.read(tmp_path)
    next(found)
    (tmp_path / "0.jsonl").write_bytes(lines(record, record))
    with pytest.raises(InputError, match="changed while it was read"):
        list(found)


def test_a_change_between_checking_and_adding_is_seen(path: Path, store: Path) -> None:
    with inputs.opened([str(path)]) as given:
        given.check()
        path.write_bytes(lines(talk(0), talk(1), talk(2)))
        with LatentMemory.open(store, embedder="hashing") as memory:
            with pytest.raises(InputError, match="changed while it was read; wait until it is written"):
                memory.add(given.conversations())
            assert memory.stats().conversations == 0


def test_a_change_on_the_command_line(cli: Cli, path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = inputs.Inputs.check

    def changed(self: inputs.Inputs, *, skip_bad: bool = False) -> None:
        check(self, skip_bad=skip_bad)
        path.write_bytes(lines(talk(5)))

    monkeypatch.setattr(inputs.Inputs, "check", changed)
    result = cli("add", path, "--store", store, "--embedder", "hashing")
    assert result.returncode == 2
    assert (
        result.stderr == f"latent-memory: {path}: changed while it was read; wait until it is written, and try again\n"
    )


# -- the command line ---------------------------------------------------------------------------------------


def test_each_file_is_recognised_by_itself(cli: Cli, path: Path, store: Path) -> None:
    other = path.with_name("shared.json")
    other.write_text(json.dumps([shared(0), shared(1)]))
    packed = path.with_name("all.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(other, "shared.json")
    result = cli("add", path, other, packed, "-", "--store", store, "--embedder", "hashing", stdin=lines(shared(2)))
    assert result.returncode == 0
    assert result.stderr.splitlines() == [f"{other}: ShareGPT", f"{packed}: ShareGPT", "standard input: ShareGPT"]
    assert result.stdout == "5 conversations added, 0 changed, 2 unchanged (5 turns added, 0 changed)\n"
    told = json.loads(cli("add", path, other, "--store", store, "--json").stdout)
    assert told["files"] == [
        {"name": str(path), "format": "jsonl", "conversations": 2, "turns": 2},
        {"name": str(other), "format": "sharegpt", "conversations": 2, "turns": 2},
    ]


def test_a_format_by_name(cli: Cli, path: Path, store: Path) -> None:
    told = cli("add", path, "--from", "sharegpt", "--store", store)
    assert told.returncode == 2
    assert "line 1: " in told.stderr
    assert "overrules" not in told.stderr
    told = cli("add", path, "--from", "nonsense", "--store", store)
    assert told.returncode == 2
    assert "no importer is called 'nonsense'; there are chatgpt, " in told.stderr
    assert cli("add", path, "--from", "jsonl", "--store", store, "--embedder", "hashing").returncode == 0


def test_the_help_lists_the_formats(cli: Cli) -> None:
    told = " ".join(cli("add", "--help").stdout.split())
    assert ", ".join(importers.NAMES) in told


def test_what_is_skipped_is_listed_and_counted(cli: Cli, path: Path, store: Path) -> None:
    empty = {"id": "e", "conversations": [{"from": "human", "value": " "}]}
    path.write_text(json.dumps([shared(0), empty, 5, shared(1), {"conversations": 7}, empty, shared(0)]))
    refusal = cli("add", path, "--store", store, "--embedder", "hashing")
    assert (refusal.returncode, refusal.stdout) == (2, "")
    assert refusal.stderr.count("\n") == 1
    assert not store.exists()
    result = cli("add", path, "--skip-bad", "--store", store, "--embedder", "hashing")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        f"{path}: ShareGPT",
        f"left out: {path}, entry 3: an object was expected, not a number",
        f'left out: {path}, entry 5: "conversations": a list of messages was expected, not a number',
    ]
    assert result.stdout.splitlines() == [
        "2 conversations added, 0 changed, 0 unchanged (2 turns added, 0 changed)",
        "left out: 2 empty messages, 2 empty conversations, 2 bad entries, 1 repeated conversation",
    ]
    told = json.loads(cli("add", path, "--skip-bad", "--store", store, "--json").stdout)
    assert told["left_out"] == 2
    assert told["skipped"] == {
        "empty message": 2,
        "empty conversation": 2,
        "bad entry": 2,
        "repeated conversation": 1,
    }


def test_where_nothing_is_left_to_add_no_memory_is_made(cli: Cli, path: Path, store: Path) -> None:
    path.write_text(json.dumps([{"conversations": 7}]))
    result = cli("add", path, "--from", "sharegpt", "--skip-bad", "--store", store)
    assert result.returncode == 1
    assert result.stderr.count("left out: ") == 1
    assert result.stdout.splitlines()[-1] == "left out: 1 bad entry"
    assert not store.exists()
    assert (
        json.loads(cli("add", path, "--from", "sharegpt", "--skip-bad", "--store", store, "--json").stdout)["left_out"]
        == 1
    )


# -- one id, two conversations ------------------------------------------------------------------------------


def other(number: int) -> dict[str, Any]:
    return {**shared(number), "conversations": [{"from": "human", "value": "Something else"}]}


def test_an_id_that_means_two_conversations(cli: Cli, path: Path, store: Path) -> None:
    path.write_text(json.dumps([shared(0), shared(1), shared(0), other(0)]))
    told = "conversation 4 ('s0'): conversation 1 has this id too, and another content; which one counts is not known"
    common = ("add", path, "--store", store, "--embedder", "hashing")
    result = cli(*common)
    assert (result.returncode, result.stderr) == (2, f"latent-memory: {path}, {told}\n")
    assert not store.exists()
    result = cli(*common, "--skip-bad")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [f"{path}: ShareGPT", f"left out: {path}, {told}"]
    assert result.stdout.splitlines() == [
        "2 conversations added, 0 changed, 0 unchanged (2 turns added, 0 changed)",
        "left out: 1 repeated conversation, 1 bad entry",
    ]
    assert "Talk" not in cli("show", "s0", "--store", store).stdout
    assert "Shared number 0" in cli("show", "s0", "--store", store).stdout
    again = cli(*common, "--skip-bad", "--json")
    assert json.loads(again.stdout)["unchanged"] == 2


def test_an_id_that_means_two_conversations_of_one_archive(path: Path) -> None:
    packed = path.with_name("all.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.json", json.dumps([shared(0)]))
        archive.writestr("b.json", json.dumps([shared(0), other(0)]))
    assert "conversation 3 ('s0'): conversation 1 has this id too" in refused(packed)
    told: list[InputError] = []
    skipped: list[str] = []
    assert len(list(importers.read(packed, on_bad=told.append, on_skip=skipped.append))) == 1
    assert (len(told), skipped) == (1, ["a repeated conversation"])


def test_a_later_file_may_change_what_an_earlier_one_says(cli: Cli, path: Path, store: Path) -> None:
    path.write_text(json.dumps([shared(0)]))
    later = path.with_name("later.json")
    later.write_text(json.dumps([other(0)]))
    told = json.loads(cli("add", path, later, "--store", store, "--embedder", "hashing", "--json").stdout)
    assert (told["added"], told["changed"]) == (1, 1)


def test_ids_are_remembered_in_little_memory(path: Path) -> None:
    count = 3_000
    path.write_bytes(
        lines(*({**talk(i), "messages": [{"role": "user", "content": "x" * 1_000}]} for i in range(count)))
    )
    list(importers.read(path))
    tracemalloc.start()
    try:
        assert sum(1 for _ in importers.read(path)) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 600 * count


# -- a directory is one export ------------------------------------------------------------------------------


def test_what_is_of_another_kind_in_a_directory_is_told(cli: Cli, tmp_path: Path, store: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "conversations.json").write_text(
        json.dumps([{"uuid": "c", "chat_messages": [{"sender": "human", "text": "Hello", "created_at": "2024-05-01"}]}])
    )
    for name in ("notes.md", "memories.yaml", "talk.jsonl", "photo.jpg", "page.html"):
        (export / name).write_text("- summary: Something")
    result = cli("add", export, "--store", store, "--embedder", "hashing")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "left out: 3 files of another kind"


def test_a_file_that_fails_at_once_is_told_with_what_it_was_taken_for(cli: Cli, path: Path, store: Path) -> None:
    path.write_text(json.dumps([{"conversations": [{"from": "ghost", "value": "Boo"}]}]))
    told = cli("add", path, "--store", store).stderr
    assert told.endswith("use human or gpt (taken for: ShareGPT; --from overrules)\n")
    assert told.count("\n") == 1


def test_an_empty_file_on_the_command_line(cli: Cli, store: Path) -> None:
    result = cli("add", "-", "--store", store, stdin=b"")
    assert (result.returncode, result.stderr) == (2, "latent-memory: standard input: empty; there is nothing to add\n")
    assert not store.exists()


def test_a_zip_from_standard_input(cli: Cli, store: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("talk.json", json.dumps([shared()]))
    result = cli("add", "-", "--store", store, "--embedder", "hashing", stdin=packed.getvalue())
    assert (result.returncode, result.stderr) == (0, "standard input: ShareGPT\n")


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes on Windows")
def test_a_pipe(cli: Cli, store: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    write = "import sys; open(sys.argv[1], 'wb').write(sys.argv[2].encode())"
    with subprocess.Popen([sys.executable, "-c", write, pipe, lines(shared())]):
        result = cli("add", pipe, "--store", store, "--embedder", "hashing")
    assert (result.returncode, result.stderr) == (0, f"{pipe}: ShareGPT\n")


def test_an_interrupt_while_adding_keeps_what_was_added(
    cli: Cli, path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(json.dumps([shared(i) for i in range(600)]))
    read, calls = sharegpt.conversations, []

    def interrupted(*given: Any) -> Iterator[Conversation]:
        calls.append(given)
        for number, conversation in enumerate(read(*given)):
            if len(calls) == 2 and number == 500:
                raise KeyboardInterrupt
            yield conversation

    monkeypatch.setattr(sharegpt, "conversations", interrupted)
    stopped = cli("add", path, "--store", store, "--embedder", "hashing")
    assert stopped.returncode == 130
    last = stopped.stderr.splitlines()[-1]
    added = int(last.split()[1])
    assert 0 < added <= 500
    assert last == f"stopped; {added} conversations were added; run it again to finish"
    assert json.loads(cli("stats", "--store", store, "--json").stdout)["conversations"] == added
    told = json.loads(cli("add", path, "--store", store, "--json").stdout)
    assert (told["added"], told["unchanged"]) == (600 - added, added)
    assert told["changed"] == 0


def test_on_a_terminal_the_way_is_shown(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with inputs.opened([str(path)]) as given:
        given.check()
    told = capsys.readouterr().err
    assert f"checking {path} ({jsonl.DESCRIPTION.partition(' (')[0]}): 1 conversation" in told
    assert told.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("count", "phrase", "told"),
    [
        (1, "an empty message", "1 empty message"),
        (3, "an empty message", "3 empty messages"),
        (1_200, "a bad entry", "1,200 bad entries"),
        (2, "an unused branch", "2 unused branches"),
        (2, "a reply of a bot", "2 replies of a bot"),
        (2, "a message without text", "2 messages without text"),
        (2, "a day", "2 days"),
        (1, "a photo or a file", "1 photo or file"),
        (2, "a photo or a file", "2 photos or files"),
        (1, "a message of an unknown role", "1 message of an unknown role"),
    ],
)
def test_what_is_counted_is_told_in_words(count: int, phrase: str, told: str) -> None:
    assert many_of(count, phrase) == told
