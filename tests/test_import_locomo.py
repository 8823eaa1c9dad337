"""LoCoMo sessions; the form is that of the data file of Maharana et al. 2024, the text is made up."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError

TALK: dict[str, Any] = {
    "speaker_a": "Ana",
    "speaker_b": "Ben",
    "session_1_date_time": "1:56 pm on 8 May, 2023",
    "session_1": [
        {"speaker": "Ana", "dia_id": "D1:1", "text": "I planted twelve tomatoes on the balcony."},
        {
            "speaker": "Ben",
            "dia_id": "D1:2",
            "text": "Mine look like this.",
            "img_url": ["https://example.org/1.jpg"],
            "blip_caption": "a row of tomatoes",
        },
    ],
    "session_2_date_time": "12:09 am on 13 September, 2023",
    "session_2": [{"speaker": "Ben", "dia_id": "D2:1", "text": "", "blip_caption": "a basket"}],
    "session_10_date_time": "12:30 pm on 1 January, 2024",
    "session_10": [{"speaker": "Ana", "dia_id": "D10:1", "text": "Happy new year!"}],
    "session_11_date_time": "9:00 am on 2 January, 2024",
}
SAMPLE = {"qa": [{"question": "How many?", "answer": 12, "evidence": ["D1:1"], "category": 4}], "conversation": TALK}
SAMPLE |= {"sample_id": "conv-1", "session_summary": {"session_1_summary": "They talk."}, "observation": {}}


def read(path: Path, value: object, **options: Any) -> list[Conversation]:
    path.write_text(json.dumps(value))
    return list(importers.read(path, source="locomo", **options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talk.json"


@pytest.mark.parametrize("wrap", [lambda s: [s], lambda s: s, lambda s: [s, s | {"sample_id": "conv-2"}]])
def test_each_session_is_a_conversation(path: Path, wrap: Any) -> None:
    found = read(path, wrap(SAMPLE))[:3]
    assert importers.recognise(path) == "locomo"
    assert found == [
        Conversation(
            "conv-1/session_1",
            [
                Turn("user", "I planted twelve tomatoes on the balcony.", name="Ana"),
                Turn("user", "Mine look like this. [shared a photo: a row of tomatoes]", name="Ben"),
            ],
            timestamp=datetime(2023, 5, 8, 13, 56),
            metadata={"session": 1, "dia_ids": ["D1:1", "D1:2"]},
        ),
        Conversation(
            "conv-1/session_2",
            [Turn("user", "[shared a photo: a basket]", name="Ben")],
            timestamp=datetime(2023, 9, 13, 0, 9),
            metadata={"session": 2, "dia_ids": ["D2:1"]},
        ),
        Conversation(
            "conv-1/session_10",
            [Turn("user", "Happy new year!", name="Ana")],
            timestamp=datetime(2024, 1, 1, 12, 30),
            metadata={"session": 10, "dia_ids": ["D10:1"]},
        ),
    ]


def test_a_talk_alone_is_called_after_its_speakers(path: Path) -> None:
    assert [c.conversation_id for c in read(path, TALK)] == [f"Ana-Ben/session_{n}" for n in (1, 2, 10)]
    again = read(path, [TALK, TALK])
    assert [c.conversation_id for c in again][3:] == [f"Ana-Ben-2/session_{n}" for n in (1, 2, 10)]
    assert importers.recognise(path) == "locomo"


def test_adding_twice_changes_nothing_and_a_new_session_is_added(path: Path, memory: LatentMemory) -> None:
    assert memory.add(read(path, SAMPLE)).added == 3
    assert memory.add(read(path, SAMPLE)).unchanged == 3
    longer = TALK | {"session_11": [{"speaker": "Ana", "dia_id": "D11:1", "text": "The frost took them."}]}
    report = memory.add(read(path, SAMPLE | {"conversation": longer}))
    assert (report.added, report.changed, report.unchanged) == (1, 0, 3)


def test_an_empty_turn_is_left_out_with_its_id(path: Path) -> None:
    skipped: list[str] = []
    turns = [{"speaker": "Ana", "dia_id": "D1:1", "text": " "}, {"speaker": "Ana", "dia_id": "D1:2", "text": "Yes."}]
    (found,) = read(path, {"session_1": turns}, on_skip=skipped.append)
    assert (found.metadata["dia_ids"], skipped) == (["D1:2"], ["an empty message"])
    assert (found.conversation_id, found.generated) == ("locomo/session_1", frozenset({"timestamp:file"}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"session_1_date_time": "some day"}, "session_1: date_time: 'some day' is no time"),
        ({"session_1_date_time": "1:56 pm on 31 June, 2023"}, "session_1: date_time: '1:56 pm on 31 June, 2023'"),
        ({"session_1": ["hello"]}, "session_1[0]: an object was expected, not a text"),
        ({"session_1": [{"speaker": 5, "text": "x"}]}, "session_1[0]: speaker: a text was expected, not a number"),
        ({"session_1": [{"speaker": "A", "text": ["x"]}]}, "session_1[0]: text: a text was expected, not a list"),
    ],
)
def test_what_is_broken_is_told_and_left_out(path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, TALK | change)
    assert told in str(caught.value)
    errors: list[InputError] = []
    assert len(read(path, TALK | change, on_bad=errors.append)) == 2
    assert len(errors) == 1


def test_what_has_no_sessions_is_refused(path: Path) -> None:
    values: list[object] = [{"conversation": {}}, [5], {"session_1": {}}]
    for value in values:
        with pytest.raises(InputError, match="no sessions"):
            read(path, value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
SAID = st.fixed_dictionaries({}, optional=dict.fromkeys(("speaker", "dia_id", "text", "blip_caption"), JSON)) | JSON
KEYS = ("session_1", "session_2", "session_1_date_time", "speaker_a", "sample_id", "conversation")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON | st.lists(SAID, max_size=3))))
def test_any_json_is_read_or_refused(path: Path, sample: dict[str, Any]) -> None:
    read(path, [sample, sample], on_bad=lambda _: None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    # What begins as a zip and is none is refused as a whole.
    with contextlib.suppress(InputError):
        list(importers.read(path, source="locomo", on_bad=lambda _: None))
