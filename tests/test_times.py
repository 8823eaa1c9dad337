from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.times import epoch, in_words, parse_time, read_time

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
    ids=lambda value: repr(value)[:16],
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


# -- as people write them -----------------------------------------------------------------------------------


JUNE = datetime(2025, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2025-03-28T11:00:00Z", datetime(2025, 3, 28, 11, tzinfo=UTC)),
        ("28 March 2025, 11am", datetime(2025, 3, 28, 11)),
        ("  March\t28th,  2025\n11:30 PM ", datetime(2025, 3, 28, 23, 30)),
        ("Fri, 28 Mar 2025 11:00:00 +0100", datetime(2025, 3, 28, 11, tzinfo=CET)),
        ("28 March 2025 11:00 CET", datetime(2025, 3, 28, 11, tzinfo=CET)),
        ("28 March 2025 11:00 GMT+1", datetime(2025, 3, 28, 11, tzinfo=CET)),
        ("28.03.2025 11:00", datetime(2025, 3, 28, 11)),
        ("03.04.2025", datetime(2025, 4, 3)),
        ("28/03/2025", datetime(2025, 3, 28)),
        ("03/28/2025", datetime(2025, 3, 28)),
        ("5/5/2025", datetime(2025, 5, 5)),
        (date(2025, 3, 28), datetime(2025, 3, 28)),
        ("20250328", datetime(2025, 3, 28)),
        (20250328, datetime(2025, 3, 28)),
        (1_743_156_000, datetime(2025, 3, 28, 10, tzinfo=UTC)),
        ("1743156000", datetime(2025, 3, 28, 10, tzinfo=UTC)),
        ("1743156000.5", datetime(2025, 3, 28, 10, 0, 0, 500_000, tzinfo=UTC)),
        (1_743_156_000_000, datetime(2025, 3, 28, 10, tzinfo=UTC)),
        ("1743156000000", datetime(2025, 3, 28, 10, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_as_people_write_it(value: object, expected: datetime) -> None:
    for near in (None, JUNE):
        read = read_time(value, near)
        assert read == expected
        assert read is not None
        assert read.utcoffset() == expected.utcoffset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("March 28th, 11am", datetime(2025, 3, 28, 11)),
        ("28 mar 11:00", datetime(2025, 3, 28, 11)),
        ("December 24th", datetime(2024, 12, 24)),
        ("June 1st, 9am", datetime(2025, 6, 1, 9)),
        ("Feb 29", datetime(2024, 2, 29)),
        ("Friday, March 28", datetime(2025, 3, 28)),
        ("Thursday, March 28", datetime(2024, 3, 28)),
    ],
)
def test_a_day_without_a_year_is_the_last_such_day(text: str, expected: datetime) -> None:
    assert read_time(text, JUNE) == expected
    assert read_time(text) is None


@pytest.mark.parametrize(
    "value",
    [
        *("", "   ", "10", "1", "25", "may", "May", "march", "call me", "3/4", "03/04/2025", "03-04-2025", "3/4/25"),
        *("11am", "11:00", "noon", "yesterday", "last March", "March 2025", "2025 March", "March 28 25", "Friday"),
        *("may 10 call me", "I may call", "we march on", "second to none", "0328711", "12/2025", "32 March 2025"),
        *("30 February 2025", "2025-13-01", "28 March 2025 25:00", "28 March 2025 11:00 IST", "March 28 or April 2"),
        *("1e9", "1_743_156_000", "17431560001", "\ud800", "a" * 100_000, "March 28th 2025" * 10_000),
        *(None, True, False, 0, 10, 3.5, 10**30, -(10**400), float("nan"), float("inf"), b"2025-03-28", [2025, 3, 28]),
        *({"$date": 0}, object()),
    ],
    ids=lambda value: ascii(value)[:16] if not isinstance(value, int) or abs(value) < 10**31 else "huge",
)
def test_nothing_is_guessed(value: object) -> None:
    assert read_time(value) is None
    assert read_time(value, JUNE) is None


WORDS = st.sampled_from(
    [
        *("March", "may", "28", "28th", "2025", "11am", "11:00", "3/4", "03/28/2025", "28.03.2025", "Friday", "GMT+2"),
        *("at", "of", ",", "-", "+0100", "PST", "T", "Z", "am", "99", "1e5", "of the", "5 min ago", ".", "29", "feb"),
    ]
)


@given(
    value=st.text() | st.lists(WORDS, max_size=8).map(" ".join) | st.floats() | st.integers() | st.lists(st.text()),
    near=st.none() | st.datetimes(timezones=st.none() | st.just(UTC)),
)
def test_anything_is_a_time_or_none(value: object, near: datetime | None) -> None:
    read = read_time(value, near)
    assert read is None or isinstance(read, datetime)
    if read is not None:
        # It can be kept and compared like any other.
        assert isinstance(epoch(read), float)
        assert parse_time(read.isoformat()) == read


@given(st.text(st.characters(exclude_categories=["N"])))
def test_a_text_without_a_digit_is_no_time(text: str) -> None:
    assert read_time(text, JUNE) is None


@given(st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)), st.sampled_from(["{d} {m} {y}", "{m} {d}, {y}"]))
def test_a_day_in_words_is_that_day(time: datetime, form: str) -> None:
    day, month, year = in_words(time).split()
    assert read_time(form.format(d=day, m=month, y=year)) == datetime(time.year, time.month, time.day)


