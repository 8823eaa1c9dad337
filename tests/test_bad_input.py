"""Bad input: exit code 2, one clear line on standard error, and a store that is as it was before."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, LatentMemoryError, Turn
from latent_memory.errors import EmbedderMismatchError, InputError, StoreDamagedError, StoreError, StoreVersionError

Cli = Callable[..., CompletedProcess[str]]

HELLO = {"role": "user", "content": "Hello there"}
GOOD = json.dumps({"conversation_id": "new", "messages": [HELLO]}).encode() + b"\n"


def line(*messages: object, **fields: object) -> bytes:
    return json.dumps({**fields, "messages": messages or [HELLO]}).encode()


def files(place: Path) -> dict[str, bytes]:
    """Return every file of a directory with its bytes."""
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def content(store: Path) -> list[str]:
    """Return all that a store's database holds, as SQL."""
    with closing(sqlite3.connect(store / "memory.sqlite")) as connection:
        return list(connection.iterdump())


def refused(result: CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stdout
    assert result.stdout == ""
    assert result.stderr.startswith("latent-memory: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1, result.stderr
    assert len(result.stderr) < 600
    return result.stderr


@pytest.fixture
def filled(store: Path) -> Path:
    with LatentMemory.open(store, embedder="hashing") as memory:
        turns = [Turn("user", "When does our flight to Osaka leave?"), Turn("assistant", "On 3 May at noon.")]
        memory.add(Conversation("trip", turns, title="A trip", timestamp=None))
        memory.add(Conversation("cat", [Turn("user", "My cat is called Biscoito.")]), scope="ben")
    return store


# -- files --------------------------------------------------------------------------------------------------

BAD_LINES = {
    "no JSON": (b"hello", "not JSON ("),
    "cut JSON": (GOOD[:-5], "not JSON ("),
    "not UTF-8": (b'{"messages": "\xff"}', "not UTF-8 (byte 14)"),
    "a JSON array": (b"[" + line() + b"]", "a JSON object was expected, not a list"),
    "an indented JSON array": (b"[\n  " + line() + b"\n]", "one JSON object a line is expected"),
    "an indented object": (b'{\n  "messages": []\n}', "one JSON object a line is expected"),
    "no messages": (b'{"title": "x"}', '"messages": a list of messages was expected, not none'),
    "empty messages": (b'{"messages": []}', '"messages": a list of messages was expected, not empty'),
    "messages no list": (b'{"messages": "x"}', '"messages": a list of messages was expected, not a text'),
    "message no object": (line("hello"), "messages[0]: an object was expected, not a text"),
    "no role": (line({"content": "x"}), 'messages[0]: no "role"'),
    "unknown role": (line(HELLO, {"role": "human", "content": "x"}), "messages[1].role: 'human' is unknown; use one"),
    "empty text": (line({"role": "user", "content": ""}), "messages[0].content: empty"),
    "white text": (line({"role": "user", "content": " \n"}), "messages[0].content: empty"),
    "10 MB of text": (line({"role": "user", "content": "x" * 10_000_000}), "content: 10,000,000 characters"),
    "a surrogate half": (line({"role": "user", "content": "ab\ud800"}), "content: character 2 is half of a surrogate"),
    "a surrogate half as name": (line({**HELLO, "name": "\ud800"}), "messages[0].name: character 0 is half of"),
    "a surrogate half as title": (line(title="\udc00"), "title: character 0 is half of"),
    "a surrogate half as id": (line(conversation_id="\ud800"), "conversation_id: character 0 is half of"),
    "a surrogate half as metadata": (line(metadata={"a": "\ud800"}), "metadata: "),
    "a surrogate half beside messages": (line(**{"\ud800": 1}), "metadata: "),
    "a time of a turn": (line({**HELLO, "timestamp": "soon"}), "messages[0].timestamp: 'soon' is no time"),
    "a time": (line(timestamp="2025-02-30"), "timestamp: '2025-02-30' is no time"),
    "a time that is too far": (line(timestamp=1e300), "timestamp: 1e+300 is no time"),
    "a time without end": (line(timestamp=10**400), "timestamp: "),
    "a time as an object": (line(timestamp={"$date": 0}), "timestamp: {'$date': 0} is no time"),
    "metadata as text": (line(metadata="x"), '"metadata": an object was expected, not a text'),
    "metadata as a list": (line(metadata=["x"]), '"metadata": an object was expected, not a list'),
    "a number that JSON lacks": (line(score=float("nan")), ": "),
    "tool calls as a number": (line({"role": "assistant", "content": None, "tool_calls": 5}), "messages[0]"),
    "nested without end": (b'{"messages":' + b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("bad", "told"), BAD_LINES.values(), ids=list(BAD_LINES))
def test_a_bad_line(cli: Cli, filled: Path, tmp_path: Path, bad: bytes, told: str) -> None:
    before = content(filled)
    file = tmp_path / "talk.jsonl"
    file.write_bytes(GOOD + b"\r\n" + bad + b"\n" + GOOD)
    message = refused(cli("add", file, "--store", filled))
    assert message.startswith(f"latent-memory: {file}, line 3: ")
    assert told in message
    assert content(filled) == before


@pytest.mark.parametrize("name", [name for name, (bad, _) in BAD_LINES.items() if b"\n" not in bad])
def test_a_bad_line_can_be_left_out(cli: Cli, store: Path, name: str) -> None:
    bad, _ = BAD_LINES[name]
    stdin = bad + b"\n" + GOOD + bad
    result = cli("add", "-", "--skip-bad", "--store", store, "--embedder", "hashing", "--json", stdin=stdin)
    assert result.returncode == 0
    told = json.loads(result.stdout)
    assert (told["added"], told["left_out"]) == (1, 2)
    first, second = result.stderr.splitlines()
    assert first.startswith("left out: standard input, line 1: ")
    assert second.startswith("left out: standard input, line 3: ")


def test_a_bad_line_makes_no_store(cli: Cli, store: Path) -> None:
    refused(cli("add", "-", "--store", store, stdin=GOOD + b"{oops"))
    assert not store.exists()


def test_a_missing_file(cli: Cli, filled: Path, tmp_path: Path) -> None:
    before = content(filled)
    good = tmp_path / "good.jsonl"
    good.write_bytes(GOOD)
    told = refused(cli("add", good, tmp_path / "no such", "--store", filled))
    assert told == f"latent-memory: cannot read {tmp_path / 'no such'}: No such file or directory\n"
    assert content(filled) == before


def test_a_directory_given_as_file(cli: Cli, filled: Path, tmp_path: Path) -> None:
    before = content(filled)
    assert "Is a directory" in refused(cli("add", tmp_path, "--store", filled))
    assert content(filled) == before


@pytest.mark.parametrize("name", ["", "x" * 5_000], ids=["empty", "long"])
def test_a_file_name_that_can_be_none(cli: Cli, filled: Path, name: str) -> None:
    before = content(filled)
    result = cli("add", name, "--store", filled)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert content(filled) == before


def test_another_programs_file(cli: Cli, filled: Path) -> None:
    before = content(filled)
    assert "there is no table" in refused(cli("add", filled / "memory.sqlite", "--store", filled))
    assert content(filled) == before


# -- stores -------------------------------------------------------------------------------------------------

COMMANDS: list[tuple[list[str], bytes]] = [
    (["add", "-"], GOOD),
    (["recall", "Osaka"], b""),
    (["context", "Osaka"], b""),
    (["show", "trip"], b""),
    (["list"], b""),
    (["scopes"], b""),
    (["stats"], b""),
    (["forget", "trip"], b""),
    (["reembed", "--embedder", "hashing"], b""),
]
every_command = pytest.mark.parametrize(("command", "stdin"), COMMANDS, ids=[command[0] for command, _ in COMMANDS])
every_reader = pytest.mark.parametrize(
    ("command", "stdin"), COMMANDS[1:], ids=[command[0] for command, _ in COMMANDS[1:]]
)


@every_reader
def test_a_store_that_is_not_there(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    told = refused(cli(*command, "--store", store, stdin=stdin))
    assert f"no memory at {store}" in told
    assert "add" in told
    assert not store.exists()


@every_reader
def test_an_empty_directory_is_no_store(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    store.mkdir()
    assert f"no memory at {store}" in refused(cli(*command, "--store", store, stdin=stdin))
    assert list(store.iterdir()) == []


@every_command
def test_a_store_path_that_is_a_file(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    store.write_bytes(b"a letter")
    told = refused(cli(*command, "--store", store, stdin=stdin))
    assert str(store) in told
    assert "is a file" in told
    assert store.read_bytes() == b"a letter"


@every_command
def test_a_store_path_that_is_a_file_to_add(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    for name, content_ in (("s.json", b'[{"summary": "Tea"}]'), ("talk.jsonl", GOOD)):
        file = store.with_name(name)
        file.write_bytes(content_)
        told = refused(cli(*command, "--store", file, stdin=stdin))
        assert told.endswith(f"is a file, and no memory; add it to one with: latent-memory add {file}\n")
        assert file.read_bytes() == content_


@every_command
def test_the_file_in_a_store_is_not_the_store(cli: Cli, filled: Path, command: list[str], stdin: bytes) -> None:
    told = refused(cli(*command, "--store", filled / "memory.sqlite", stdin=stdin))
    assert told.endswith(f"memory.sqlite: is a file in a store; name its directory: {filled}\n")


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes on Windows")
@every_command
def test_a_store_path_that_is_a_pipe(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    os.mkfifo(store)
    assert "is neither a file nor a directory" in refused(cli(*command, "--store", store, stdin=stdin))


@every_command
def test_a_store_path_inside_a_file(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    store.write_bytes(b"a letter")
    assert str(store) in refused(cli(*command, "--store", store / "in it", stdin=stdin))
    assert store.read_bytes() == b"a letter"


@every_command
def test_a_store_path_that_is_too_long(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    refused(cli(*command, "--store", store.with_name("x" * 300), stdin=stdin))


@every_command
def test_another_programs_database(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    store.mkdir()
    with closing(sqlite3.connect(store / "memory.sqlite")) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
        connection.execute("INSERT INTO songs VALUES ('Osaka')")
        connection.commit()
    before = files(store)
    assert "is another program's database" in refused(cli(*command, "--store", store, stdin=stdin))
    assert files(store) == before


@every_command
def test_another_programs_database_without_tables(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    store.mkdir()
    with closing(sqlite3.connect(store / "memory.sqlite")) as connection:
        connection.execute("PRAGMA application_id = 42")
    before = files(store)
    assert "is another program's database" in refused(cli(*command, "--store", store, stdin=stdin))
    assert files(store) == before


@every_command
@pytest.mark.parametrize("size", [7, 100, 5_000, 100_000])
def test_a_store_of_garbage(cli: Cli, store: Path, command: list[str], stdin: bytes, size: int) -> None:
    store.mkdir()
    (store / "memory.sqlite").write_bytes(bytes(i * 31 % 251 for i in range(size)))
    before = files(store)
    told = refused(cli(*command, "--store", store, stdin=stdin))
    assert "not readable as a database" in told
    assert "Restore" in told
    assert files(store) == before


@every_command
def test_a_damaged_store(cli: Cli, filled: Path, command: list[str], stdin: bytes) -> None:
    path = filled / "memory.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    assert "not readable as a database" in refused(cli(*command, "--store", filled, stdin=stdin))


@every_command
def test_a_store_whose_file_is_a_directory(cli: Cli, store: Path, command: list[str], stdin: bytes) -> None:
    (store / "memory.sqlite").mkdir(parents=True)
    assert str(store) in refused(cli(*command, "--store", store, stdin=stdin))
    assert files(store) == {}


@every_command
def test_a_store_of_a_newer_version(cli: Cli, filled: Path, command: list[str], stdin: bytes) -> None:
    with closing(sqlite3.connect(filled / "memory.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 999")
    before = content(filled)
    told = refused(cli(*command, "--store", filled, stdin=stdin))
    assert "newer version of latent-memory" in told
    assert "store version 999" in told
    assert "pip install -U latent-memory" in told
    assert content(filled) == before


@pytest.mark.parametrize("command", [["add", "-"], ["recall", "Osaka"], ["context", "Osaka"]], ids=lambda c: c[0])
@pytest.mark.parametrize("embedder", ["minilm", "all-MiniLM-L6-v2-int8", "openai:model", "sentence-transformers:model"])
def test_a_store_of_another_embedder(cli: Cli, filled: Path, command: list[str], embedder: str) -> None:
    before = content(filled)
    told = refused(cli(*command, "--store", filled, "--embedder", embedder, stdin=GOOD))
    assert "was made with the embedder 'hashing' (256 numbers a passage)" in told
    assert f"latent-memory reembed --store {filled} --embedder " in told
    assert content(filled) == before


@pytest.mark.parametrize(
    "embedder", ["", "nonsense", "openai:", "sentence-transformers:", "openai", "MINILM", "\ud800"]
)
def test_an_unknown_embedder(cli: Cli, filled: Path, embedder: str) -> None:
    before = content(filled)
    for command in (["add", "-"], ["recall", "Osaka"], ["reembed"]):
        told = refused(cli(*command, "--store", filled, "--embedder", embedder, stdin=GOOD))
        assert "is unknown; use minilm, hashing, sentence-transformers:MODEL or openai:MODEL" in told
    assert content(filled) == before


def test_an_unknown_embedder_makes_no_store(cli: Cli, store: Path) -> None:
    refused(cli("add", "-", "--store", store, "--embedder", "nonsense", stdin=GOOD))
    assert not store.exists()


def test_an_unknown_summariser(cli: Cli, filled: Path) -> None:
    before = content(filled)
    told = refused(cli("add", "-", "--store", filled, "--summariser", "nonsense", stdin=GOOD))
    assert "summariser 'nonsense' is unknown; use openai:MODEL" in told
    assert content(filled) == before


def test_errors_of_stores_by_their_class(filled: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbedderMismatchError):
        LatentMemory.open(filled, embedder="minilm")
    with closing(sqlite3.connect(filled / "memory.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(StoreVersionError):
        LatentMemory.open(filled)
    (filled / "memory.sqlite").write_bytes(b"garbage" * 100)
    with pytest.raises(StoreDamagedError):
        LatentMemory.open(filled)
    with pytest.raises((InputError, StoreError)):
        LatentMemory.open(filled / "memory.sqlite")
    with pytest.raises(StoreError, match="no memory at"):
        LatentMemory.open(tmp_path / "none", create=False)


def test_a_store_that_was_refused_is_let_go_of(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(filled / "memory.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 999")
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    with pytest.raises(StoreVersionError):
        LatentMemory.open(filled)
    assert opened
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


# -- questions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", " ", "\n\t", "\u3000"])
@pytest.mark.parametrize("command", ["recall", "context"])
def test_an_empty_query(cli: Cli, filled: Path, command: str, query: str) -> None:
    assert "query: empty; ask for something" in refused(cli(command, query, "--store", filled))
    assert "query: empty; ask for something" in refused(cli(command, "-", "--store", filled, stdin=query.encode()))


@pytest.mark.parametrize("command", ["recall", "context"])
def test_a_query_that_is_not_utf_8(cli: Cli, filled: Path, command: str) -> None:
    told = refused(cli(command, "-", "--store", filled, stdin=b"caf\xe9"))
    assert told == "latent-memory: standard input: not UTF-8 (byte 3)\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recall", "x", "-k", "0"], "-k"),
        (["recall", "x", "-k", "-5"], "-k"),
        (["recall", "x", "-k", "many"], "-k"),
        (["context", "x", "--budget", "0"], "--budget"),
        (["recall", "x", "--since", "soon"], "since: 'soon' is no time"),
        (["context", "x", "--until", "2025-02-30"], "until: '2025-02-30' is no time"),
        (["recall", "x", "--role", "human"], "'human' is unknown; use user, assistant"),
        (["recall", "x", "--scope", ""], "scope: '' is no name"),
        (["context", "x", "--scope", "  "], "scope: '  ' is no name"),
        (["add", "-", "--scope", ""], "scope: '' is no name"),
        (["forget", "trip", "--scope", ""], "scope: '' is no name"),
        (["show", "trip", "--scope", ""], "scope: '' is no name"),
        (["list", "--scope", ""], "scope: '' is no name"),
        (["stats", "--scope", ""], "scope: '' is no name"),
        (["list", "-n", "0"], "-n"),
        (["list", "--offset", "-1"], "--offset"),
        (["show", "trip", "--turn", "-1"], "--turn"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option(cli: Cli, filled: Path, arguments: list[str], told: str) -> None:
    before = content(filled)
    assert told in refused(cli(*arguments, "--store", filled, stdin=GOOD))
    assert content(filled) == before


@pytest.mark.parametrize("k", [0, -1, 1.5, None, "10"])
def test_k_that_is_no_number_of_turns(memory: LatentMemory, k: Any) -> None:
    with pytest.raises(InputError, match=r"^k: .* is not a number of turns"):
        memory.recall("Osaka", k)


@pytest.mark.parametrize("budget", [0, -1, 1.5, None, "10"])
def test_a_budget_that_is_no_number_of_tokens(memory: LatentMemory, budget: Any) -> None:
    with pytest.raises(InputError, match=r"^budget: .* is not a number of tokens"):
        memory.context("Osaka", budget)


SURROGATES = {
    "recall": lambda memory: memory.recall("half \ud800"),
    "context": lambda memory: memory.context("half \ud800"),
    "recall messages": lambda memory: memory.recall([{"role": "user", "content": "half \ud800"}]),
    "recall scope": lambda memory: memory.recall("Osaka", scope="\ud800"),
    "recall conversation": lambda memory: memory.recall("Osaka", conversation_ids="\ud800"),
    "add scope": lambda memory: memory.add(Conversation("a", [Turn("user", "Hi")]), scope="\ud800"),
    "get": lambda memory: memory.get("\ud800"),
    "get scope": lambda memory: memory.get("trip", scope="\ud800"),
    "forget": lambda memory: memory.forget("\ud800"),
    "forget scope": lambda memory: memory.forget("trip", scope="\ud800"),
    "conversations": lambda memory: memory.conversations(scope="\ud800"),
    "neighbours": lambda memory: memory.neighbours("\ud800", 0),
    "stats": lambda memory: memory.stats(scope="\ud800").conversations,
}


@pytest.mark.parametrize("call", SURROGATES.values(), ids=list(SURROGATES))
def test_half_a_surrogate_pair_names_nothing(filled: Path, call: Callable[[LatentMemory], object]) -> None:
    with LatentMemory.open(filled) as memory:
        try:
            found = call(memory)
        except InputError as error:
            told = str(error)
        else:
            assert not found
            told = "surrogate"
        assert "surrogate" in told
        assert memory.stats().conversations == 2


@pytest.mark.parametrize("arguments", [["recall", "?"], ["show", "?"], ["list", "--scope", "?"], ["forget", "?"]])
def test_arguments_that_are_not_utf_8(filled: Path, arguments: list[str]) -> None:
    if sys.platform in ("win32", "darwin"):
        pytest.skip("arguments are always text there")
    script = shutil.which("latent-memory", path=str(Path(sys.executable).parent))
    assert script is not None
    bare = [b"caf\xe9" if argument == "?" else argument.encode() for argument in arguments]
    result = subprocess.run([script.encode(), *bare, b"--store", str(filled).encode()], capture_output=True)
    assert result.returncode in (1, 2)
    assert result.stderr.count(b"\n") == 1
    assert b"Traceback" not in result.stderr


# -- questions in a query language are plain words ----------------------------------------------------------


@pytest.fixture(scope="module", params=["new", "settled"])
def osaka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LatentMemory]:
    """Return a memory of 300 turns: its words in memory, or in the index on disk that closing it has made."""
    place = tmp_path_factory.mktemp("memory") / "store"
    with LatentMemory.open(place, embedder="hashing") as memory:
        turns = [Turn("user", f"Item {number} of the list has the colour {number * 7}") for number in range(300)]
        memory.add(Conversation("list", turns, title="A list"))
        memory.add(Conversation("trip", [Turn("user", "Our flight to Osaka and the hotel: key 0, title x")]))
        if request.param == "new":
            yield memory
            return
    with LatentMemory.open(place) as memory:
        yield memory


def found(memory: LatentMemory, query: str) -> list[tuple[str, int | None, float]]:
    hits = memory.recall(query, k=20)
    return [(hit.passage.conversation_id, hit.passage.turn, round(hit.score, 4)) for hit in hits]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ('"flight osaka"', "flight osaka"),
        ("osaka AND flight", "osaka and flight"),
        ("osaka OR (flight", "osaka or flight"),
        ("NOT osaka", "not osaka"),
        ("-osaka", "osaka"),
        ("+osaka -flight", "osaka flight"),
        ("osaka^999", "osaka 999"),
        ("osaka~2 flight", "osaka 2 flight"),
        ("osaka*", "osaka"),
        ("title:osaka", "title osaka"),
        ("passage:osaka key:0 state:x", "passage osaka key 0 state x"),
        ("key:0", "key 0"),
        ("key:[0 TO 9]", "key 0 to 9"),
        ("key: IN [1 2 3]", "key in 1 2 3"),
        ("/osa.*/", "osa"),
        ('"a b" AND title:x OR (c', "a b and title x or c"),
        ('osaka"', "osaka"),
        ("osaka\\", "osaka"),
        ("((((osaka", "osaka"),
        ("osaka))))", "osaka"),
        ("osaka'; DROP TABLE turns; --", "osaka drop table turns"),
        ("{osaka}", "osaka"),
        ("OSAKA", "osaka"),
    ],
)
def test_a_query_language_is_plain_words(osaka: LatentMemory, query: str, words: str) -> None:
    assert found(osaka, query) == found(osaka, words)
    if "osaka" in words.split():
        assert osaka.recall(query)[0].passage.conversation_id == "trip"


QUERIES = [
    *(
        "*",
        "?",
        '"',
        "''",
        ":",
        "(",
        ")",
        "()",
        "[]",
        "\\",
        "\\\\",
        "/",
        "^",
        "~",
        "-",
        "+",
        "!!!",
        "…",
        "🦊",
        "&&",
        "||",
    ),
    *("\0", "\x1b[2J", "\u200b", "\u202e", "\ufeff", "the", "of the and to", "AND", "OR NOT", "is it that?", "a"),
    *("(" * 4_000, "x" * 100_000, "word " * 50_000, "你" * 10_000, "* AND *", "_", "__", "\u0301", "\U0010ffff"),
]


@pytest.mark.parametrize(
    "query",
    QUERIES,
    ids=lambda query: ascii(query)[:20],
)
def test_any_query_is_answered(osaka: LatentMemory, query: str) -> None:
    assert len(osaka.recall(query, k=3)) <= 3
    block = osaka.context(query, budget=200)
    assert block.tokens <= 200


@pytest.mark.parametrize("query", ["*", '"', "(c", "the", "key:0", '"a b" AND title:x OR (c', "\\", "--", "-k"])
def test_any_query_on_the_command_line(cli: Cli, filled: Path, query: str) -> None:
    for command in ("recall", "context"):
        result = cli(command, "--store", filled, "--", query)
        assert result.returncode in (0, 1)
        assert result.stderr in ("", "nothing found in scope 'default'\n")


@settings(max_examples=60)
@example(query="half \ud800")
@given(query=st.text(st.characters(), min_size=1))
def test_every_text_is_a_query_or_an_input_error(osaka: LatentMemory, query: str) -> None:
    try:
        hits = osaka.recall(query)
    except LatentMemoryError as error:
        told, hits = str(error), []
    else:
        told = ""
    assert len(hits) <= 10
    assert bool(told) == (not query.strip() or any("\ud800" <= character <= "\udfff" for character in query))


# -- characters come back exactly ---------------------------------------------------------------------------

TEXTS = {
    "control characters": "bell\a null\0 escape\x1b[31mred\x1b[0m delete\x7f csi\x9b end",
    "only a NUL": "\0",
    "line ends": "one\r\ntwo\rthree\nfour\u2028five\u2029six\u0085seven\x0b\x0c",
    "emoji": "🦊 👩‍👩‍👧‍👦 🇵🇹 👍🏽 \U0010ffff",
    "right to left": "مرحبا بالعالم \u202eabc\u202c שלום עולם",
    "Chinese": "你好，世界。我们五月去大阪。",
    "combining": "e\u0301 a\u030a \ufeff \u200b \u00ad",
    "edges": "  \n leading and trailing \t \n",
    "the fence": "</memory> <|im_start|>system [INST]",
    "JSON": '{"messages": [{"role": "user", "content": "\\u0000"}]}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "plain"])
def test_characters_come_back_exactly(cli: Cli, store: Path, text: str, escaped: bool) -> None:
    long = f"{text} zebra. ".join(["start. "] * (12_000 // len(text) // 2 + 2))
    record = {
        "conversation_id": f"c {text}",
        "title": f"t {text}",
        "type": f"k {text}",
        "summary": f"s {text}",
        "messages": [
            {"role": "user", "content": text, "name": f"n {text}"},
            {"role": "assistant", "content": long},
        ],
        "metadata": {text: [text]},
    }
    stdin = json.dumps(record, ensure_ascii=escaped).encode()
    added = cli("add", "-", "--store", store, "--scope", f"o {text}", "--embedder", "hashing", stdin=stdin)
    assert (added.returncode, added.stderr) == (0, "")
    at = ("--scope", f"o {text}", "--store", store, "--json")
    shown = json.loads(cli("show", f"c {text}", *at).stdout)
    for name in ("conversation_id", "title", "type", "summary", "metadata"):
        assert shown[name] == record[name]
    assert [message["content"] for message in shown["messages"]] == [text, long]
    assert shown["messages"][0]["name"] == f"n {text}"
    assert json.loads(cli("scopes", "--store", store, "--json").stdout) == {f"o {text}": 1}
    assert json.loads(cli("stats", "--store", store, "--json").stdout)["passages"] > 2
    again = json.loads(cli("add", "-", *at, stdin=stdin).stdout)
    assert (again["unchanged"], again["changed"], again["added"]) == (1, 0, 0)
    hits = json.loads(cli("recall", "zebra", *at).stdout)
    hit = next(hit for hit in hits if hit["turn"] == 1)
    assert hit["text"] == long[hit["start"] : hit["end"]]
    with LatentMemory.open(store) as memory:
        conversation = memory.get(f"c {text}", scope=f"o {text}")
        assert conversation is not None
        assert [turn.text for turn in conversation.turns] == [text, long]


@pytest.mark.parametrize(
    ("query", "conversation"),
    [("大阪", "zh"), ("我们什么时候去？", "zh"), ("بالعالم", "ar"), ("עולם", "he"), ("größe", "de"), ("GROSSE", "de")],
)
def test_words_of_any_script_are_found(memory: LatentMemory, query: str, conversation: str) -> None:
    said = {
        "zh": "你好，世界。我们五月去大阪。",
        "ar": "مرحبا بالعالم",
        "he": "שלום עולם",
        "de": "Die Größe, die grosse, ist mir egal.",
        "en": "The size does not matter to me.",
    }
    memory.add(Conversation(name, [Turn("user", text)]) for name, text in said.items())
    assert memory.recall(query)[0].passage.conversation_id == conversation


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="has no pseudo-terminals")
@pytest.mark.parametrize("command", [["recall", "Osaka"], ["show", "c"], ["list"], ["context", "Osaka"]], ids=" ".join)
def test_what_was_stored_cannot_steer_the_terminal(store: Path, command: list[str]) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        said = "Osaka \x1b]0;owned\x07 \x1b[2J \x9b31m"
        memory.add(Conversation("c", [Turn("user", said, name="Ana \x1b[2J")], title="Osaka \x1b[2J", summary=said))
    script = shutil.which("latent-memory", path=str(Path(sys.executable).parent))
    assert script is not None
    terminal, output = os.openpty()
    try:
        subprocess.run([script, *command, "--store", str(store)], stdout=output, check=True)
        shown = os.read(terminal, 100_000).decode()
    finally:
        os.close(output)
        os.close(terminal)
    assert "Osaka" in shown
    assert not set("\x1b\x07\x9b") & set(shown)
