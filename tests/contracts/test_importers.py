"""What every importer keeps to, and what the JSON Lines one reads."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError
from latent_memory.importers import jsonl

HELLO = {"role": "user", "content": "Hello there"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
Files = dict[str, bytes]


class Case(NamedTuple):
    """An importer, and how to write a file that it reads.

    Attributes:
        name: the importer's.
        write: the files that hold a list of entries; a single one is given by itself, several as a directory.
        entry: an entry that is one conversation or more, told apart by its number, in which a text was said.
        bad: an entry that cannot be used; None if there is no such thing in this format.
        cut: a file that was cut off shows it.
    """

    name: str
    write: Callable[[list[Any]], Files]
    entry: Callable[[int, str], Any]
    bad: Any = None
    cut: bool = True


def array(entries: list[Any]) -> Files:
    return {"talk.json": json.dumps(entries).encode()}


def json_lines(entries: list[Any]) -> Files:
    return {"talk.jsonl": b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)}


def text(entries: list[str]) -> Files:
    return {"talk.txt": "".join(entries).encode()}


def sessions(name: str) -> Callable[[list[Any]], Files]:
    return lambda entries: {name.format(i): json_lines(entry)["talk.jsonl"] for i, entry in enumerate(entries)}


def day(number: int) -> datetime:
    return datetime(2024, 1, 1, 9, tzinfo=UTC) + timedelta(days=number)


def chatgpt(number: int, said: str) -> Any:
    message = {"id": "a", "author": {"role": "user"}, "content": {"content_type": "text", "parts": [said]}}
    return {"id": f"c{number}", "mapping": {"r": {"parent": None}, "a": {"parent": "r", "message": message}}}


def claude(number: int, said: str) -> Any:
    return {"uuid": f"c{number}", "chat_messages": [{"sender": "human", "text": said, "created_at": "2024-05-01"}]}


def claude_code(number: int, said: str) -> Any:
    message = {"role": "user", "content": said}
    return [{"type": "user", "sessionId": f"c{number}", "uuid": f"u{number}", "message": message}]


def codex(number: int, said: str) -> Any:
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": said}]}
    return [
        {"type": "session_meta", "payload": {"id": f"c{number}"}},
        {"timestamp": "2025-05-01T10:00:00Z", "type": "response_item", "payload": message},
    ]


def slack(number: int, said: str) -> Any:
    return f"{day(number):%Y-%m-%d}", [
        {"type": "message", "user": "U1", "ts": f"{day(number).timestamp()}", "text": said}
    ]


def slack_export(entries: list[Any]) -> Files:
    users, channels = [{"id": "U1", "name": "ana"}], [{"id": "C1", "name": "general"}]
    days = {f"general/{day}.json": json.dumps(messages).encode() for day, messages in entries}
    return {"channels.json": json.dumps(channels).encode(), "users.json": json.dumps(users).encode(), **days}


def letta(number: int, said: str) -> Any:
    message = {"role": "user", "content": [{"type": "text", "text": said}], "created_at": "2025-04-01T03:00:00"}
    return {"id": f"agent-{number}", "name": f"agent {number}", "messages": [message], "block_ids": []}


def locomo(number: int, said: str) -> Any:
    talk = {"speaker_a": "Ana", "speaker_b": "Ben", "session_1_date_time": "1:56 pm on 8 May, 2023"}
    session = [{"speaker": "Ana", "dia_id": "D1:1", "text": said}]
    return {"sample_id": f"conv-{number}", "conversation": {**talk, "session_1": session}}


def langchain(number: int, said: str) -> Any:
    return [{"type": "human", "data": {"content": said}}, {"type": "ai", "data": {"content": f"{number}?"}}]


CASES = (
    Case("chatgpt", array, chatgpt, {"mapping": 5}),
    Case("claude", array, claude, {"chat_messages": 5}),
    Case("claude_code", sessions("{}.jsonl"), claude_code, [{"type": 5}]),
    Case("codex", sessions("rollout-{}.jsonl"), codex, [5]),
    Case("slack", slack_export, slack, ("2020-01-01", 5)),
    Case("letta", lambda entries: {"a.af": json.dumps({"agents": entries, "blocks": []}).encode()}, letta, 5),
    Case("mem0", json_lines, lambda i, said: {"id": f"m{i}", "memory": said, "user_id": "ana"}, {"memory": 5}),
    Case("locomo", array, locomo, {"conversation": 5}),
    Case("whatsapp", text, lambda i, said: f"{day(i):%d/%m/%Y}, 09:00 - Ana: {said}\n", cut=False),
    Case("langchain", json_lines, langchain, [5]),
    Case("sharegpt", array, lambda i, said: {"id": f"c{i}", "conversations": [{"from": "human", "value": said}]}, 5),
    Case("jsonl", json_lines, lambda i, said: {"messages": [{"role": "user", "content": said}]}, {"messages": []}),
    Case("summaries", array, lambda i, said: {"conversation_id": f"c{i}", "title": "Talk", "summary": said}, 5),
    Case("transcript", lambda entries: text(entries[:1]), lambda i, said: f"User: {said}\nAssistant: Yes\n", cut=False),
)

every_importer = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
every_importer_with_bad_entries = pytest.mark.parametrize(
    "case", [case for case in CASES if case.bad is not None], ids=[case.name for case in CASES if case.bad is not None]
)


def put(place: Path, files: Files) -> Path:
    """Write files, and return what is to be read: the file, or the directory if there are several."""
    shutil.rmtree(place, ignore_errors=True)
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path if len(files) == 1 else place


def entries(case: Case, count: int = 3) -> list[Any]:
    return [case.entry(i, f"I said number {i} of the things") for i in range(count)]


def line(*messages: object, **fields: object) -> bytes:
    return json.dumps({**fields, "messages": messages or [HELLO]}).encode()


def read(path: Path, content: bytes) -> list[Conversation]:
    path.write_bytes(content)
    return list(jsonl.read(path))


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(jsonl.read(path))
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 400 + len(str(path))
    return told


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talk.jsonl"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "place"


# -- every importer -----------------------------------------------------------------------------------------


def test_every_importer_has_a_case() -> None:
    assert [case.name for case in CASES] == list(importers.NAMES)


@every_importer
def test_a_file_is_recognised_by_its_content(case: Case, place: Path) -> None:
    path = put(place, case.write(entries(case)))
    assert importers.recognise(path) == case.name
    if path.is_file() and case.cut:  # What is not JSON needs a name beside its looks.
        assert importers.recognise(path.rename(path.with_name("file"))) == case.name


@every_importer
def test_an_importer_describes_itself_in_a_few_words(case: Case) -> None:
    told = importers.load(case.name).DESCRIPTION
    assert 5 < len(told) < 90
    assert "\n" not in told


@every_importer
def test_conversations_are_read_one_at_a_time(case: Case, place: Path) -> None:
    conversations = importers.read(put(place, case.write(entries(case, 40))))
    assert iter(conversations) is conversations
    first = next(conversations)
    assert isinstance(first, Conversation)
    assert first.turns or first.summary


@every_importer
def test_everything_is_read(case: Case, place: Path) -> None:
    given = entries(case)
    found = list(importers.read(put(place, case.write(given))))
    said = "\n".join([turn.text for c in found for turn in c.turns] + [c.summary or "" for c in found])
    for i in range(len(given) if case.name != "transcript" else 1):
        assert f"I said number {i} of the things" in said


@every_importer
def test_a_large_file_is_read_in_little_memory(case: Case, place: Path) -> None:
    if case.name in ("letta", "transcript"):
        pytest.skip("such a file is one object, or one conversation")
    path = put(place, case.write([case.entry(i, f"word{i} " * 8_000) for i in range(120)]))
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*.*")))
    assert size > 5_000_000
    list(importers.read(put(place.with_name("small"), case.write(entries(case)))))
    tracemalloc.start()
    try:
        for conversation in importers.read(path):
            assert conversation
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 4


@every_importer
def test_a_file_reads_the_same_every_time(case: Case, place: Path) -> None:
    path = put(place, case.write(entries(case)))
    assert list(importers.read(path)) == list(importers.read(path))


@every_importer
def test_what_was_read_can_be_added_and_added_again(case: Case, place: Path, memory: LatentMemory) -> None:
    path = put(place, case.write(entries(case)))
    added = memory.add(importers.read(path))
    assert added.added == len(list(importers.read(path))) > 0
    again = memory.add(importers.read(path))
    assert (again.added, again.changed, again.unchanged) == (0, 0, added.added)


@every_importer
def test_a_conversation_that_grew_stays_itself(case: Case, place: Path, memory: LatentMemory) -> None:
    if case.name in ("jsonl", "langchain", "transcript"):
        pytest.skip("such a file has no ids, or one conversation")
    memory.add(importers.read(put(place, case.write(entries(case)))))
    more = memory.add(importers.read(put(place, case.write(entries(case, 4)))))
    assert (more.added, more.changed, more.unchanged) == (1, 0, 3)


@every_importer_with_bad_entries
def test_a_bad_entry_is_refused_with_the_name_of_the_file(case: Case, place: Path) -> None:
    good = entries(case)
    path = put(place, case.write([*good, case.bad]))
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        list(importers.read(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="standard input"):
        list(importers.read(path, name="standard input"))


@every_importer_with_bad_entries
def test_bad_entries_are_left_out_on_request(case: Case, place: Path) -> None:
    good = entries(case)
    whole = [(c.turns, c.summary) for c in importers.read(put(place, case.write(good)))]
    path = put(place, case.write([*good[:2], case.bad, *good[2:]]))
    told: list[InputError] = []
    assert [(c.turns, c.summary) for c in importers.read(path, on_bad=told.append)] == whole
    assert len(told) == 1
    assert str(path) in str(told[0])


@every_importer
def test_a_file_that_was_cut_off_is_one_error(case: Case, place: Path) -> None:
    if not case.cut:
        pytest.skip("a text may end anywhere")
    files = case.write(entries(case))
    name, content = list(files.items())[-1]
    path = put(place, {**files, name: content.rstrip()[: len(content.rstrip()) - 10]})
    with pytest.raises(InputError, match=re.escape(str(path))):
        list(importers.read(path, source=case.name))
    told: list[InputError] = []
    list(importers.read(path, source=case.name, on_bad=told.append))
    assert len(told) == 1


@every_importer
def test_a_file_that_cannot_be_read_is_an_input_error(case: Case, place: Path) -> None:
    for wrong in (place / "missing", place.parent / ("x" * 5_000), Path("a\0b")):
        for on_bad in (None, lambda _: None):
            with pytest.raises(InputError, match=r"^cannot read "):
                list(importers.read(wrong, source=case.name, on_bad=on_bad))


@every_importer
def test_a_broken_file_is_read_or_refused(case: Case, place: Path) -> None:
    chance = random.Random(7)
    files = case.write(entries(case))
    name = list(files)[-1]
    for _ in range(60):
        broken = bytearray(files[name])
        for _ in range(chance.randrange(1, 20)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path = put(place, {**files, name: bytes(broken)})
        with contextlib.suppress(InputError):
            list(importers.read(path, source=case.name, on_bad=lambda _: None))


@every_importer
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(case: Case, place: Path, content: bytes) -> None:
    place.mkdir(exist_ok=True)
    path = place / "file"
    path.write_bytes(content)
    for source in (None, case.name):
        with contextlib.suppress(InputError):
            list(importers.read(path, source=source, branches=True, on_bad=lambda _: None))


@every_importer
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_json_in_the_place_of_anything_is_read_or_refused(case: Case, place: Path, data: st.DataObject) -> None:
    """One value somewhere in a good file is exchanged for another."""
    files = case.write(entries(case, 2))
    name = data.draw(st.sampled_from(sorted(files)))
    values = [json.loads(each) for each in files[name].splitlines()] if name.endswith((".json", ".jsonl")) else [None]
    spot: Any = values
    while True:
        key = data.draw(st.sampled_from(list(spot) if isinstance(spot, dict) else range(len(spot))))
        if not isinstance(spot[key], (dict, list)) or not spot[key] or data.draw(st.booleans()):
            break
        spot = spot[key]
    spot[key] = data.draw(JSON)
    path = put(place, {**files, name: b"\n".join(json.dumps(value).encode() for value in values)})
    with contextlib.suppress(InputError):
        list(importers.read(path, source=case.name, branches=True, on_bad=lambda _: None))


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in ("chatgpt", "claude", "letta", "mem0", "sharegpt", "summaries")],
)
def test_an_id_that_means_two_conversations_is_bad(case: Case, place: Path) -> None:
    one, two = case.entry(0, "I said one thing"), case.entry(0, "I said another thing")
    path = put(place, case.write([one, two]))
    with pytest.raises(InputError, match=re.escape(str(path))):
        list(importers.read(path))
    told: list[InputError] = []
    (kept,) = importers.read(path, on_bad=told.append)
    assert "one thing" in "".join([turn.text for turn in kept.turns] + [kept.summary or ""])
    assert len(told) == 1


# -- JSON Lines ---------------------------------------------------------------------------------------------


def test_every_field_is_read(path: Path) -> None:
    record = {
        "conversation_id": "c1",
        "title": "Trip",
        "timestamp": "2025-03-28T11:00:00+01:00",
        "type": "planning",
        "summary": "They plan a trip.",
        "messages": [
            {"role": "user", "content": "Where to?", "timestamp": "2025-03-28T11:00:05+01:00", "name": "Ana"},
            {"role": "assistant", "content": "Osaka."},
        ],
        "source": {"app": "chat", "version": 2},
        "metadata": {"tags": ["a", None], "app": "kept"},
    }
    (found,) = read(path, json.dumps(record).encode())
    assert found == Conversation(
        "c1",
        [
            Turn("user", "Where to?", datetime.fromisoformat("2025-03-28T11:00:05+01:00"), "Ana"),
            Turn("assistant", "Osaka."),
        ],
        title="Trip",
        timestamp=datetime.fromisoformat("2025-03-28T11:00:00+01:00"),
        type="planning",
        summary="They plan a trip.",
        metadata={"source": {"app": "chat", "version": 2}, "tags": ["a", None], "app": "kept"},
    )


def test_a_plain_line_takes_its_time_from_the_file(path: Path) -> None:
    path.write_bytes(line())
    os.utime(path, (1_700_000_000, 1_700_000_000.75))
    (found,) = jsonl.read(path)
    assert found.conversation_id is None
    assert found.turns == (Turn("user", "Hello there"),)
    assert found.timestamp == datetime.fromtimestamp(1_700_000_000, UTC)
    assert found.generated == {"timestamp:file"}
    assert dict(found.metadata) == {}


def test_a_turn_that_tells_the_time_is_believed_over_the_file(path: Path) -> None:
    (found,) = read(path, line({**HELLO, "timestamp": 1_600_000_000}))
    assert found.timestamp is None
    assert found.generated == frozenset()


@pytest.mark.parametrize("identifier", [7, -1, 10**20])
def test_a_number_is_an_identifier(path: Path, identifier: int) -> None:
    assert read(path, line(conversation_id=identifier))[0].conversation_id == str(identifier)


@pytest.mark.parametrize("name", ["conversation_id", "title", "timestamp", "type", "summary", "metadata"])
def test_null_is_as_good_as_left_out(path: Path, name: str) -> None:
    fields = {name: None}
    (found,) = read(path, line(**fields))
    assert found.conversation_id is None
    assert dict(found.metadata) == {}


def test_bom_blank_lines_and_any_line_ends(path: Path) -> None:
    plain = read(path, line() + b"\n" + line(title="b") + b"\n")
    dressed = b"\xef\xbb\xbf\r\n\r\n  " + line() + b" \r\n\t\r\n\n" + line(title="b")
    path_time = path.stat().st_mtime
    path.write_bytes(dressed)
    os.utime(path, (path_time, path_time))
    assert list(jsonl.read(path)) == plain


def test_a_bom_before_the_first_conversation(path: Path) -> None:
    assert len(read(path, b"\xef\xbb\xbf" + line())) == 1


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n"])
def test_an_empty_file_has_no_conversations(path: Path, content: bytes) -> None:
    assert read(path, content) == []


def test_line_numbers_count_blank_lines(path: Path) -> None:
    told = refused(path, b"\n\r\n" + line() + b"\n\n{oops\n" + line())
    assert told.startswith(f"{path}, line 5: not JSON (")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hello", "not JSON ("),
        (b"{", "one JSON object a line is expected"),
        (b'{\n  "messages": []\n}', "one JSON object a line is expected"),
        (b'[\n{"messages": []}\n]', "one JSON object a line is expected"),
        (b"[" + line() + b"]", "a JSON object was expected, not a list"),
        (b"null", "a JSON object was expected, not null"),
        (b"5", "a JSON object was expected, not a number"),
        (b'"text"', "a JSON object was expected, not a text"),
        (b"true", "a JSON object was expected, not true or false"),
        (line() + line(), "not JSON (Extra data"),
        (line()[:-4], "not JSON ("),
        (line().replace(b'"user"', b"'user'"), "not JSON ("),
        ("größe".encode("latin-1"), "not UTF-8 (byte 2)"),
        (line().decode().encode("utf-16"), "not UTF-8 (byte 0)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"messages": ' + b"9" * 5_000 + b"}", "not JSON ("),
        (b"{}", '"messages": a list of messages was expected, not none'),
        (b'{"conversations": []}', '"messages": a list of messages was expected, not none'),
        (b'{"messages": null}', '"messages": a list of messages was expected, not null'),
        (b'{"messages": []}', '"messages": a list of messages was expected, not empty'),
        (b'{"messages": {}}', '"messages": a list of messages was expected, not an object'),
        (b'{"messages": "hello"}', '"messages": a list of messages was expected, not a text'),
        (line(HELLO, 5), "messages[1]: an object was expected, not a number"),
        (line(HELLO, {"content": "x"}), 'messages[1]: no "role"'),
        (line({"from": "human", "value": "x"}), 'messages[0]: no "role"'),
        (line({"role": "human", "content": "x"}), "messages[0].role: 'human' is unknown; use one of user, "),
        (line(HELLO, {"role": "user", "content": " "}), "messages[1].content: empty"),
        (line({"role": "user", "content": None}), "messages[0].content: empty"),
        (line({"role": "user", "content": 5}), "messages[0].content: a text was expected, not a number"),
        (line({"role": "user", "content": "x" * 10_000_000}), "messages[0].content: 10,000,000 characters"),
        (line({"role": "user", "content": "ab\ud83d"}), "messages[0].content: character 2 is half of a surrogate"),
        (line({**HELLO, "name": "\ud83d"}), "messages[0].name: character 0 is half of a surrogate pair"),
        (line({**HELLO, "name": {"first": "Ana"}}), "messages[0].name: text was expected"),
        (line({**HELLO, "timestamp": "soon"}), "messages[0].timestamp: 'soon' is no time"),
        (line({**HELLO, "timestamp": 10**400}), "messages[0].timestamp: "),
        (line(timestamp="2025-02-30"), "timestamp: '2025-02-30' is no time"),
        (line(timestamp=True), "timestamp: True is no time"),
        (line(timestamp=float("nan")), " is no time"),
        (line(title=5), "title: text was expected"),
        (line(title="\udfff"), "title: character 0 is half of a surrogate pair"),
        (line(summary=["x"]), "summary: text was expected"),
        (line(conversation_id=1.5), "conversation_id: text was expected"),
        (line(conversation_id=True), "conversation_id: text was expected"),
        (line(conversation_id={"$oid": "x"}), "conversation_id: text was expected"),
        (line(metadata="x"), '"metadata": an object was expected, not a text'),
        (line(metadata=["x"]), '"metadata": an object was expected, not a list'),
        (line(metadata=5), '"metadata": an object was expected, not a number'),
        (line(metadata={"a": "\ud800"}), "metadata: "),
        (line(source="\ud800"), "metadata: "),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_bad_line_is_refused_with_file_and_line(path: Path, content: bytes, told: str) -> None:
    message = refused(path, line() + b"\n" + content + b"\n" + line())
    assert message.startswith(f"{path}, line 2: ")
    assert told in message


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_json_does_not_have_are_refused(path: Path, number: bytes) -> None:
    message = refused(path, b'{"messages": [{"role": "user", "content": "Hi"}], "score": ' + number + b"}")
    assert message.startswith(f"{path}, line 1: ")


@pytest.mark.parametrize("depth", [300, 900, 960, 980, 990, 1_000, 1_100, 100_000])
def test_deep_metadata_is_read_or_refused(path: Path, depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    content = b'{"messages": [{"role": "user", "content": "Hi"}], "metadata": ' + deep + b"}"
    path.write_bytes(content)
    told: list[InputError] = []
    found = list(jsonl.read(path, on_bad=told.append))
    assert len(found) + len(told) == 1


def test_characters_come_through_exactly(path: Path) -> None:
    texts = [
        "a\0b\x01\x1b[31m\x7f",
        "🦊👩‍👩‍👧‍👦\U0010ffff",
        "مرحبا \u202eabc\u202c",
        "你好，世界。",
        "a\r\nb\rc\u2028d\u2029e\u0085f",
        "\ufeff.",
    ]
    for escaped in (True, False):
        messages = [{"role": "user", "content": text} for text in texts]
        content = json.dumps({"messages": messages}, ensure_ascii=escaped).encode()
        (found,) = read(path, content)
        assert [turn.text for turn in found.turns] == texts


def test_surrogate_pairs_are_characters(path: Path) -> None:
    (found,) = read(path, b'{"messages": [{"role": "user", "content": "\\ud83e\\udd8a"}]}')
    assert found.turns[0].text == "🦊"


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.text(min_size=1)},
    optional={"timestamp": JSON, "name": JSON, "tool_calls": JSON},
)
RECORD = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=3) | JSON},
    optional=dict.fromkeys(("conversation_id", "title", "timestamp", "type", "summary", "metadata", "anything"), JSON),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=RECORD)
def test_any_json_is_a_conversation_or_an_input_error(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record))
    told: list[InputError] = []
    found = list(jsonl.read(path, on_bad=told.append))
    assert len(found) + len(told) == 1
