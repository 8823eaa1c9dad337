"""Summaries alone, in JSON, YAML and SQLite: read as people keep them, written so that they are read again."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError, MissingExtraError, StoreError
from latent_memory.formats import summaries

Cli = Callable[..., CompletedProcess[str]]

LOOPS = {
    "conversation_id": "0328711",
    "title": "Visualization of Algorithmic Loops",
    "timestamp": "March 28th, 11am",
    "type": "image generation",
    "summary": "The user asked for an image of feedback loops in learning algorithms, as nested spirals.",
}
BREAD = {
    "conversation_id": "0402118",
    "title": "Sourdough",
    "timestamp": "2025-04-02T18:00:00+02:00",
    "type": "cooking",
    "summary": "How wet the dough should be with weaker flour, and how long it rests in a cold kitchen.",
}
MEMORIES = [LOOPS, BREAD]
WRITTEN = datetime(2025, 6, 1, tzinfo=UTC)
FILE_TIME = frozenset({"timestamp:file"})
CREATE = (
    "CREATE TABLE conversation_summaries (conversation_id TEXT PRIMARY KEY, title TEXT, timestamp TEXT, "
    "type TEXT, summary TEXT)"
)


def put(path: Path, content: object) -> Path:
    """Write a file, of JSON if it is no text, that was written last on 1 June 2025."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    os.utime(path, (WRITTEN.timestamp(), WRITTEN.timestamp()))
    return path


def database(path: Path, *statements: str | tuple[str, Any], wal: bool = False) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if wal:
            connection.execute("PRAGMA journal_mode = WAL")
        for statement in statements:
            sql, values = (statement, ()) if isinstance(statement, str) else statement
            connection.execute(sql, values)
    os.utime(path, (WRITTEN.timestamp(), WRITTEN.timestamp()))
    return path


def table_of(path: Path, *entries: dict[str, Any], wal: bool = False) -> Path:
    rows = [("INSERT INTO conversation_summaries VALUES (?, ?, ?, ?, ?)", tuple(entry.values())) for entry in entries]
    return database(path, CREATE, *rows, wal=wal)


def read(path: Path, **options: Any) -> list[Conversation]:
    return list(summaries.read(path, **options))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 500 + len(str(path))
    return told


def five(found: Conversation) -> tuple[Any, ...]:
    return found.conversation_id, found.title, found.timestamp, found.type, found.summary


