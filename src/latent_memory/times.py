"""Times: read from what people and files write, kept as they were given, compared as one scale.

A time with a zone keeps it; a time without one stays without one. To compare the two, a time without a
zone counts as UTC. Knows nothing of times that depend on today ("last March", "yesterday").
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo

from latent_memory.errors import InputError

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# Epoch numbers beyond this are taken for milliseconds: as seconds they would lie after the year 5138.
_MILLISECONDS_FROM = 1e11
# Seconds of 1973 to 2286, or milliseconds; twelve and fourteen digits are more often 202503281100(00).
_DIGITS = re.compile(r"\d{9,}")
_NUMBER = re.compile(r"-?(\d{9,10}(\.\d+)?|\d{13})")


def parse_time(value: object, where: str = "timestamp") -> datetime | None:
    """Read a time from a datetime, an ISO 8601 text or a number of seconds (or milliseconds) since 1970.

    Args:
        value: the time as it was given; None and "" mean that there is none.
        where: the field's name for the error message.

    Returns:
        The time, with the zone it was given with (numbers are UTC), or None.

    Raises:
        InputError: if `value` is no time.
    """
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    # A number that a CSV or a form made a text of; ISO 8601's shortest date has eight digits.
    number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) else value
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        try:
            seconds = number / 1000 if abs(number) >= _MILLISECONDS_FROM else number
            # Not fromtimestamp: on Windows that knows no time before 1970.
            return _BEGINNING + timedelta(seconds=seconds)
        except (ValueError, OverflowError):
            pass
    elif isinstance(value, str) and not _DIGITS.fullmatch(value.strip()):
        try:
            return datetime.fromisoformat(value.strip())
        except ValueError:
            pass
    # Not repr() of the whole: a number of thousands of digits has none.
    shown = "a number beyond all time" if isinstance(value, int) and abs(value) > 1e18 else repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    raise InputError(
        f"{where}: {shown} is no time; give ISO 8601 such as 2025-03-28T11:00:00+01:00, "
        "or seconds since 1970 as a number"
    )


def read_time(value: object, near: datetime | None = None) -> datetime | None:
    """Read a time as people write it: "March 28th, 11am", "28.03.2025 11:00", or anything that `parse_time` reads.

    Nothing is guessed. A text that tells no day of the month ("March 2025", "10", "11am", "yesterday") is no time, and
    neither is one that two readers would read as two days: 03/04/2025 and 03-04-2025 are none, 28/03/2025 and
    03/28/2025 are, and with dots the day comes first. A year has four digits. Names of months are English.

    Args:
        value: a text, or a number: seconds of 9 or 10 digits, milliseconds of 13, or a day such as 20250328.
        near: when the text was written, at the latest. A day without a year is the last such day before it; without
            `near` it is no time.

    Returns:
        The time, with the zone that it tells (numbers are UTC), or None. Never raises.
    """
    if isinstance(value, (int, float)) and not isinstance(value, (bool, datetime)):
        if not (1e8 <= abs(value) < 1e10 or 1e12 <= abs(value) < 1e13):
            value = str(int(value)) if abs(value) < 1e9 and value == int(value) else None
    elif not isinstance(value, (str, date)):
        return None
    try:
        return parse_time(value)
    except InputError:
        assert isinstance(value, str)
        text = " ".join(value.split())
        return _in_words(text, near) if 5 <= len(text) <= _MOST_CHARACTERS and text.isprintable() else None


# "Wednesday, September 28th, 2025 at 11:00:00.000000 AM +0100 (CET)" has 61.
_MOST_CHARACTERS = 80
_MONTH = re.compile(r"(?<![a-z])(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)", re.IGNORECASE)
_WEEKDAY = re.compile(r"(?<![a-z])(mon|tue|wed|thu|fri|sat|sun)", re.IGNORECASE)
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NUMERIC = re.compile(
    r"(?<![\d./-])(?:(?P<y>\d{4})(?P<s>[-/.])(?P<m>\d{1,2})(?P=s)(?P<d>\d{1,2})"
    r"|(?P<a>\d{1,2})(?P<t>[-/.])(?P<b>\d{1,2})(?P=t)(?P<z>\d{4}))(?![\d/-]|\.\d)"
)
# Defaults of which none can be taken for what a text told: no two share a field, and both years are leap years.
_DEFAULTS = (datetime(2000, 1, 1), datetime(2004, 3, 15))
# Of the names of zones, those that RFC 2822 (4.3) defines, and central Europe's; others mean several things. In hours.
_ZONES = {
    **{"UTC": 0, "GMT": 0, "UT": 0, "Z": 0, "CET": 1, "CEST": 2},
    **{"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7},
}
# A time without a zone may have been written where the day begins first (UTC+14).
_FIRST_ZONE = timedelta(hours=14).total_seconds()


def _in_words(text: str, near: datetime | None) -> datetime | None:
    dates = list(_NUMERIC.finditer(text))
    if len(dates) == 1:
        found = dates[0]
        day = _numeric_day(found)
        if day is None:
            return None
        time = _read_by_dateutil(f"{text[: found.start()]}{day.isoformat()}{text[found.end() :]}")[0]
        return time if time is not None and time.date() == day else None
    if dates or not _MONTH.search(text):
        return None
    first, second = _read_by_dateutil(text)
    if first is None or second is None or (first.month, first.day) != (second.month, second.day):
        return None
    if first.year == second.year:
        # Not a year that was made of two digits, or of an hour.
        told = re.search(rf"(?<!\d){first.year}(?!\d)", text) and 1900 <= first.year < 2200
        return first if told else None
    return None if near is None else _latest(first, near, _WEEKDAY.search(text))


def _numeric_day(found: re.Match[str]) -> date | None:
    if found["y"]:
        year, month, day = int(found["y"]), int(found["m"]), int(found["d"])
    else:
        day, month, year = int(found["a"]), int(found["b"]), int(found["z"])
        if found["t"] != ".":
            if month > 12:
                day, month = month, day
            elif day <= 12 and day != month:
                return None
    try:
        return date(year, month, day) if 1900 <= year < 2200 else None
    except ValueError:
        return None


def _read_by_dateutil(text: str) -> tuple[datetime | None, datetime | None]:
    """Return what a text tells, once for each of the defaults that stand for what it does not tell."""
    # Here and not above: most times are ISO 8601, and it takes a while to load.
    from dateutil import parser

    # GMT+2, which dateutil takes for two hours west, as POSIX does; people mean two hours east.
    text = re.sub(r"\b(?:GMT|UTC) ?(?=[+-]\d)", "", text)
    try:
        first, second = (parser.parse(text, default=default, tzinfos=_zone) for default in _DEFAULTS)
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError):
        # It promises a ValueError, and has raised each of the others.
        return None, None
    return first, second


def _zone(name: str | None, offset: int | None) -> tzinfo | None:
    if name is not None:
        if name not in _ZONES or offset not in (None, 0, _ZONES[name] * 3600):
            raise ValueError(f"{name!r} is no zone that means the same everywhere")
        offset = _ZONES[name] * 3600
    return None if offset is None else timezone(timedelta(seconds=offset))


def _latest(time: datetime, near: datetime, weekday: re.Match[str] | None) -> datetime | None:
    """Return the time in the last year in which it was not after `near`, and on that day of the week if one is told."""
    limit = epoch(near) + (0 if time.tzinfo else _FIRST_ZONE)
    # 29 February comes back on the same day of the week after 28 years, or 40 where a century is in between.
    for year in range(near.year + 1, near.year - 41, -1):
        try:
            candidate = time.replace(year=year)
        except ValueError:
            continue
        on_the_day = weekday is None or _WEEKDAYS[candidate.weekday()] == weekday[1].lower()
        if on_the_day and epoch(candidate) <= limit:
            return candidate
    return None


def epoch(time: datetime) -> float:
    """Return seconds since 1970; a time without a zone counts as UTC."""
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def in_words(time: datetime) -> str:
    """Return the day as people write it, "28 March 2025": the words a question about a date would use."""
    return f"{time.day} {_MONTHS[time.month - 1]} {time.year}"


# Not strftime("%B"): that follows the process's locale, and an index must not.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
