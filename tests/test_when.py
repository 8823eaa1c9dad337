"""The time that a question tells: found, resolved against a reference, preferred or kept to."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError
from latent_memory.times import epoch
from latent_memory.when import When, Window, at_event, told

# A Wednesday.
NOW = datetime(2026, 11, 25, 15)


def days(when: When | None) -> list[tuple[str, str]]:
    """Return the windows as days, the last one included; "" for no end."""
    assert when is not None

    def day(at: float) -> str:
        return "" if abs(at) >= 1e12 else (date(1970, 1, 1) + timedelta(seconds=at)).isoformat()

    return [(day(w.begin), day(w.end - 1) if w.end < 1e12 else "") for w in when.windows]


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("Which film did Ana see on 1 May, 2022?", "2022-05-01", "2022-05-01"),
        ("what happened on May 1st 2022", "2022-05-01", "2022-05-01"),
        ("the 3rd of June 2023", "2023-06-03", "2023-06-03"),
        ("on 2023-06-03", "2023-06-03", "2023-06-03"),
        ("What did she achieve in January 2022?", "2022-01-01", "2022-01-31"),
        ("in Feb. 2024", "2024-02-01", "2024-02-29"),
        ("what did we do last March?", "2026-03-01", "2026-03-31"),
        ("last November", "2025-11-01", "2025-11-30"),
        ("this December", "2026-12-01", "2026-12-31"),
        ("next March", "2027-03-01", "2027-03-31"),
        ("in the week of the 8th", "2026-11-02", "2026-11-08"),
        ("the week of the 30th", "2026-10-26", "2026-11-01"),
        ("week of July 3rd, 2023", "2023-07-03", "2023-07-09"),
        ("in 2022", "2022-01-01", "2022-12-31"),
        ("in spring 2023", "2023-03-01", "2023-05-31"),
        ("last summer", "2026-06-01", "2026-08-31"),
        ("last winter", "2025-12-01", "2026-02-28"),
        ("this autumn", "2026-09-01", "2026-11-30"),
        ("yesterday", "2026-11-24", "2026-11-24"),
        ("the day before yesterday", "2026-11-23", "2026-11-23"),
        ("this morning", "2026-11-25", "2026-11-25"),
        ("last week", "2026-11-16", "2026-11-22"),
        ("last weekend", "2026-11-21", "2026-11-22"),
        ("this month", "2026-11-01", "2026-11-30"),
        ("last month", "2026-10-01", "2026-10-31"),
        ("last year", "2025-01-01", "2025-12-31"),
        ("last Monday", "2026-11-23", "2026-11-23"),
        ("on Wednesday", "2026-11-25", "2026-11-25"),
        ("last Wednesday", "2026-11-18", "2026-11-18"),
        ("three days ago", "2026-11-22", "2026-11-22"),
        ("a couple of days ago", "2026-11-23", "2026-11-23"),
        ("over the past two months", "2026-09-25", "2026-11-26"),
        ("since March 2022", "2022-03-01", ""),
        ("after March 2022", "2022-04-01", ""),
        ("before 2021", "", "2020-12-31"),
        ("until March 2022", "", "2022-03-31"),
        ("between 3 May 2022 and 8 June 2022", "2022-05-03", "2022-06-08"),
        ("from 2022-05-03 to 2022-06-08", "2022-05-03", "2022-06-08"),
        ("between March 2022 and May 2023", "2022-03-01", "2023-05-31"),
    ],
)
def test_a_time_in_words(text: str, begin: str, end: str) -> None:
    assert days(told(text, NOW)) == [(begin, end)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What may he do?",
        "the march on Washington",
        "When did she move?",
        "what do I do when it rains",
        "on 31 April 2022",
        "flat 2022",
        "before June",
        "what did Ana notice after the garden fair?",
        "how did it go since my operation?",
        "the second one",
        "I ran 10 km in 44 minutes",
    ],
)
def test_no_time(text: str) -> None:
    assert told(text, NOW) is None


def test_a_month_without_a_year_is_every_years() -> None:
    when = told("What did we do in June?", NOW)
    assert when == When(yearly=(6, 1, 0))
    times = [datetime(2021, 6, 30), datetime(2022, 6, 1), datetime(2022, 7, 1), datetime(2023, 5, 31)]
    epochs = np.array([epoch(time) for time in times])
    assert when.within(epochs).tolist() == [True, True, False, False]
    christmas = told("on 25 December", NOW)
    assert christmas == When(yearly=(12, 25, 1))
    assert christmas.within(np.array([epoch(datetime(1999, 12, 25, 23)), epoch(datetime(1999, 12, 26))])).tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "relation", "event"),
    [
        ("where did I work before we moved?", "before", "we moved"),
        ("before we moved to Berlin, where did I work?", "before", "we moved to Berlin"),
        ("what has changed since I left the bank?", "after", "I left the bank"),
    ],
)
def test_an_event_has_to_be_looked_for(text: str, relation: str, event: str) -> None:
    when = told(text, NOW)
    assert when is not None
    assert (when.relation, when.event) == (relation, event)
    known = at_event(when, 1_000.0)
    assert known.event == ""
    assert known.windows == {"before": (Window(-1e12, 1_000.0),), "after": (Window(1_000.0, 1e12),)}[relation]


def test_windows_are_those_of_the_references_zone() -> None:
    east = timezone(timedelta(hours=9))
    when = told("yesterday", datetime(2026, 11, 25, 3, tzinfo=east))
    assert when is not None
    assert when.windows[0].begin == datetime(2026, 11, 24, tzinfo=east).timestamp()


def test_fit_is_one_within_and_fades_beyond() -> None:
    when = When((Window(0.0, 86400.0 * 10),))
    times = np.array([0, 5, 9.99, 15, 20, -5, 500]) * 86400.0
    fits = when.fit(times, times)
    np.testing.assert_allclose(fits[:3], 1)
    np.testing.assert_allclose(fits[3:6], np.exp([-1, -2, -1]), rtol=1e-3)
    assert fits[6] == 0


@pytest.mark.parametrize("text", ["where do I live now?", "my most recent job", "Does he still paint?", "last time"])
def test_the_latest_is_asked_for(text: str) -> None:
    when = told(text, NOW)
    assert when == When(newest=True)
    assert when.fit(np.zeros(0), np.zeros(0)).shape == (0,)


WORDS = [
    *("last", "this", "next", "on", "in", "since", "before", "after", "between", "and", "to", "the", "week", "of"),
    *("8th", "31", "May", "march", "june", "2022", "monday", "ago", "two", "months", "years", "now", "recently"),
    *("she", "moved", "99", "0", "yesterday", "winter"),
]


@given(
    st.lists(
        st.sampled_from(WORDS),
        max_size=12,
    ),
    st.datetimes(datetime(2, 1, 1), datetime(9990, 1, 1)),
)
def test_any_words_are_read_without_an_error(words: list[str], now: datetime) -> None:
    when = told(" ".join(words), now)
    if when is not None:
        assert all(window.begin < window.end for window in when.windows)
        times = np.array([epoch(now), 0.0])
        fits = when.fit(times, times)
        assert ((fits >= 0) & (fits <= 1)).all()


# -- in recall ----------------------------------------------------------------------------------------------

TALKS = [
    Conversation(
        f"c{year}", [Turn("user", f"My job this time: {job}.", datetime(year, 5, 2, 9))], timestamp=datetime(year, 5, 2)
    )
    for year, job in ((2019, "waiter at the harbour"), (2021, "teacher of maths"), (2024, "pilot of a balloon"))
]


@pytest.fixture
def memory(tmp_path: object) -> LatentMemory:
    memory = LatentMemory.open(f"{tmp_path}/store", embedder="hashing")
    memory.add(TALKS)
    memory.add(Conversation("move", [Turn("user", "We moved to Berlin!", datetime(2020, 3, 1))]))
    return memory


def first(memory: LatentMemory, query: str, **options: object) -> str:
    return memory.recall(query, k=1, **options)[0].passage.conversation_id  # type: ignore[arg-type]


def test_a_told_time_is_preferred(memory: LatentMemory) -> None:
    with memory:
        for year in (2019, 2021, 2024):
            assert first(memory, f"what was my job in May {year}?") == f"c{year}"
        assert first(memory, "what was my job last May?", now=datetime(2021, 8, 1)) == "c2021"
        assert first(memory, "what is my job currently?") == "c2024"
        assert first(memory, "what was my job before we moved to Berlin?") == "c2019"
        signals = memory.recall("what was my job in May 2021?", k=1)[0].signals
        assert signals["time"] == pytest.approx(0.6)
        assert "time" not in memory.recall("what was my job?", k=1)[0].signals


def test_a_period_is_kept_to_when_asked(memory: LatentMemory) -> None:
    with memory:
        found = memory.recall("my job", during="2021")
        assert [hit.passage.conversation_id for hit in found] == ["c2021"]
        assert {hit.passage.conversation_id for hit in memory.recall("my job", during="May")} == {
            "c2019",
            "c2021",
            "c2024",
        }
        assert (
            memory.recall("my job", during="last May", now="2025-01-01T00:00:00")[0].passage.conversation_id == "c2024"
        )
        assert memory.recall("my job", during="1999") == []
        for during in ("soon", "", "now"):
            with pytest.raises(InputError, match=r"during: .* tells no time"):
                memory.recall("my job", during=during)


def test_the_last_messages_time_is_the_reference(memory: LatentMemory) -> None:
    messages = [
        Turn("user", "hello", datetime(2019, 1, 1)),
        Turn("user", "what was my job last May?", datetime(2022, 1, 1, tzinfo=UTC)),
    ]
    with memory:
        assert first(memory, messages) == "c2021"  # type: ignore[arg-type]