@pytest.fixture(params=["memories.json", "memories.yaml", "memories.sqlite"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def written(path: Path, entries: list[dict[str, Any]]) -> Path:
    """Write entries as other programs would."""
    if path.suffix == ".sqlite":
        return table_of(path, *entries)
    return put(path, yaml.safe_dump(entries, sort_keys=False) if path.suffix == ".yaml" else entries)


# -- what is read -------------------------------------------------------------------------------------------


def test_each_form_says_the_same(path: Path) -> None:
    loops, bread = read(written(path, MEMORIES))
    assert loops == Conversation(
        "0328711",
        title=LOOPS["title"],
        timestamp=datetime(2025, 3, 28, 11),
        type="image generation",
        summary=LOOPS["summary"],
        metadata={"timestamp_as_written": "March 28th, 11am"},
        generated=FILE_TIME,
    )
    assert bread == Conversation(
        "0402118",
        title="Sourdough",
        timestamp=datetime(2025, 4, 2, 18, tzinfo=timezone(timedelta(hours=2))),
        type="cooking",
        summary=BREAD["summary"],
    )


BY_ID = {entry["conversation_id"]: {k: v for k, v in entry.items() if k != "conversation_id"} for entry in MEMORIES}
SHAPES = {
    "an array": MEMORIES,
    "by id": BY_ID,
    "a list under a key": {"version": 2, "conversations": MEMORIES},
    "another list under a key": {"memories": MEMORIES},
    "by id under a key": {"memories": BY_ID},
    "an object a line": "\n".join(map(json.dumps, MEMORIES)) + "\n",
    "an object over several lines": json.dumps(BY_ID, indent=2),
    "an array over several lines": json.dumps(MEMORIES, indent=2),
    "a byte order mark": "\ufeff" + json.dumps(MEMORIES),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_json(tmp_path: Path, shape: str) -> None:
    expected = read(put(tmp_path / "plain.json", MEMORIES))
    path = put(tmp_path / "memories.json", SHAPES[shape])
    assert read(path) == expected
    assert importers.recognise(path) == "summaries"
    # The content tells, not the name.
    assert importers.recognise(path.rename(tmp_path / "file")) == "summaries"
    assert read(tmp_path / "file") == expected


def test_one_memory_alone(tmp_path: Path) -> None:
    assert [c.conversation_id for c in read(put(tmp_path / "a.json", LOOPS))] == ["0328711"]
    assert [c.conversation_id for c in read(put(tmp_path / "a.yaml", yaml.safe_dump(LOOPS)))] == ["0328711"]
    (least,) = read(put(tmp_path / "b.json", {"summary": "They like tea."}))
    assert five(least) == (None, None, WRITTEN, None, "They like tea.")


def test_texts_by_id(tmp_path: Path) -> None:
    content = {"tea": "They like green tea.", "dog": "Their dog is called Otto."}
    for path in (put(tmp_path / "a.json", content), put(tmp_path / "a.yaml", yaml.safe_dump(content, sort_keys=False))):
        assert [(c.conversation_id, c.summary) for c in read(path)] == list(content.items())
        # It could be anything, such as a program's settings.
        with pytest.raises(InputError, match="unknown format"):
            importers.recognise(path)
    plain = put(tmp_path / "b.yaml", "0328711: Loops\n0402118: Bread\n")
    assert [c.conversation_id for c in read(plain)] == ["0328711", "0402118"]


@pytest.mark.parametrize(
    "content",
    [
        "- {conversation_id: 0328711, summary: Loops, when: now}\n- {conversation_id: 0402118, summary: Bread}\n",
        "# Two\n---\nconversation_id: 0328711\nsummary: Loops\n---\nconversation_id: 0402118\nsummary: Bread\n...\n",
        "memories:\n- conversation_id: 0328711\n  summary: Loops\n- {conversation_id: '0402118', summary: Bread}\n",
        "0328711:\n  summary: Loops\n0402118:\n  summary: Bread\n",
        "---\n---\n- conversation_id: 0328711\n  summary: >\n    Loops\n"
        "---\n- ? conversation_id\n  : 0402118\n  summary: !!str Bread\n",
    ],
)
def test_shapes_of_yaml(tmp_path: Path, content: str) -> None:
    path = put(tmp_path / "memories.yaml", content)
    found = [(c.conversation_id, (c.summary or "").strip()) for c in read(path)]
    assert found == [("0328711", "Loops"), ("0402118", "Bread")]
    assert importers.recognise(path) == "summaries"


def test_yaml_is_recognised_by_its_content(tmp_path: Path) -> None:
    path = put(tmp_path / "memories", yaml.safe_dump(MEMORIES, sort_keys=False))
    assert importers.recognise(path) == "summaries"
    assert len(read(path)) == 2
    talk = put(tmp_path / "talk.yaml", "- messages:\n  - {role: user, content: Hi}\n  summary: Hello\n")
    with pytest.raises(InputError, match="unknown format"):
        importers.recognise(talk)


def test_markdown_that_begins_with_fields_is_no_yaml(tmp_path: Path) -> None:
    talk = "---\ntitle: A talk\nsummary: About a key\n---\n\nUser: Where is it?\nAssistant: Under the mat.\nUser: Oh.\n"
    for name in ("talk.md", "talk.txt"):
        assert importers.recognise(put(tmp_path / name, talk)) == "transcript"
    two = "---\ntitle: A\nsummary: x\n---\ntitle: B\nsummary: y\n---\n"
    assert importers.recognise(put(tmp_path / "two", two)) == "summaries"


@pytest.mark.parametrize(
    "value",
    [
        {"summary": "x", "title": "y", "messages": [{"role": "user", "content": "Hi"}]},
        {"name": "a package", "version": "1"},
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {"memories": []},
        {"summary": "alone", "of": "something else"},
        {},
    ],
)
def test_what_holds_no_summaries_is_not_taken_for_them(tmp_path: Path, value: object) -> None:
    path = put(tmp_path / "file.json", [value])
    with suppress(InputError):
        assert importers.recognise(path) != "summaries"


def test_yaml_stays_as_it_is_written(tmp_path: Path) -> None:
    path = put(
        tmp_path / "memories.yaml",
        "- conversation_id: 0123456\n  title: 12:30\n  timestamp: 2025-03-28\n  type: yes\n  summary: 1e3\n"
        "  octal: 0123\n  colon: 12:30:45\n  day: 2025-03-28\n  number: 12\n  float: 1.5\n  flag: true\n"
        "  quoted: 'true'\n  huge: 1e999\n  nothing: ~\n  tags: [a, 1, null]\n"
        "- {conversation_id: 1_000, title: null, timestamp: 1743156000, summary: 'null'}\n",
    )
    first, second = read(path)
    assert five(first) == ("0123456", "12:30", datetime(2025, 3, 28), "yes", "1e3")
    assert first.metadata == {
        **{"octal": "0123", "colon": "12:30:45", "day": "2025-03-28", "number": 12, "float": 1.5, "flag": True},
        "huge": "1e999",
        **{"quoted": "true", "tags": ["a", 1, None], "timestamp_as_written": "2025-03-28"},
    }
    assert five(second) == ("1_000", None, datetime(2025, 3, 28, 10, tzinfo=UTC), None, "null")


def test_aliases_and_merges_within_reason(tmp_path: Path) -> None:
    content = (
        "- &a {summary: One, tags: &t [x, y], type: note}\n- {<<: *a, summary: Two}\n- {summary: Three, tags: *t}\n"
    )
    found = read(put(tmp_path / "memories.yaml", content))
    assert [(c.summary, c.type, c.metadata) for c in found] == [
        ("One", "note", {"tags": ["x", "y"]}),
        ("Two", "note", {"tags": ["x", "y"]}),
        ("Three", None, {"tags": ["x", "y"]}),
    ]


def test_other_keys_are_metadata(tmp_path: Path) -> None:
    (found,) = read(
        put(tmp_path / "a.json", [{**BREAD, "tags": ["food"], "stars": 5, "none": None, "metadata": {"stars": 6}}])
    )
    assert found.metadata == {"tags": ["food"], "stars": 6}


def test_numbers_are_texts_where_texts_are_wanted(tmp_path: Path) -> None:
    (found,) = read(put(tmp_path / "a.json", [{"conversation_id": 7, "title": 1984, "type": 1.5, "summary": "x"}]))
    assert (*five(found)[:2], found.type) == ("7", "1984", "1.5")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (5, "an object was expected, not a number"),
        ("text", "an object was expected, not a text"),
        (None, "an object was expected, not null"),
        ([LOOPS], "an object was expected, not a list"),
        ({}, '"summary": a text was expected, not none'),
        ({"title": "x"}, '"summary": a text was expected, not none'),
        ({"summary": None}, '"summary": a text was expected, not null'),
        ({"summary": " "}, '"summary": a text was expected, not empty'),
        ({"summary": ["x"]}, '"summary": a text was expected, not a list'),
        ({"summary": {"x": 1}}, '"summary": a text was expected, not an object'),
        ({**BREAD, "conversation_id": True}, '"conversation_id": a text was expected, not true or false'),
        ({**BREAD, "title": {"a": 1}}, '"title": a text was expected, not an object'),
        ({**BREAD, "metadata": 5}, '"metadata": an object was expected, not a number'),
        ({**BREAD, "messages": [{"role": "user", "content": "Hi"}]}, 'it has "messages"'),
        ({"summary": "a\ud800"}, "half of a surrogate pair"),
        ({"summary": "a", "more": "\ud800"}, "half of a surrogate pair"),
        ({"summary": "a", "more": float("nan")}, "cannot be written as JSON"),
        (BREAD, "\"conversation_id\": '0402118' is that of entry 1 too"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_bad_entry_is_told_with_its_place(tmp_path: Path, entry: object, told: str) -> None:
    path = put(tmp_path / "memories.json", [BREAD, entry, LOOPS])
    message = refused(path, name="my file")
    assert message.startswith("my file, entry 2: ")
    assert told in message
    bad: list[InputError] = []
    assert [c.conversation_id for c in read(path, on_bad=bad.append)] == ["0402118", "0328711"]
    assert len(bad) == 1


def test_ids_that_stand_twice(tmp_path: Path) -> None:
    listed = put(tmp_path / "a.yaml", "- {conversation_id: a, summary: x}\n\n- {conversation_id: a, summary: y}\n")
    assert "line 3: \"conversation_id\": 'a' is that of line 1 too" in refused(listed)
    for keyed in (
        put(tmp_path / "b.json", '{"a": {"summary": "x"}, "b": {"summary": "y"}, "a": {"summary": "z"}}'),
        put(tmp_path / "b.yaml", "a: {summary: x}\nb: {summary: y}\na: {summary: z}\n"),
    ):
        assert f"{keyed}, 'a': stands twice" in refused(keyed)
        assert [c.conversation_id for c in read(keyed, on_bad=lambda _: None)] == ["b"]
    without = put(tmp_path / "c.json", [{"summary": "x"}, {"summary": "x"}])
    assert len(read(without)) == 2


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", "", None),
        ("a.json", "[]", None),
        ("a.json", "{}", None),
        ("a.yaml", "", None),
        ("a.yaml", "# nothing\n---\n", None),
        ("a.json", '[{"summary": "x"', "not JSON ("),
        ("a.json", '{"summary": "x"', "not JSON ("),
        ("a.json", "hello", "not JSON ("),
        ("a.json", '{"a": 1, "b": "x"}', "no summaries: an object with a"),
        ("a.json", b'{"summary": "\xff"}', "not UTF-8 (byte 13)"),
        ("a.json", b'[{"summary": "\xff"}]', "not UTF-8 ("),
        ("a.json", '{"a":' * 100_000, "not JSON (nested too deeply"),
        ("a.yaml", "hello", "an object was expected, not a text"),
        ("a.yaml", "summary: [", "not YAML ("),
        ("a.yaml", "a: b: c", "not YAML ("),
        ("a.yaml", b"summary: \xff", "not YAML ("),
        ("a.yaml", "summary: a\x00b", "not YAML ("),
        ("a.yaml", "[" * 100_000, "nested too deeply"),
        ("a.yaml", "- " * 100_000, "nested too deeply"),
        ("a.yaml", "{a: " * 100_000, "nested too deeply"),
        ("a.yaml", "? " * 100_000, "nested too deeply"),
        ("a.yaml", "- {[a]: b, summary: x}", "a key that is no text: line 1"),
        ("a.db", b"hello, this is no database at all", "not readable as an SQLite database"),
        ("a.db", b"SQLite format 3\0" + b"x" * 200, "not readable as an SQLite database"),
    ],
)
def test_a_file_that_is_broken_or_empty(tmp_path: Path, name: str, content: str | bytes, told: str | None) -> None:
    path = put(tmp_path / name, content)
    if told is None:
        assert read(path) == []
        return
    message = refused(path)
    assert message.startswith(str(path))
    assert told in message
    bad: list[InputError] = []
    assert read(path, on_bad=bad.append) == []
    assert len(bad) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for wrong in (tmp_path / "none.json", Path("a\0b"), tmp_path / ("x" * 5_000)):
        assert refused(wrong).startswith("cannot read ")
    assert "Is a directory" in refused(tmp_path)
    assert "kind: 'csv' is unknown" in refused(put(tmp_path / "a.csv", "x"), kind="csv")


# -- attacks ------------------------------------------------------------------------------------------------


LAUGHS = (
    "a: &a ["
    + ", ".join(["lol"] * 9)
    + "]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "- !!python/object/apply:os.system ['touch hacked']\n",
            "the tag !!python/object/apply:os.system asks for more",
        ),
        ("- {summary: !!python/name:os.system x}\n", "the tag !!python/name:os.system asks for more"),
        (
            "- summary: x\n  more: !!python/object/new:type {args: [z, !!python/tuple [], {}]}\n",
            "!!python/object/new:type",
        ),
        ("- !<tag:yaml.org,2002:python/module:os> ''\n", "the tag !!python/module:os asks for more"),
        ("!!python/object:os.x\nsummary: x\n", "asks for more than plain data, and is refused: line 1"),
        ("- summary: x\n  data: !!binary aGVsbG8=\n", "the tag !!binary asks for more"),
        ("- summary: x\n  data: !mine 5\n", "the tag !mine asks for more"),
        (LAUGHS, "its aliases repeat far more than the file holds, and are refused"),
        (
            "- summary: &s " + "x" * 50_000 + "\n" + "- {summary: y, m: [" + ", ".join(["*s"] * 1_000) + "]}\n",
            "aliases",
        ),
        ("- &a [*a]\n", "*a is not told before, or holds itself: line 1"),
        ("- &a {summary: x, self: *a}\n", "*a is not told before, or holds itself: line 1"),
        ("- *none\n", "*none is not told before"),
    ],
    ids=lambda value: value[:30],
)
def test_yaml_that_is_an_attack_is_refused(
    tmp_path: Path, content: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = put(tmp_path / "memories.yaml", content)
    tracemalloc.start()
    try:
        assert told in refused(path)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert [file.name for file in tmp_path.iterdir()] == ["memories.yaml"]


@pytest.mark.parametrize(
    "view",
    [
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x conversation_id, 'a' summary FROM c",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
        "SELECT x conversation_id, 'a' summary FROM c WHERE x < 0",
        "SELECT 1 conversation_id, printf('%.*c', 900000000, 'x') summary",
    ],
    ids=["rows without end", "work without end", "a text that fills the memory"],
)
def test_a_view_that_was_made_to_hurt_is_refused(view: str, tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", f"CREATE VIEW conversation_summaries AS {view}")
    with pytest.raises(InputError, match=r"a\.db.*(far more work|too big|not null)"):
        for _ in summaries.read(path):
            pass


def test_names_are_quoted(tmp_path: Path) -> None:
    table, column = 'x"; DROP TABLE keep; --', 'a "b" [c]'
    quoted = [name.replace('"', '""') for name in (table, column)]
    path = database(
        tmp_path / "a.db",
        "CREATE TABLE keep (x)",
        f'CREATE TABLE "{quoted[0]}" (conversation_id, "{quoted[1]}")',
        f"INSERT INTO \"{quoted[0]}\" VALUES ('c', 'They like tea.')",
    )
    (found,) = read(path, table=table, columns={"summary": column})
    assert found.summary == "They like tea."
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM keep").fetchone() == (0,)
    other = tmp_path / "b.db"
    summaries.write(other, [found], table=table)
    assert [five(c) for c in read(other, table=table)] == [five(found)]


# -- SQLite -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wal", [False, True])
def test_a_database_is_only_read(tmp_path: Path, wal: bool) -> None:
    path = table_of(tmp_path / "memories.db", *MEMORIES, wal=wal)
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    assert len(read(path)) == 2
    assert importers.recognise(path) == "summaries"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, time)
    assert [file.name for file in tmp_path.iterdir()] == ["memories.db"]


def test_what_stands_in_the_log_alone_is_read(tmp_path: Path) -> None:
    path = table_of(tmp_path / "memories.db", LOOPS, wal=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("INSERT INTO conversation_summaries VALUES ('new', '', '', '', 'Not in the file yet')")
        assert [c.conversation_id for c in read(path)] == ["0328711", "new"]
        copy = tmp_path / "copy"
        copy.mkdir()
        for suffix in ("", "-wal"):
            (copy / f"memories.db{suffix}").write_bytes(path.with_name(path.name + suffix).read_bytes())
    there = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert [c.conversation_id for c in read(copy / "memories.db")] == ["0328711", "new"]
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == there


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="nothing keeps this user from writing")
@pytest.mark.parametrize("wal", [False, True])
def test_a_database_where_nothing_can_be_written(tmp_path: Path, wal: bool) -> None:
    place = tmp_path / "place"
    place.mkdir()
    path = table_of(place / "memories.db", *MEMORIES, wal=wal)
    path.chmod(0o400)
    place.chmod(0o500)
    try:
        assert len(read(path)) == 2
    finally:
        place.chmod(0o700)


def test_a_table_or_column_that_is_missing(tmp_path: Path) -> None:
    path = database(
        tmp_path / "notes.db",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, Text, made)",
        "CREATE TABLE tags (id)",
        "CREATE VIEW recent AS SELECT id, text FROM notes",
        "INSERT INTO notes VALUES (7, 'They like tea.', 1743156000)",
    )
    told = refused(path)
    assert "there is no table 'conversation_summaries'; there are notes, recent, tags." in told
    assert "--table NAME" in told
    # Not even --skip-bad passes over it.
    assert refused(path, on_bad=lambda _: None) == told
    told = refused(path, table="notes")
    assert "has no column 'conversation_id', 'summary'; there are id, Text, made." in told
    assert "--column conversation_id=NAME --column summary=NAME" in told
    columns = {"conversation_id": "id", "summary": "TEXT", "timestamp": "made"}
    (found,) = read(path, table="NOTES", columns=columns)
    assert five(found) == ("7", None, datetime(2025, 3, 28, 10, tzinfo=UTC), None, "They like tea.")
    assert found.metadata == {"timestamp_as_written": 1743156000}
    assert "has no column 'headline'" in refused(path, table="notes", columns={**columns, "title": "headline"})
    del columns["timestamp"]
    assert [c.summary for c in read(path, table="recent", columns=columns)] == ["They like tea."]
    assert "there is no field 'text'" in refused(path, columns={"text": "summary"})
    assert "taken from nothing" in refused(path, columns={"summary": ""})
    assert "the database has none" in refused(database(tmp_path / "empty.db", "PRAGMA user_version = 1", "VACUUM"))


