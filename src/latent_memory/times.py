"""Times: read from what people and files write, kept as they were given, compared as one scale.

A time with a zone keeps it; a time without one stays without one. To compare the two, a time without a
zone counts as UTC. Knows nothing about natural language ("last March").
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

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