@given(st.datetimes(datetime(1950, 1, 1), datetime(2199, 12, 31)))
def test_a_day_without_a_year_is_never_after_what_tells_of_it(near: datetime) -> None:
    for text in ("March 28th, 11am", "29 February", "December 31, 23:59"):
        read = read_time(text, near)
        assert read is not None
        # Where the day begins first, it is 14 hours further.
        assert read <= near + timedelta(hours=14)
        assert near - read < timedelta(days=8 * 366)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-03-28, 11:00 PM", datetime(2025, 3, 28, 23)),
        ("2025/3/28", datetime(2025, 3, 28)),
        ("March 28th, 2025 at 11 a.m.", datetime(2025, 3, 28, 11)),
        ("Mar. 28, 2025, 11:05:30", datetime(2025, 3, 28, 11, 5, 30)),
        ("March 28, 2025 11:00\u202fAM", datetime(2025, 3, 28, 11)),
        ("28-Mar-2025", datetime(2025, 3, 28)),
        ("Fri Mar 28 11:00:00 2025", datetime(2025, 3, 28, 11)),
        ("Fri, 28 Mar 2025 11:00:00 +0100 (CET)", datetime(2025, 3, 28, 11, tzinfo=CET)),
        ("Mar 28 2025 11:00 PST", datetime(2025, 3, 28, 11, tzinfo=timezone(timedelta(hours=-8)))),
        ("3/28/2025, 11:05 PM", datetime(2025, 3, 28, 23, 5)),
    ],
)
def test_what_programs_print_for_people_is_read(text: str, expected: datetime) -> None:
    read = read_time(text)
    assert read == expected
    assert read is not None
    assert read.utcoffset() == expected.utcoffset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("June 1, 13:59", datetime(2025, 6, 1, 13, 59)),
        ("June 1, 14:01", datetime(2024, 6, 1, 14, 1)),
        ("June 1, 00:30 UTC", datetime(2024, 6, 1, 0, 30, tzinfo=UTC)),
    ],
)
def test_today_may_have_begun_elsewhere(text: str, expected: datetime) -> None:
    assert read_time(text, JUNE) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("call me at 10", "2 days ago", "next Friday 11am", "Mar 2025 11:00", "2025-03", "28.03.25", "28 Mar 25"),
        *("may 10 10", "March 28th 1130", "1.2.3", "10.11.12.2013", "12 12", "12:30 10", "Mar 28 2025 11:00 XYZ"),
        *("28.03.2025 - 29.03.2025", "March 28th, 2025 (maybe)", "28 März 2025", "123456789012", "1e9999 may"),
        *("may 1 2025 " + "9" * 50, "\x00 1 may", "March 28, 0025", "March 28, 9999", "28 March 2025 10:00 CET+5"),
    ],
)
def test_what_only_looks_like_a_time_is_none(text: str) -> None:
    assert read_time(text) is None
    assert read_time(text, JUNE) is None


def test_the_zone_of_this_computer_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Australia/Sydney")
    if hasattr(time, "tzset"):
        time.tzset()
    try:
        assert read_time("Mar 28 2025 11:00 AEDT") is None
        assert read_time("Mar 28 2025 11:00 EST") == datetime(2025, 3, 28, 16, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        if hasattr(time, "tzset"):
            time.tzset()