def test_values_of_every_type(tmp_path: Path) -> None:
    path = database(
        tmp_path / "a.db",
        "CREATE TABLE conversation_summaries (conversation_id, title, timestamp, type, summary, stars, vector, none)",
        "INSERT INTO conversation_summaries VALUES (1, 2.5, 1743156000000, NULL, 'a', 5, x'00ff', NULL)",
        "INSERT INTO conversation_summaries VALUES (2, '', 1743156000.0, '', 'a' || char(0) || 'b', 0.5, NULL, 'x')",
        "INSERT INTO conversation_summaries VALUES (3, '', '', '', x'00ff', 0, NULL, NULL)",
        "INSERT INTO conversation_summaries VALUES (4, '', '', '', CAST(x'ff41' AS TEXT), 0, NULL, NULL)",
        "INSERT INTO conversation_summaries VALUES (5, '', x'00', '', 'a', 0, NULL, NULL)",
        "INSERT INTO conversation_summaries VALUES (6, '', '', '', NULL, 0, NULL, NULL)",
        "INSERT INTO conversation_summaries VALUES (1, '', '', '', 'again', 0, NULL, NULL)",
        "INSERT INTO conversation_summaries VALUES (NULL, '', '', '', 'last', 0, NULL, NULL)",
    )
    bad: list[InputError] = []
    first, second, last = read(path, on_bad=bad.append)
    ten = datetime(2025, 3, 28, 10, tzinfo=UTC)
    assert five(first) == ("1", "2.5", ten, None, "a")
    assert first.metadata == {"stars": 5, "timestamp_as_written": 1743156000000}
    assert five(second) == ("2", None, ten, None, "a\0b")
    assert second.metadata == {"stars": 0.5, "none": "x", "timestamp_as_written": 1743156000.0}
    assert five(last) == (None, None, WRITTEN, None, "last")
    assert [str(error).removeprefix(f"{path}, ") for error in bad] == [
        'row 3: "summary": a text was expected, not bytes, or a text that is not UTF-8',
        'row 4: "summary": a text was expected, not bytes, or a text that is not UTF-8',
        'row 5: "timestamp": a text or a number was expected, not bytes, or a text that is not UTF-8',
        'row 6: "summary": a text was expected, not null',
        "row 7: \"conversation_id\": '1' is that of row 1 too",
    ]


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = table_of(tmp_path / "a.db", *({**BREAD, "conversation_id": f"c{i}"} for i in range(500)))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + os.urandom(8192) + whole[12288:])
    assert "not readable as an SQLite database" in refused(path)


