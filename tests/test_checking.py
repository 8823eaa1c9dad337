"""Whatever is damaged is told, with what to do; what is whole is not."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from latent_memory import Conversation, LatentMemory, Turn, block_files
from latent_memory.adapters import CONFIG, MANIFEST, WEIGHTS, Manifest, seen_of
from latent_memory.checking import MOST_TOLD, CheckReport, Finding
from latent_memory.database import FILE_NAME
from latent_memory.formats import NAMES
from latent_memory.keys import KeyRing

Cli = Callable[..., CompletedProcess[str]]

LONG = " ".join(f"Sentence number {i} tells of the garden and the {i * 7} trees in it." for i in range(60))
CONVERSATIONS = [
    Conversation(
        "trip",
        [Turn("user", "When do we fly?"), Turn("assistant", "On 8 May.", datetime(2025, 3, 28, tzinfo=UTC), "Ada")],
    ),
    Conversation("garden", [Turn("user", LONG), Turn("assistant", "A large garden."), Turn("user", "Yes\0 it is.")]),
    Conversation("note", summary="They like green tea."),
]


@pytest.fixture
def full(memory: LatentMemory) -> Iterator[LatentMemory]:
    memory.add(CONVERSATIONS)
    memory.add([Conversation("bee", [Turn("user", "Bees sleep at night.")], metadata={"a": [1, "ä"]})], scope="ana")
    # Opened anew: what was added has been indexed then, and closing need not read what a test has damaged.
    memory.close()
    with LatentMemory.open(memory.path) as opened:
        yield opened


def damage(memory: LatentMemory, *statements: str) -> None:
    connection = sqlite3.connect(memory.path / FILE_NAME)
    for statement in statements:
        assert connection.execute(statement).rowcount != 0, statement
    connection.commit()
    connection.close()


def only(report: CheckReport) -> Finding:
    assert not report.sound
    (problem,) = report.problems
    assert problem.advice
    assert problem.where
    return problem


def closed_to_others(memory: LatentMemory) -> None:
    memory.path.chmod(0o700)


def test_what_is_whole_is_sound(full: LatentMemory) -> None:
    closed_to_others(full)
    report = full.check()
    assert report == CheckReport(None, conversations=4, turns=6, passages=full.stats().passages)
    assert report.sound
    assert full.check(scope="ana") == CheckReport("ana", conversations=1, turns=1, passages=1)
    assert full.check(scope="nobody") == CheckReport("nobody")


def test_a_new_memory_is_sound(memory: LatentMemory) -> None:
    assert memory.check().sound


def test_it_stays_sound_whatever_is_done_to_it(full: LatentMemory) -> None:
    full.add(Conversation("trip", [Turn("user", "When do we sail?"), Turn("user", LONG), Turn("user", "Soon.")]))
    full.add(
        [Conversation(f"c{i}", [Turn("user", f"Said {i}."), Turn("assistant", LONG[: 40 * i + 9])]) for i in range(40)]
    )
    full.extend("c3", lambda _: Conversation("c3", [Turn("user", "Only this.")]), whole=True)
    full.forget(["garden", "c7"])
    full.recall("sail")
    full.close()
    with LatentMemory.open(full.path) as again:
        again.recall("sail")
        again.forget("c9")
        assert again.check().sound
        again.reembed("hashing")
        assert again.check().sound
        again.forget(everything=True)
        assert again.check().sound


def test_progress_ends_at_the_whole(full: LatentMemory) -> None:
    told: list[tuple[int, int]] = []
    full.check(progress=lambda done, of: told.append((done, of)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == 2 * full.stats().passages


TURN = "(SELECT conversation_key FROM conversations WHERE conversation_id = 'trip') AND position = "
PASSAGE = f"(SELECT passage_id FROM passages WHERE conversation_key = {TURN} 0)"


@pytest.mark.parametrize(
    ("statement", "kind", "where", "detail"),
    [
        (f"UPDATE turns SET text = 'When do we die?' WHERE conversation_key = {TURN} 0", "turn", "turn 0", "not what"),
        (f"UPDATE turns SET role = 'system' WHERE conversation_key = {TURN} 0", "turn", "turn 0", "not what"),
        (
            f"UPDATE turns SET text = CAST(x'ff41' AS TEXT) WHERE conversation_key = {TURN} 1",
            "turn",
            "turn 1",
            "damaged",
        ),
        (f"UPDATE passages SET role = 3 WHERE conversation_key = {TURN} 0", "passage", "turn 0", "another role"),
        (f"DELETE FROM passages WHERE conversation_key = {TURN} 1", "passage", "turn 1", "cannot be found"),
        ("DELETE FROM passages WHERE piece = 1", "passage", "'garden'", "do not make up its text"),
        ("UPDATE passages SET text = upper(text) WHERE piece = 1", "passage", "'garden'", "do not make up its text"),
        ("UPDATE passages SET start = start + 1 WHERE piece = 1", "passage", "'garden'", "do not make up its text"),
        ("DELETE FROM passages WHERE position = -1", "passage", "'note'", "can be found"),
        (f"DELETE FROM vectors WHERE passage_id = {PASSAGE}", "vector", "turn 0", "no vector"),
        (f"UPDATE vectors SET vector = x'00000000' WHERE passage_id = {PASSAGE}", "vector", "turn 0", "1 numbers"),
        ("UPDATE conversations SET metadata = '[1' WHERE conversation_id = 'bee'", "conversation", "'bee'", "damaged"),
        (
            "UPDATE conversations SET timestamp = 'now' WHERE conversation_id = 'bee'",
            "conversation",
            "'ana'",
            "damaged",
        ),
        ("UPDATE conversations SET epoch = 1 WHERE conversation_id = 'bee'", "conversation", "'bee'", "times differ"),
        ("UPDATE scopes SET added = 0 WHERE name = 'ana'", "index", "'ana'", "not told"),
    ],
)
def test_a_change_by_hand_is_told(full: LatentMemory, statement: str, kind: str, where: str, detail: str) -> None:
    # As SQLite does it for us: with a passage goes its vector.
    orphans = "DELETE FROM vectors WHERE passage_id NOT IN (SELECT passage_id FROM passages)"
    damage(full, statement, *([orphans] if statement.startswith("DELETE FROM passages") else []))
    problem = only(full.check())
    assert problem.kind == kind
    assert where in problem.where
    assert detail in problem.detail


def test_a_missing_turn_and_a_missing_conversation_are_told(full: LatentMemory) -> None:
    damage(full, f"DELETE FROM turns WHERE conversation_key = {TURN} 0")
    assert {(p.kind, p.detail) for p in full.check().problems} == {
        ("turn", "turn 0 is missing, of 2"),
        ("turn", "its passages are there, and the turn is not"),
    }
    damage(full, "DELETE FROM conversations WHERE conversation_id = 'bee'")
    told = [p for p in full.check().problems if p.kind == "database"]
    assert {p.detail for p in told} == {
        "1 rows of turns belong to conversations that are not there",
        "1 rows of passages belong to conversations that are not there",
    }


@pytest.mark.parametrize(
    ("number", "detail"),
    [(float("nan"), "NaN or infinite"), (float("inf"), "NaN or infinite"), (0.5, "length"), (1e30, "NaN or infinite")],
)
def test_vectors_that_are_none_are_told_and_mended_by_what_is_advised(
    full: LatentMemory, number: float, detail: str
) -> None:
    wrong = np.full(full.embedder.dimension, number, "<f4").tobytes().hex()
    damage(full, f"UPDATE vectors SET vector = x'{wrong}' WHERE passage_id = {PASSAGE}")
    problem = only(full.check())
    assert problem.kind == "vector"
    assert problem.where == "conversation 'trip' of scope 'default', turn 0"
    assert detail in problem.detail
    assert "latent-memory reembed --embedder" in problem.advice
    full.reembed("hashing")
    assert full.check().sound


def test_a_changed_turn_is_mended_by_what_is_advised(full: LatentMemory) -> None:
    damage(full, "UPDATE turns SET text = 'x' WHERE text LIKE '%fly%'", "DELETE FROM turns WHERE name = 'Ada'")
    problems = full.check().problems
    assert len(problems) == 2
    assert all("add the conversation again" in p.advice for p in problems)
    full.forget("trip")
    full.add(CONVERSATIONS)
    assert full.check().sound


def test_many_of_a_kind_are_counted(full: LatentMemory) -> None:
    full.add([Conversation(f"c{i}", [Turn("user", f"Said {i}.")]) for i in range(50)])
    damage(full, "UPDATE turns SET text = text || '!' WHERE text LIKE 'Said%'")
    report = full.check()
    assert len(report.problems) == MOST_TOLD
    assert report.more == {"turn": 50 - MOST_TOLD}


def test_another_scope_is_not_told_of(full: LatentMemory) -> None:
    damage(
        full, "UPDATE turns SET text = 'x' WHERE text LIKE 'Bees%'", f"DELETE FROM vectors WHERE passage_id = {PASSAGE}"
    )
    assert only(full.check(scope="ana")).where == "conversation 'bee', turn 0"
    assert only(full.check(scope="default")).where == "conversation 'trip', turn 0"


def test_passages_behind_another_wall_are_told(full: LatentMemory) -> None:
    damage(full, "UPDATE passages SET scope_id = 1 WHERE scope_id = 2")
    assert "another scope" in full.check().problems[0].detail
    assert "another scope" in full.check(scope="ana").problems[0].detail


def test_flipped_bytes_are_told(full: LatentMemory, cli: Cli) -> None:
    full.close()
    file = full.path / FILE_NAME
    whole = bytearray(file.read_bytes())
    page = int.from_bytes(whole[16:18], "big")
    assert len(whole) > 8 * page
    told = 0
    for number in range(1, len(whole) // page):
        flipped = bytearray(whole)
        for i in range(number * page, number * page + 40):
            flipped[i] ^= 0xFF
        file.write_bytes(flipped)
        result = cli("check", "--store", full.path, "--json")
        # A page may be free, and what it holds nobody's.
        assert result.returncode in (0, 1), result.stderr
        report = json.loads(result.stdout)
        assert report["sound"] == (result.returncode == 0)
        told += result.returncode
        assert all(p["advice"] and p["detail"] for p in report["problems"])
    assert told > 8


def test_a_flipped_letter_is_told(full: LatentMemory) -> None:
    """SQLite has no sums over its pages, and takes it for what was written."""
    full.close()
    file = full.path / FILE_NAME
    file.write_bytes(file.read_bytes().replace(b"When do we fly?", b"When do we fry?"))
    with LatentMemory.open(full.path) as again:
        assert again.get("trip") is not None
        assert {p.kind for p in again.check().problems} == {"turn"}


def test_a_file_that_is_no_database_is_told(full: LatentMemory, cli: Cli) -> None:
    full.close()
    (full.path / FILE_NAME).write_bytes(b"no database" * 1000)
    result = cli("check", "--store", full.path)
    assert result.returncode == 1
    assert "not readable as a database" in result.stdout
    assert "backup" in result.stdout


# -- what is derived ------------------------------------------------------------------------------------------


def indexed(memory: LatentMemory) -> Path:
    """Bring a memory's indexes to the disk, and return the directory of the scope's."""
    memory.add([Conversation(f"c{i}", [Turn("user", f"Said {i} of the matter {i % 7}.")]) for i in range(300)])
    memory.close()
    (scope,) = [path for path in (memory.path / "indexes").iterdir() if (path / "passages").exists()]
    return scope


def test_a_damaged_index_is_a_note(memory: LatentMemory) -> None:
    scope = indexed(memory)
    with LatentMemory.open(memory.path) as again:
        closed_to_others(again)
        assert again.check().notes == ()
        (segment,) = (scope / "passages").glob("*.term")
        data = bytearray(segment.read_bytes())
        data[0] ^= 1
        segment.write_bytes(data)
        report = again.check()
        assert report.sound
        (note,) = report.notes
        assert note.where == f"indexes/{scope.name}/passages"
        assert "is damaged" in note.detail


def test_an_index_of_another_past_is_a_note(memory: LatentMemory) -> None:
    indexed(memory)
    # As if an older state of the database were put back, and others added to it.
    damage(memory, "DELETE FROM turns", "DELETE FROM vectors", "DELETE FROM passages", "DELETE FROM conversations")
    damage(memory, "UPDATE scopes SET added = 0", "UPDATE sqlite_sequence SET seq = 0")
    with LatentMemory.open(memory.path) as again:
        closed_to_others(again)
        again.add(CONVERSATIONS)
        report = again.check()
        assert report.sound
        assert {note.detail for note in report.notes} == {"was made from another state of the store"}
        assert again.recall("green tea", 1)[0].passage.conversation_id == "note"


def test_an_index_that_lacks_something_is_a_problem_that_deleting_mends(memory: LatentMemory) -> None:
    scope = indexed(memory)
    with LatentMemory.open(memory.path) as again:
        # As if a passage had come in with an id that the index had passed already.
        damage(
            memory,
            "INSERT INTO conversations SELECT 999, scope_id, 'late', title, timestamp, epoch, type, summary, metadata, "
            "generated, 0 FROM conversations LIMIT 1",
            "INSERT INTO turns SELECT 999, position, role, name, text, timestamp, digest FROM turns LIMIT 1",
            "INSERT INTO passages SELECT -5, scope_id, 999, 0, 0, 0, NULL, words, role, epoch, asks FROM passages "
            "LIMIT 1",
            "INSERT INTO vectors SELECT -5, vector FROM vectors LIMIT 1",
        )
        problem = only(again.check())
        assert problem.where == f"indexes/{scope.name}/passages"
        assert "has 300 passages, and 301 were added" in problem.detail
    shutil.rmtree(scope / "passages")
    with LatentMemory.open(memory.path) as again:
        again.recall("matter", 1)
        assert again.check().sound


def test_a_vector_index_is_looked_at(memory: LatentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_memory.memory.EXACT_LIMIT", 500)
    memory.add([Conversation(f"c{i}", [Turn("user", f"Said {i} of the matter {i % 7}.")]) for i in range(600)])
    memory.recall("matter")
    (file,) = (memory.path / "indexes").glob("*/dense.faiss")
    where = file.relative_to(memory.path).as_posix()
    closed_to_others(memory)
    assert memory.check() == CheckReport(None, 600, 600, 600)
    # Behind is no fault: what was forgotten since is taken out when it is read.
    memory.add(Conversation("new", [Turn("user", "Said now.")]))
    memory.forget("c1")
    assert memory.check().sound
    memory.close()
    with LatentMemory.open(memory.path) as again:
        damage(again, "DELETE FROM vectors WHERE passage_id = 3", "DELETE FROM passages WHERE passage_id = 3")
        assert where in {p.where for p in again.check().problems if p.kind == "index"}
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert where in {note.where for note in again.check().notes}


def test_an_index_of_a_scope_that_is_gone_is_a_problem(full: LatentMemory) -> None:
    left = full.path / "indexes" / "77" / "passages"
    left.mkdir(parents=True)
    problem = only(full.check())
    assert (problem.kind, problem.where) == ("index", "indexes/77")
    assert full.check(scope="default").sound


def test_blocks_of_what_was_forgotten_are_told(full: LatentMemory) -> None:
    directory = full.block_directory
    for scope, conversation in (("default", "trip"), ("default", "gone"), ("ana", "trip"), ("ben", "trip")):
        place = block_files.place(directory, scope, conversation)
        place.mkdir(parents=True)
        (place / "block.safetensors").write_bytes(b"x")
    prefixes = block_files.prefixes(directory, "default")
    prefixes.mkdir()
    (prefixes / "prefix-1.safetensors").write_bytes(b"x")
    told = {p.where for p in full.check().problems}
    gone = [
        block_files.place(directory, "default", "gone"),
        block_files.place(directory, "ana", "trip"),
        block_files.place(directory, "ben"),
    ]
    assert told == {path.relative_to(full.path).as_posix() for path in gone}
    assert len(full.check(scope="default").problems) == 1
    full.forget("gone")
    full.forget("trip", scope="ana")
    full.forget("trip", scope="ben")
    assert {p.where for p in full.check().problems} <= {gone[2].relative_to(full.path).as_posix()}


def test_adapters_that_have_seen_what_is_forgotten_are_told(full: LatentMemory) -> None:
    directory = full.adapter_directory("ana")
    directory.mkdir(parents=True)
    bee = full.get("bee", scope="ana")
    assert bee is not None
    model = {"name": "tiny", "dtype": "fp32", "fingerprint": "0"}
    Manifest("ana", model, {}, True, {WEIGHTS: {}, CONFIG: {}}, {}, seen_of([bee], {"bee": [0]})).write(directory)
    assert full.check().sound
    full.forget("bee", scope="ana")
    problem = only(full.check())
    assert (problem.kind, problem.where) == ("adapter", "adapter 'ana'")
    assert "retrain" in problem.advice
    assert full.check(scope="default").sound
    (directory / MANIFEST).write_text("{", encoding="utf-8")
    assert "cannot be told" in only(full.check()).detail
    assert full.check(scope="ana").sound


def test_damaged_keys_are_told(full: LatentMemory) -> None:
    with KeyRing(full.path) as keys:
        keys.create(scopes=["ana"])
    assert full.check().sound
    (full.path / "keys.sqlite").write_bytes(b"none" * 2000)
    assert only(full.check()).kind == "keys"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_files_that_anybody_may_change_are_told(full: LatentMemory) -> None:
    outside = [parent for parent in full.path.resolve().parents if not parent.stat().st_mode & stat.S_IXOTH]
    for parent in outside:
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    full.path.chmod(0o755)
    try:
        (full.path / FILE_NAME).chmod(0o644)
        report = full.check()
        assert report.sound
        assert "can read it" in report.notes[-1].detail
        (full.path / FILE_NAME).chmod(0o666)
        problem = only(full.check())
        assert problem.kind == "access"
        assert problem.advice == f"chmod o-w {full.path / FILE_NAME}"
        assert full.check(scope="default").sound
        # What is in a directory that is closed to others, they cannot reach.
        full.path.chmod(0o700)
        assert full.check() == CheckReport(None, 4, 6, full.stats().passages)
    finally:
        for parent in outside:
            parent.chmod(parent.stat().st_mode & ~stat.S_IXOTH)


# -- while others write, in files, on the command line -----------------------------------------------------------


def test_nothing_is_wrong_while_others_write(full: LatentMemory) -> None:
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            full.add(
                [Conversation(f"w{number}-{i}", [Turn("user", f"Said {i}."), Turn("user", LONG)]) for i in range(5)]
            )
            full.recall("said", 1)
            full.forget(f"w{number - 1}-3")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(15):
            report = full.check()
            assert report.problems == ()
            assert report.turns >= 6
    finally:
        over.set()
        writer.join()


@pytest.mark.parametrize("layout", NAMES)
def test_files_are_checked(full: LatentMemory, tmp_path: Path, layout: str, cli: Cli) -> None:
    suffix = {"hdf5": ".h5", "pickle": ".pkl"}.get(layout, "")
    path = tmp_path / f"copy{suffix}"
    full.save(path, layout)
    result = cli("check", "--store", path, "--json")
    assert result.returncode == 0, result.stdout
    assert json.loads(result.stdout)["passages"] == full.stats().passages
    file = max((each for each in (path.iterdir() if path.is_dir() else [path])), key=lambda each: each.stat().st_size)
    data = bytearray(file.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 64):
        data[i] ^= 0x55
    file.write_bytes(data)
    result = cli("check", "--store", path)
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert "SHA-256" in result.stdout or "not readable" in result.stdout, result.stdout


def test_each_bad_row_of_a_file_is_told(full: LatentMemory, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "foreign"
    path.mkdir()
    np.save(path / "embeddings.npy", np.eye(3, 8, dtype=np.float32))
    rows = [{"conversation_id": "1", "summary": "One.", "timestamp": 1}, {"summary": "Two."}, {"conversation_id": "3"}]
    (path / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    result = cli("check", "--store", path, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert [p["kind"] for p in report["problems"]] == ["conversation", "conversation"]
    assert {note["kind"] for note in report["notes"]} <= {"database", "access"}


def test_the_command_tells_people_and_programs(full: LatentMemory, cli: Cli) -> None:
    closed_to_others(full)
    sound = cli("check", "--store", full.path)
    passages = full.stats().passages
    assert (sound.returncode, sound.stdout) == (0, f"sound: 4 conversations, 6 turns, {passages} passages\n")
    damage(full, "UPDATE turns SET text = 'x' WHERE text LIKE 'Bees%'")
    wrong = cli("check", "--store", full.path)
    assert wrong.returncode == 1
    assert wrong.stdout.splitlines()[0] == "conversation 'bee' of scope 'ana', turn 0: its text is not what was added"
    assert wrong.stdout.splitlines()[-1].startswith("1 problem: ")
    assert cli("check", "--store", full.path, "--scope", "default").returncode == 0
    told = json.loads(cli("check", "--store", full.path, "--json").stdout)
    assert told["sound"] is False
    assert told["problems"][0]["kind"] == "turn"
    assert set(told) == {"sound", "scope", "conversations", "turns", "passages", "problems", "more", "notes"}
    assert cli("check", "--store", full.path / "nowhere").returncode == 2


def test_an_interrupt_changes_nothing(full: LatentMemory, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latent_memory.checking._Checking._vectors", interrupted)
    result = cli("check", "--store", full.path)
    assert result.returncode == 130
    assert "nothing was changed" in result.stderr
    monkeypatch.undo()
    assert full.check().sound
    full.add(Conversation("after", [Turn("user", "It can be written to.")]))
