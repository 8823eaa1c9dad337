from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.times import epoch, in_words, parse_time

CET = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2025-03-28T11:00:00+01:00", datetime(2025, 3, 28, 11, tzinfo=CET)),
        ("2025-03-28T11:00:00Z", datetime(2025, 3, 28, 11, tzinfo=UTC)),
        ("2025-03-28T11:00:00", datetime(2025, 3, 28, 11)),
        ("2025-03-28 11:00", datetime(2025, 3, 28, 11)),
        ("2025-03-28T11:00:00.250", datetime(2025, 3, 28, 11, 0, 0, 250_000)),
        ("  2025-03-28\n", datetime(2025, 3, 28)),
        (date(2025, 3, 28), datetime(2025, 3, 28)),
        (datetime(2025, 3, 28, 11, tzinfo=CET), datetime(2025, 3, 28, 11, tzinfo=CET)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (1_743_156_000, datetime(2025, 3, 28, 10, tzinfo=UTC)),
        (1_743_156_000.5, datetime(2025, 3, 28, 10, 0, 0, 500_000, tzinfo=UTC)),
        (1_743_156_000_000, datetime(2025, 3, 28, 10, tzinfo=UTC)),
        (99_999_999_999, datetime(5138, 11, 16, 9, 46, 39, tzinfo=UTC)),
        (100_000_000_000, datetime(1973, 3, 3, 9, 46, 40, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_as_it_was_given(value: object, expected: datetime) -> None:
    read = parse_time(value)
    assert read == expected
    assert read is not None
    assert read.utcoffset() == expected.utcoffset()


@pytest.mark.parametrize("value", [None, ""])
def test_no_time_is_none(value: object) -> None:
    assert parse_time(value) is None


@pytest.mark.parametrize(
    "value",
    [
        "yesterday",
        "last March",
        "2025-13-01",
        "2025-02-30",
        "2025-03-28T25:00",
        "28.03.2025",
        "   ",
        "\ud800",
        True,
        False,
        [2025, 3, 28],
        {"$date": 0},
        b"2025-03-28",
        object(),
        float("nan"),
        float("inf"),
        -float("inf"),
        1e300,
        10**30,
        10**400,
        -(10**400),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"^since: .* is no time") as caught:
        parse_time(value, "since")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["1743156000", "1710121512000", "1711123000000", "1743156000000"])
def test_an_epoch_number_written_as_text_is_never_taken_for_another_century(value: str) -> None:
    try:
        read = parse_time(value)
    except InputError:
        return
    assert read == parse_time(int(value))


def test_a_long_text_is_shortened_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        parse_time("x" * 100_000)
    assert len(str(caught.value)) < 300


def test_a_time_without_a_zone_counts_as_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    if hasattr(time, "tzset"):
        time.tzset()
    try:
        assert epoch(datetime(1970, 1, 2)) == 86_400
        assert epoch(datetime(1970, 1, 2, 1, tzinfo=CET)) == 86_400
    finally:
        monkeypatch.undo()
        if hasattr(time, "tzset"):
            time.tzset()


@pytest.mark.parametrize("time", [datetime.min, datetime.max, datetime.min.replace(tzinfo=CET)])
def test_the_first_and_the_last_time_have_an_epoch(time: datetime) -> None:
    assert isinstance(epoch(time), float)


def test_days_are_told_in_english_words() -> None:
    assert in_words(datetime(2025, 3, 28, 23, 59)) == "28 March 2025"
    assert in_words(datetime(1999, 12, 1)) == "1 December 1999"


@given(st.datetimes(timezones=st.none() | st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))))
def test_what_is_written_is_read_again(time: datetime) -> None:
    read = parse_time(time.isoformat())
    assert read == time
    assert read is not None
    assert read.utcoffset() == time.utcoffset()


@given(st.text() | st.floats() | st.integers() | st.booleans() | st.lists(st.integers()))
def test_anything_is_a_time_or_an_input_error(value: object) -> None:
    try:
        read = parse_time(value)
    except LatentMemoryError:
        return
    assert read is None or isinstance(read, datetime)