# -- times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestamp", "time", "generated", "kept"),
    [
        ("2025-03-28T11:00:00", datetime(2025, 3, 28, 11), False, None),
        ("2025-03-28T11:00:00+01:00", datetime(2025, 3, 28, 10, tzinfo=UTC), False, None),
        ("2025-03-28 11:00", datetime(2025, 3, 28, 11), False, "2025-03-28 11:00"),
        ("28 March 2024, 11am", datetime(2024, 3, 28, 11), False, "28 March 2024, 11am"),
        ("1743156000", datetime(2025, 3, 28, 10, tzinfo=UTC), False, "1743156000"),
        ("March 28th, 11am", datetime(2025, 3, 28, 11), True, "March 28th, 11am"),
        ("December 24th", datetime(2024, 12, 24), True, "December 24th"),
        ("yesterday evening", WRITTEN, True, "yesterday evening"),
        ("03/04/2025", WRITTEN, True, "03/04/2025"),
        ("  ", WRITTEN, True, None),
        ("", WRITTEN, True, None),
    ],
)
def test_times_are_read_and_kept_as_written(
    path: Path, timestamp: str, time: datetime, generated: bool, kept: str | None
) -> None:
    (found,) = read(written(path, [{**LOOPS, "timestamp": timestamp}]))
    assert found.timestamp == time
    assert found.generated == (FILE_TIME if generated else frozenset())
    assert found.metadata == ({} if kept is None else {"timestamp_as_written": kept})


