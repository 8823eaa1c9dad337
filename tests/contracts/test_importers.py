"""What every importer keeps to, and what the JSON Lines one reads."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError
from latent_memory.importers import jsonl

EXAMPLES = Path(__file__).parents[2] / "examples" / "conversations.jsonl"
HELLO = {"role": "user", "content": "Hello there"}


class Importer(Protocol):
    def __call__(
        self, path: Path, *, name: str | None = None, on_bad: jsonl.OnBad | None = None
    ) -> Iterator[Conversation]: ...


class Case(NamedTuple):
    """An importer, a file that it reads in full, and a file that holds nothing that it can use."""

    read: Importer
    good: bytes
    bad: bytes


every_importer = pytest.mark.parametrize(
    "case", [pytest.param(Case(jsonl.read, EXAMPLES.read_bytes(), b'{"messages": []}'), id="jsonl")]
)


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


# -- every importer -----------------------------------------------------------------------------------------


@every_importer
def test_conversations_are_read_one_at_a_time(case: Case, path: Path) -> None:
    path.write_bytes(case.good)
    conversations = case.read(path)
    first = next(conversations)
    assert isinstance(first, Conversation)
    assert first.turns
    assert len([first, *conversations]) > 1


@every_importer
def test_a_file_reads_the_same_every_time(case: Case, path: Path) -> None:
    path.write_bytes(case.good)
    assert list(case.read(path)) == list(case.read(path))


@every_importer
def test_what_was_read_can_be_added_and_added_again(case: Case, path: Path, memory: LatentMemory) -> None:
    path.write_bytes(case.good)
    added = memory.add(case.read(path))
    assert added.added == len(list(case.read(path)))
    again = memory.add(case.read(path))
    assert (again.added, again.changed, again.unchanged) == (0, 0, added.added)


@every_importer
def test_a_bad_part_is_refused_with_the_name_of_the_file(case: Case, path: Path) -> None:
    path.write_bytes(case.bad)
    with pytest.raises(InputError, match=re.escape(str(path))):
        list(case.read(path))
    with pytest.raises(InputError, match="standard input"):
        list(case.read(path, name="standard input"))


@every_importer
def test_bad_parts_are_left_out_on_request(case: Case, path: Path) -> None:
    path.write_bytes(case.good)
    whole = [conversation.turns for conversation in case.read(path)]
    path.write_bytes(case.bad + b"\n" + case.good + b"\n" + case.bad)
    told: list[InputError] = []
    assert [conversation.turns for conversation in case.read(path, on_bad=told.append)] == whole
    assert len({str(error) for error in told}) == 2


@every_importer
def test_a_file_that_cannot_be_read_is_an_input_error(case: Case, path: Path) -> None:
    for wrong in (path, path.parent, path.parent / ("x" * 5_000)):
        with pytest.raises(InputError, match=r"^cannot read "):
            list(case.read(wrong))
        with pytest.raises(InputError, match=r"^cannot read "):
            list(case.read(wrong, on_bad=lambda _: None))


@every_importer
def test_any_bytes_are_read_or_refused(case: Case, path: Path) -> None:
    chance = random.Random(7)
    for _ in range(200):
        broken = bytearray(case.good[:2_000])
        for _ in range(chance.randrange(1, 20)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path.write_bytes(broken)
        told: list[InputError] = []
        list(case.read(path, on_bad=told.append))


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
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
