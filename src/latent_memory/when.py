"""The time that a question tells: "last March", "in the week of the 8th", "before we moved", "most recently".

English, resolved against a reference time. What is found are windows of time, which recall prefers (or, if asked,
keeps to); a text that tells no time gives none, and nothing is guessed beyond that. Dates in figures are read as
times.py reads them, and steps of months and years are dateutil's.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple

import numpy as np
from dateutil.relativedelta import relativedelta

from latent_memory.times import epoch

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# Northern, by their first month; winter begins in the year before.
_SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
_NUMBERS = {
    **{"a": 1, "an": 1, "one": 1, "two": 2, "couple of": 2, "three": 3, "few": 3, "four": 4, "five": 5, "six": 6},
    **{"seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12},
}
_UNIT_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}
# Beyond a window, a turn fits the less the further it is; after so many of its lengths, e times less.
_DECAY = 0.5
_LEAST_DECAY = timedelta(days=2).total_seconds()
# Fits below this are none.
_LEAST_FIT = 0.02
_FOREVER = 1e12
_MOST_YEARS = 200


class Window(NamedTuple):
    """From `begin` (included) to `end` (not included), in seconds since 1970."""

    begin: float
    end: float


class When(NamedTuple):
    """The time that a text tells.

    Attributes:
        windows: any of them.
        yearly: a month and a day (1 if none is told), and how many days it lasts: of every year.
        newest: the latest of all is asked for.
        event: what happened before, after or at the time that is asked for, in words; it has to be looked for.
        relation: "before", "after" or "around" the event.
        rest: what is asked besides.
    """

    windows: tuple[Window, ...] = ()
    yearly: tuple[int, int, int] | None = None
    newest: bool = False
    event: str = ""
    relation: str = ""
    rest: str = ""

    def within(self, epochs: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Tell which of the times (n,), in seconds since 1970, lie within the windows."""
        inside = np.zeros(len(epochs), bool)
        for window in self._all(epochs):
            inside |= (epochs >= window.begin) & (epochs < window.end)
        return inside

    def fit(
        self,
        epochs: np.ndarray[Any, np.dtype[np.float64]],
        all_epochs: np.ndarray[Any, np.dtype[np.float64]],
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Tell how well times fit, from 0 to 1: 1 within a window, less and less beyond it.

        Args:
            epochs: (n,) seconds since 1970.
            all_epochs: of all there are: a month of every year is one of their years.
        """
        fits = np.zeros(len(epochs), np.float64)
        for window in self._all(all_epochs):
            scale = max(_LEAST_DECAY, _DECAY * min(window.end - window.begin, 366 * 86400.0))
            away = np.maximum(0.0, np.maximum(window.begin - epochs, epochs - window.end))
            fits = np.maximum(fits, np.exp(-away / scale))
        return np.where(fits < _LEAST_FIT, 0, fits).astype(np.float32)

    def _all(self, epochs: np.ndarray[Any, np.dtype[np.float64]]) -> list[Window]:
        windows = list(self.windows)
        if self.yearly is not None and len(epochs):
            month, day, days = self.yearly
            first, last = (datetime.fromtimestamp(at, UTC).year for at in (epochs.min(), epochs.max()))
            for year in range(max(1, first - 1), min(9999, last, first + _MOST_YEARS) + 1):
                if day <= monthrange(year, month)[1]:
                    begin = epoch(datetime(year, month, day))
                    windows.append(Window(begin, begin + 86400.0 * (days or monthrange(year, month)[1])))
        return windows


_MONTH = rf"(?P<month>{'|'.join(m if m == 'may' else f'{m[:3]}(?:{m[3:]})?' for m in _MONTHS)}|sept)\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>(?:19|20)\d\d)"
_COUNT = rf"(?P<count>\d{{1,3}}|{'|'.join(_NUMBERS)})"
_UNIT = r"(?P<unit>day|week|month|year)s?"
_WEEKDAY = rf"(?P<weekday>{'|'.join(_DAYS)})"
_SEASON = rf"(?P<season>{'|'.join(_SEASONS)})"
# Before a name of a month that is a word as well ("may", "march") must stand what makes it one.
_AT = r"(?:in|on|of|since|until|till|during|before|after|by|around|from|late|early|mid|end of|beginning of)"

_RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(rf"\b{pattern}\b", re.IGNORECASE))
    for name, pattern in (
        ("iso", r"(?P<iso>(?:19|20)\d\d-\d\d-\d\d)"),
        ("week of", rf"week of (?:the )?{_DAY}(?: (?:of )?{_MONTH})?(?:,? {_YEAR})?"),
        ("week of", rf"week of {_MONTH} {_DAY}(?:,? {_YEAR})?"),
        ("date", rf"(?<!\d){_DAY} (?:of )?{_MONTH}(?:,? {_YEAR})?"),
        ("date", rf"{_MONTH} {_DAY}(?!\d)(?:,? {_YEAR})?"),
        ("month", rf"{_MONTH}(?:,? | of ){_YEAR}"),
        ("last month", rf"(?P<which>last|this|next) {_MONTH}"),
        ("month", rf"{_AT} (?:the )?{_MONTH}"),
        ("season", rf"(?P<which>last|this|past)? ?{_SEASON}(?: (?:of )?{_YEAR})?"),
        ("ago", rf"(?:an? )?{_COUNT} {_UNIT} ago"),
        ("past", rf"(?:in|over|during|within) (?:the )?(?:last|past) {_COUNT} {_UNIT}"),
        ("last", r"(?P<which>last|this|past|next) (?P<what>week|weekend|month|year|night)"),
        ("weekday", rf"(?P<which>last|this|on|next) {_WEEKDAY}"),
        ("day", r"(?P<what>day before yesterday|yesterday|today|tonight|tomorrow|this (?:morning|afternoon|evening))"),
        ("recent", r"(?:recently|lately)"),
        ("year", rf"(?:in|of|since|until|till|during|before|after|by|from|throughout) {_YEAR}"),
    )
)
_LIMIT = re.compile(r"(?:before|after|since|until|till|by|from)\b", re.IGNORECASE)
# "between 3 May 2022 and 8 June 2022"
_RANGE = re.compile(
    rf"\b(?:between|from)\s+(?P<first>[^?.!;]{{3,30}}?{_YEAR}|(?:19|20)\d\d-\d\d-\d\d)\s+(?:and|to|until|till)\s+"
    r"(?P<last>[^?.!;]{3,30}?(?:19|20)\d\d\b|(?:19|20)\d\d-\d\d-\d\d)",
    re.IGNORECASE,
)
_TO = " \x00 "
_NEWEST = re.compile(
    r"\b(?:most recent(?:ly)?|latest|currently|right now|now|nowadays|these days|at the moment|at present|up to date|"
    r"last time|so far|any ?more|still|current)\b",
    re.IGNORECASE,
)
_BEFORE = re.compile(r"\b(before|until|till|prior to|by)\s+(?:the |late |early |mid[- ]?)*$", re.IGNORECASE)
_AFTER = re.compile(r"\b(after|since|from)\s+(?:the |late |early |mid[- ]?)*$", re.IGNORECASE)
# A clause: what is asked about "after the race" is said of the race, and what came "after we met" is not of that.
_EVENT = re.compile(
    r"\b(?P<relation>before|after|since|around the time)\s+(?:that )?"
    r"(?P<event>(?:i|we|you|he|she|they|it) [^?.!;,]{3,120})",
    re.IGNORECASE,
)
# A question for a time tells none: "When did she move, before the wedding or after it?"
_ASKS_WHEN = re.compile(r"\s*(?:and |so |but )?(?:when|what (?:day|date|month|year|time))\b", re.IGNORECASE)


def told(text: str, now: datetime) -> When | None:
    """Return the time that a question tells, or None.

    Args:
        text: the question.
        now: what "last week" is counted from; without a zone it is UTC's, as stored times without one are.
    """
    windows: list[Window] = []
    yearly: tuple[int, int, int] | None = None
    left = text
    left = _RANGE.sub(lambda match: match["first"] + _TO + match["last"], left)
    for name, rule in _RULES:
        while match := rule.search(left):
            found = _resolved(name, match, now)
            if isinstance(found, Window):
                before = left[: match.start()]
                if before.endswith(_TO) and windows:
                    # The rules do not come in the order of the text.
                    windows[-1] = Window(min(windows[-1].begin, found.begin), max(windows[-1].end, found.end))
                else:
                    windows.append(_turned(found, before, match.group()))
            elif found is not None and not (_BEFORE.search(left[: match.start()]) or _LIMIT.match(match.group())):
                # Before every June is no time.
                yearly = yearly or found
            left = left[: match.start()] + " " * len(match.group()) + left[match.end() :]
    newest = bool(_NEWEST.search(left))
    event = relation = rest = ""
    if not windows and yearly is None and not _ASKS_WHEN.match(left) and (match := _EVENT.search(left)):
        event, rest = match["event"].strip(), f"{text[: match.start()]} {text[match.end() :]}".strip()
        relation = {"before": "before", "after": "after", "since": "after"}.get(match["relation"].lower(), "around")
    if not windows and yearly is None and not newest and not event:
        return None
    return When(tuple(windows), yearly, newest, event, relation, rest)


def at_event(when: When, time: float) -> When:
    """Return the time that is meant, once it is known when the event was."""
    day = 86400.0
    window = {
        "before": Window(-_FOREVER, time),
        "after": Window(time, _FOREVER),
        "around": Window(time - 7 * day, time + 7 * day),
    }[when.relation]
    return when._replace(windows=(*when.windows, window), event="", relation="", rest="")


def _turned(window: Window, before: str, phrase: str) -> Window:
    """Return what is meant by "before May", "since 2022": the time up to the window, or from it on."""
    first = phrase.split()[0].lower()
    if _BEFORE.search(before) or first in ("before", "until", "till", "by"):
        return Window(-_FOREVER, window.begin if first == "before" or "before" in before.lower()[-10:] else window.end)
    if _AFTER.search(before) or first in ("since", "after", "from"):
        return Window(window.end if first == "after" or "after" in before.lower()[-9:] else window.begin, _FOREVER)
    return window


def _resolved(name: str, match: re.Match[str], now: datetime) -> Window | tuple[int, int, int] | None:
    group = match.groupdict()
    zone = now.tzinfo
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    day = timedelta(days=1)
    try:
        match name:
            case "iso":
                begin = datetime.fromisoformat(group["iso"]).replace(tzinfo=zone)
                return _window(begin, begin + day)
            case "date" | "week of":
                return _date(group, today, week=name == "week of")
            case "month":
                month = _month(group["month"])
                if group.get("year") is None:
                    return month, 1, 0
                return _of_month(int(group["year"]), month, zone)
            case "last month":
                month = _month(group["month"])
                year = today.year
                if group["which"].lower() == "last":
                    year -= month >= today.month
                elif group["which"].lower() == "next":
                    year += month <= today.month
                return _of_month(year, month, zone)
            case "season":
                return _of_season(group, today)
            case "ago":
                count, unit = _count(group["count"]), group["unit"].lower()
                middle = today - _step(unit, count)
                around = timedelta(days=max(0.5, _UNIT_DAYS[unit] / 2 if unit != "day" else 0))
                return _window(middle - around + day / 2, middle + around + day / 2)
            case "past":
                return _window(today - _step(group["unit"].lower(), _count(group["count"])), now + day)
            case "last":
                return _of_period(group["which"].lower(), group["what"].lower(), today)
            case "weekday":
                away = (today.weekday() - _DAYS.index(group["weekday"].lower())) % 7
                if group["which"].lower() == "next":
                    begin = today + timedelta(days=(7 - away) or 7)
                else:
                    begin = today - timedelta(days=away or (7 if group["which"].lower() == "last" else 0))
                return _window(begin, begin + day)
            case "day":
                what = group["what"].lower()
                shift = {"day before yesterday": -2, "yesterday": -1, "tomorrow": 1}.get(what, 0)
                return _window(today + shift * day, today + (shift + 1) * day)
            case "recent":
                return _window(today - 30 * day, now + day)
            case "year":
                year = int(group["year"])
                return _window(datetime(year, 1, 1, tzinfo=zone), datetime(year + 1, 1, 1, tzinfo=zone))
    except (ValueError, OverflowError):
        # A day that is none: 31 April.
        return None
    return None


def _window(begin: datetime, end: datetime) -> Window:
    return Window(epoch(begin), epoch(end))


def _month(name: str) -> int:
    return next(i for i, month in enumerate(_MONTHS, start=1) if month.startswith(name.lower()[:3]))


def _count(word: str) -> int:
    return int(word) if word.isdigit() else _NUMBERS[word.lower()]


def _step(unit: str, count: int) -> Any:
    return relativedelta(**{f"{unit}s": count})  # type: ignore[arg-type]


def _of_month(year: int, month: int, zone: tzinfo | None) -> Window:
    begin = datetime(year, month, 1, tzinfo=zone)
    return _window(begin, begin + relativedelta(months=1))


def _date(group: dict[str, str | None], today: datetime, *, week: bool) -> Window | tuple[int, int, int]:
    day = int(group["day"] or 1)
    length = 7 if week else 1
    if group.get("month") is None:
        # "The week of the 8th": the last one that has been.
        begin = today.replace(day=day)
        begin = begin if begin <= today else begin - relativedelta(months=1)
    elif group.get("year") is None:
        month = _month(group["month"] or "")
        # Raises ValueError for a day that no year has.
        datetime(2000, month, day)
        return month, day, length
    else:
        begin = datetime(int(group["year"] or 1), _month(group["month"] or ""), day, tzinfo=today.tzinfo)
    if week:
        begin -= timedelta(days=begin.weekday())
    return _window(begin, begin + timedelta(days=length))


def _of_season(group: dict[str, str | None], today: datetime) -> Window:
    first = _SEASONS[(group["season"] or "").lower()]
    year = int(group.get("year") or today.year)
    begin = datetime(year, first, 1, tzinfo=today.tzinfo)
    if not group.get("year"):
        if begin > today:
            begin -= relativedelta(years=1)
        if (group.get("which") or "").lower() == "last" and begin + relativedelta(months=3) > today:
            begin -= relativedelta(years=1)
    return _window(begin, begin + relativedelta(months=3))


def _of_period(which: str, what: str, today: datetime) -> Window:
    back = {"last": 1, "past": 1, "this": 0, "next": -1}[which]
    if what == "night":
        return _window(today - timedelta(days=back), today + timedelta(days=1 - back, hours=6))
    if what in ("week", "weekend"):
        monday = today - timedelta(days=today.weekday() + 7 * back)
        return _window(monday + timedelta(days=5 if what == "weekend" else 0), monday + timedelta(days=7))
    unit = {"month": relativedelta(months=1), "year": relativedelta(years=1)}[what]
    begin = today.replace(day=1) if what == "month" else today.replace(month=1, day=1)
    begin -= back * unit
    return _window(begin, begin + unit)