def test_a_time_that_is_data_is_kept_and_no_error(tmp_path: Path) -> None:
    (found,) = read(put(tmp_path / "a.json", [{**LOOPS, "timestamp": {"$date": 5}}]))
    assert (found.timestamp, found.metadata) == (WRITTEN, {"timestamp_as_written": {"$date": 5}})


def test_a_day_without_a_year_stays_in_its_year(tmp_path: Path, memory: LatentMemory) -> None:
    path = put(tmp_path / "a.json", [LOOPS])
    assert memory.add(summaries.read(path)).added == 1
    later = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
    os.utime(path, (later, later))
    assert memory.add(summaries.read(path)).unchanged == 1
    kept = memory.get("0328711")
    assert kept is not None
    assert kept.timestamp == datetime(2025, 3, 28, 11)


# -- writing ------------------------------------------------------------------------------------------------


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: bool(text.strip()))
LOOKALIKES = st.sampled_from(
    [
        *("0328711", "12", "1e3", "1_000", "0x1F", "0o17", "12:30:45", ".5", "-1", "+1", ".inf", ".NaN", "~", "null"),
        *(
            "Null",
            "true",
            "False",
            "yes",
            "No",
            "on",
            "OFF",
            "y",
            "n",
            "2025-03-28",
            "2025-03-28 11:00",
            "<<",
            "=",
            "- a",
        ),
        *(
            "a: b",
            "# no",
            "a #b",
            "*a",
            "&a",
            "!a",
            "!!str a",
            "|",
            ">",
            "%a",
            "@a",
            "`a`",
            "{a",
            "[a",
            "'",
            '"',
            "\\n",
        ),
        *(
            "---",
            "...",
            "a\n---\nb",
            "\ta",
            "a\n\nb\n",
            " a",
            "a ",
            "\ufeffa",
            "\u2028a",
            "a\u0085b",
            "\x07a",
            "a\r\nb\r",
        ),
        *("a" * 300 + " b" * 200, "🦊", "\U0010ffffa", "مرحبا", "a\x00b", "\x7fa", "?", "? a", ":", "a:", ",", "\xa0a"),
    ]
)
METADATA = st.dictionaries(
    TEXTS | LOOKALIKES | st.sampled_from([*summaries.FIELDS, "metadata", "messages", "conversations", ""]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | TEXTS
        | LOOKALIKES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | LOOKALIKES, inner, max_size=3),
        max_leaves=4,
    ),
    max_size=3,
)
CONVERSATIONS = st.lists(
    st.builds(
        Conversation,
        st.none() | TEXTS | LOOKALIKES,
        title=st.none() | TEXTS | LOOKALIKES,
        timestamp=st.none() | st.datetimes(timezones=st.sampled_from([None, UTC, timezone(timedelta(hours=-3.5))])),
        type=st.none() | TEXTS | LOOKALIKES,
        summary=TEXTS | LOOKALIKES,
        metadata=METADATA,
    ),
    max_size=4,
    unique_by=lambda c: c.conversation_id or id(c),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(conversations=CONVERSATIONS)
def test_what_is_written_is_read_again(path: Path, conversations: list[Conversation]) -> None:
    summaries.write(path, conversations)
    found = read(path)
    near = [c.timestamp or again.timestamp for c, again in zip(conversations, found, strict=True)]
    expected = [
        (c.conversation_id, c.title, time, c.type, c.summary) for c, time in zip(conversations, near, strict=True)
    ]
    assert [five(c) for c in found] == expected
    if path.suffix != ".sqlite":
        assert [c.metadata for c in found] == [c.metadata for c in conversations]
    again = path.with_name(f"again{path.suffix}")
    summaries.write(again, found)
    assert [five(c) for c in read(again)] == expected


def test_other_programs_read_what_is_written(tmp_path: Path) -> None:
    near = datetime.now(UTC)
    loops, bread = (
        Conversation(
            entry["conversation_id"],
            title=entry["title"],
            timestamp=datetime(near.year - 1, 3, 28, 11) if entry is LOOPS else entry["timestamp"],  # type: ignore[arg-type]
            type=entry["type"],
            summary=entry["summary"],
        )
        for entry in MEMORIES
    )
    for name in ("a.json", "a.yaml", "a.db"):
        summaries.write(tmp_path / name, [loops, bread])
    expected = [{**LOOPS, "timestamp": f"{near.year - 1}-03-28T11:00:00"}, BREAD]
    assert json.loads((tmp_path / "a.json").read_bytes()) == expected
    assert yaml.safe_load((tmp_path / "a.yaml").read_bytes()) == expected
    assert list(yaml.safe_load((tmp_path / "a.yaml").read_bytes())[0]) == list(LOOPS)
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        rows = connection.execute("SELECT * FROM conversation_summaries").fetchall()
        (key,) = (r[1] for r in connection.execute("PRAGMA table_info(conversation_summaries)") if r[5])
    assert rows == [tuple(entry.values()) for entry in expected]
    assert key == "conversation_id"


def test_a_time_goes_out_as_it_was_written_where_that_says_the_same(path: Path) -> None:
    now = datetime.now(UTC)
    day = now - timedelta(days=40)
    words = f"{day:%B} {day.day}, 11am"
    spoken = [words, "28 March 2024, 11am", "the week before Easter", "2024-03-28T11:00:00"]
    entries = [{**LOOPS, "conversation_id": f"c{i}", "timestamp": text} for i, text in enumerate(spoken)]
    written(path, entries)
    os.utime(path)
    found = read(path)
    summaries.write(path, found)
    assert [
        c.metadata.get("timestamp_as_written", c.timestamp and c.timestamp.isoformat()) for c in read(path)
    ] == spoken
    assert [five(c) for c in read(path)][:2] == [five(c) for c in found][:2]


def test_a_time_whose_words_would_say_another_year_goes_out_in_iso(path: Path) -> None:
    (found,) = read(written(path, [{**LOOPS, "timestamp": "March 28th, 11am"}]))
    assert found.timestamp is not None
    old = found.timestamp.replace(year=2019)
    summaries.write(path, [Conversation("c", summary="x", timestamp=old, metadata=dict(found.metadata))])
    (again,) = read(path)
    assert again.timestamp == old
    if path.suffix != ".sqlite":
        assert again.metadata == {"timestamp_as_written": "March 28th, 11am"}


@pytest.mark.parametrize(
    ("conversations", "told"),
    [
        ([Conversation("a", [Turn("user", "Hi")])], "conversation 1 ('a'): has no summary"),
        (
            [Conversation("a", summary="x"), Conversation("a", summary="y")],
            "conversation 2: \"conversation_id\": 'a' is",
        ),
    ],
)
def test_what_cannot_be_written_changes_nothing(path: Path, conversations: list[Conversation], told: str) -> None:
    summaries.write(path, [Conversation("kept", summary="kept")])
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        summaries.write(path, conversations)
    assert told in str(caught.value)

    def broken() -> Iterator[Conversation]:
        yield Conversation("a", summary="x")
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        summaries.write(path, broken())
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_programs_tables_are_not_written_over(tmp_path: Path) -> None:
    path = database(tmp_path / "app.db", "CREATE TABLE users (id)", CREATE)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"holds other tables too \(users\)"):
        summaries.write(path, [Conversation("a", summary="x")])
    assert path.read_bytes() == before
    own = table_of(tmp_path / "own.db", BREAD, wal=True)
    with closing(sqlite3.connect(own)) as connection:
        connection.execute("SELECT * FROM conversation_summaries").fetchall()
        with pytest.raises(InputError, match="another program has it open"):
            summaries.write(own, [Conversation("a", summary="x")])
    summaries.write(own, [Conversation("a", summary="x")])
    assert [c.conversation_id for c in read(own)] == ["a"]


def test_the_suffix_or_the_kind_says_what_is_written(tmp_path: Path) -> None:
    one = [Conversation("a", summary="x")]
    with pytest.raises(InputError, match=r"its suffix does not say what it is; use one of \.json"):
        summaries.write(tmp_path / "memories.txt", one)
    with pytest.raises(InputError, match="kind: 'xml' is unknown"):
        summaries.write(tmp_path / "memories.json", one, kind="xml")
    for kind in summaries.KINDS:
        path = tmp_path / kind
        summaries.write(path, one, kind=kind)
        assert [c.conversation_id for c in read(path)] == ["a"]
        summaries.write(path, [], kind=kind)
        assert read(path, kind=kind) == []
    with pytest.raises(StoreError, match="cannot write"):
        summaries.write(tmp_path / "none" / "a.json", one)
    with pytest.raises(InputError, match="table 'sqlite_x'"):
        summaries.write(tmp_path / "a.db", one, table="sqlite_x")


def test_many_pass_in_little_memory(path: Path) -> None:
    many = 3_000
    made = (Conversation(f"c{i}", title="A title", summary=f"word{i} " * 200) for i in range(many))
    tracemalloc.start()
    try:
        summaries.write(path, made)
        assert sum(1 for _ in summaries.read(path)) == many
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 4_000_000
    assert peak < 1_000_000


def test_without_pyyaml_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.yaml", yaml.safe_dump(MEMORIES))
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert importers.recognise(path) == "summaries"
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-memory\[formats\]'"):
        read(path)
    with pytest.raises(MissingExtraError, match="PyYAML"):
        summaries.write(tmp_path / "b.yaml", [Conversation("a", summary="x")])
    assert [file.name for file in tmp_path.iterdir()] == ["a.yaml"]


def test_yaml_is_read_without_the_fast_parser_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.yaml", yaml.safe_dump(MEMORIES))
    expected = read(path)
    monkeypatch.delattr(yaml, "CSafeLoader")
    monkeypatch.delattr(yaml, "CSafeDumper")
    assert read(path) == expected
    summaries.write(tmp_path / "b.yaml", expected)
    assert len(read(tmp_path / "b.yaml")) == 2
    assert "not YAML (" in refused(put(path, b"summary: \xff"))
    assert "not YAML (" in refused(put(path, "a: b: c"))


# -- any content --------------------------------------------------------------------------------------------


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys((*summaries.FIELDS, "metadata", "messages", "more"), JSON))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=JSON | ENTRY | st.lists(ENTRY, max_size=3) | st.dictionaries(st.text(max_size=3), ENTRY, max_size=3))
def test_any_json_is_summaries_or_input_errors(tmp_path: Path, value: object) -> None:
    for kind in ("json", "yaml"):
        read(put(tmp_path / "file", value), kind=kind, on_bad=lambda _: None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=100) | st.text("-: {}[]&*!|>?#,ab\n\"'", max_size=60).map(str.encode))
def test_any_bytes_are_summaries_or_input_errors(tmp_path: Path, content: bytes) -> None:
    for kind in summaries.KINDS:
        # A database without the table is an error whatever is asked for, and so is what holds none at all.
        with suppress(InputError) if kind == "sqlite" else nullcontext():
            read(put(tmp_path / "file", content), kind=kind, on_bad=lambda _: None)


# -- end to end ---------------------------------------------------------------------------------------------


def test_memories_are_added_once_and_recalled_by_meaning(cli: Cli, path: Path, store: Path) -> None:
    written(path, MEMORIES)
    added = cli("add", path, "--store", store)
    assert (added.returncode, added.stdout.splitlines()[0]) == (
        0,
        "2 conversations added, 0 changed, 0 unchanged (0 turns added, 0 changed)",
    )
    assert added.stderr.splitlines()[-1] == f"{path}: summaries of conversations"
    again = cli("add", path, "--store", store)
    assert again.stdout.startswith("0 conversations added, 0 changed, 2 unchanged")
    # Not a word of it stands in the summary.
    for question, wanted in (("drawing recursive machine-learning cycles", "0328711"), ("baking a loaf", "0402118")):
        (first, *_) = json.loads(cli("recall", question, "--store", store, "--json").stdout)
        assert (first["conversation_id"], first["turn"]) == (wanted, None)
    shown = json.loads(cli("show", "0328711", "--store", store, "--json").stdout)
    assert shown["timestamp"] == "2025-03-28T11:00:00"
    assert shown["metadata"] == {"timestamp_as_written": "March 28th, 11am"}


def test_a_table_of_other_names_on_the_command_line(cli: Cli, tmp_path: Path, store: Path) -> None:
    path = database(
        tmp_path / "notes.db",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT, stars)",
        "INSERT INTO notes VALUES (7, 'They like green tea.', 5)",
    )
    common = ("add", path, "--store", store, "--embedder", "hashing")
    told = cli(*common)
    assert told.returncode == 2
    assert "there is no table 'conversation_summaries'; there are notes" in told.stderr
    assert cli(*common, "--table", "notes", "--skip-bad").returncode == 2
    assert cli(*common, "--table", "notes", "--column", "summary").stderr.startswith(
        "latent-memory: --column summary: FIELD=NAME was expected"
    )
    done = cli(*common, "--table", "notes", "--column", "conversation_id=id", "--column", "summary=body", "--json")
    assert json.loads(done.stdout)["added"] == 1
    (found,) = json.loads(cli("recall", "tea", "--store", store, "--json").stdout)
    assert (found["conversation_id"], found["text"]) == ("7", "They like green tea.")


def test_fields_of_other_names_in_json(cli: Cli, tmp_path: Path, store: Path) -> None:
    path = put(tmp_path / "notes.json", [{"id": "a", "text": "They like green tea.", "stars": 5}])
    columns = ("--column", "conversation_id=id", "--column", "summary=text")
    done = cli("add", path, *columns, "--store", store, "--embedder", "hashing", "--json")
    assert json.loads(done.stdout)["added"] == 1
    assert json.loads(cli("show", "a", "--store", store, "--json").stdout)["metadata"] == {"stars": 5}


def test_a_memory_goes_out_and_comes_in_again(memory: LatentMemory, path: Path, tmp_path: Path) -> None:
    memory.add(Conversation("talk", [Turn("user", "We fly to Osaka on 3 May.", datetime(2025, 4, 1))]))
    memory.add(summaries.read(put(tmp_path / "in.json", MEMORIES)))
    memory.save(path)
    kept = {c.conversation_id: c for c in summaries.read(path)}
    assert set(kept) == {"talk", "0328711", "0402118"}
    talk = memory.get("talk")
    assert talk is not None
    assert five(kept["talk"]) == five(talk)
    assert kept["0402118"].timestamp == datetime.fromisoformat(BREAD["timestamp"])


def test_summaries_go_out_on_the_command_line(cli: Cli, path: Path, tmp_path: Path, store: Path) -> None:
    given_ = put(tmp_path / "in.json", MEMORIES)
    # Written today: the words of a day without a year then mean the same going out.
    os.utime(given_)
    assert cli("add", given_, "--store", store, "--embedder", "hashing").returncode == 0
    assert cli("convert", store, path).returncode == 0
    assert {c.conversation_id: c.summary for c in read(path)} == {e["conversation_id"]: e["summary"] for e in MEMORIES}
    # What goes out comes in again as the same.
    again = cli("add", path, "--store", store, "--json")
    assert json.loads(again.stdout)["unchanged"] == 2
    before = path.read_bytes()
    refused_ = cli("convert", store, path)
    assert (refused_.returncode, path.read_bytes()) == (2, before)
    assert cli("convert", store, path, "--overwrite").returncode == 0
