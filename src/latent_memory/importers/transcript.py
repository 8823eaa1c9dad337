"""Transcripts: plain text or Markdown in which lines tell who speaks.

    ## User                     a heading
    **Ana:** ...                a name in bold
    **User**                    a name in bold, alone in its line
    [00:12:03] Ana: ...         a name behind a time
    2024-05-01 10:00 - Ana: ... a name behind a date and a time
    User: ...                   a name

A file is one conversation, in the form of these that most of its lines are in; what follows a speaker's line, up to
the next, is what they say. Code fences are kept as they are. Where a user and an assistant speak, nobody else does.
Among people, a name counts as a speaker's if it stands in bold before a colon or behind a time, or speaks more than
once: "Note: ..." is text. Fields are no speakers: words of a diary ("Breakfast: ..."), and three or more names that
always come in the same order.

User, Human, Me and You have the role "user"; Assistant, AI, Bot and the assistants' own names "assistant"; System
"system"; anybody else is a person, so a "user" with a name. Q and A, and User and Agent, are a user and an assistant if
both are there. A time with a date dates a turn if it can be read in one way only: "01/05/2024" cannot. A time of day
alone is where in a recording something was said, and is left out.

The conversation's id is made of the file's name and the first line that was said: a transcript that grows stays the
same conversation, and two of the same name in different folders are two.

Source: no standard; the forms that chat interfaces' export buttons and meeting recorders write. A name alone in bold is
how Cursor's "Export Chat" writes ("**User**", "---", "**Cursor**") and SpecStory ("_**User (2025-12-25 10:07Z)**_",
"_**Agent (model claude-opus-4-5)**_"; https://github.com/specstoryai/getspecstory).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from latent_memory.errors import InputError
from latent_memory.importers.base import Reading, Sample
from latent_memory.records import MOST_TURN_CHARACTERS, Conversation, Turn
from latent_memory.times import read_time

DESCRIPTION = "Markdown or plain-text transcripts (.md, .txt)"

_ROLES = dict.fromkeys(("user", "human", "me", "you"), "user") | {"system": "system"}
_ROLES |= dict.fromkeys(("assistant", "ai", "ai assistant", "bot", "gpt", "chatgpt", "gpt-4", "gpt-4o"), "assistant")
_ROLES |= dict.fromkeys(("claude", "gemini", "copilot", "llama", "model", "cursor"), "assistant")
# Of these, one alone may be anything: a point A, an agent whom a customer calls.
_PAIRS = (("q", "a"), ("user", "agent"))

# Words that stand before a colon in any text and in any log.
_NO_NAMES = frozenset(
    {
        *("note", "notes", "nb", "ps", "example", "examples", "warning", "warn", "error", "info", "debug"),
        *("trace", "fatal", "critical", "notice", "hint", "tip", "todo", "fixme", "step", "steps", "result"),
        *("results", "output", "input", "summary", "question", "answer", "source", "sources", "url", "http", "https"),
        *("title", "date", "time", "subject", "from", "to", "cc", "bcc", "re", "fwd", "edit"),
        *("update", "important", "reminder", "key", "value", "name", "type", "status", "version", "see", "usage"),
        *("returns", "args", "raises", "pros", "cons", "total", "step", "goal"),
        *(
            "breakfast",
            "brunch",
            "lunch",
            "dinner",
            "supper",
            "snack",
            "snacks",
            "morning",
            "afternoon",
            "evening",
            "night",
        ),
        *(
            "monday",
            "tuesday",
            "wednesday",
            "thursday",
            "friday",
            "saturday",
            "sunday",
            "today",
            "yesterday",
            "tomorrow",
        ),
        *("mood", "weather", "sleep", "exercise", "workout", "gratitude", "highlight", "highlights", "food", "drinks"),
    }
)

# A colon in a name would make two of every ratio and URL; a name begins with a letter and is a few words.
_NAME = r"[^\W\d_](?:[\w .'’()&-]{0,38}[\w.')])?"
_BARE_NAME = r"[^\W\d_](?:[\w .'’&-]{0,38}[\w.'])?"
_TIME = r"\d[\dT:.,/\-\u202f ]{3,28}(?:[AaPp]\.?[Mm]\.?)?(?:Z|[+-]\d\d:?\d\d)?"
_BEFORE = rf"(?:[\[(](?P<before>{_TIME})[\])]\s*(?:[-–]\s*)?)?"
_AFTER = rf"(?:\s*[\[(](?P<after>{_TIME})[\])])?"
# "## 🤖 Assistant"
_ICON = r"(?:[^\w\s*#(\[`]+\s+)?"
# A date, and a time of day.
_DATED = r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})[T,\s]\s?\d{1,2}[:.]\d\d"
_FORMS = {
    "heading": re.compile(
        rf"#{{1,6}}\s+{_ICON}{_BEFORE}\*{{0,2}}(?P<name>{_NAME}?){_AFTER}:?\*{{0,2}}:?\s*#*(?P<text>)"
    ),
    "bold": re.compile(
        rf"{_BEFORE}(?:\*\*|__){_ICON}(?P<name>{_NAME}?){_AFTER}(?::(?:\*\*|__)|(?:\*\*|__):)(?P<text>.*)"
    ),
    # In parentheses may stand a time, or a model's name, which is left out.
    "alone": re.compile(
        rf"_?(?:\*\*|__){_ICON}(?P<name>{_BARE_NAME}?)(?P<before>)(?:\s*\((?P<after>[^()\n]{{1,100}})\))?(?:\*\*|__)_?(?P<text>)"
    ),
    "timed": re.compile(
        rf"(?:(?P<open>[\[(])|(?={_DATED}))(?P<before>{_TIME})(?(open)[\])]\s*(?:[-–]\s*)?|\s[-–]\s)"
        rf"(?P<name>{_NAME}?)(?P<after>):(?:\s(?P<text>.*)|$)"
    ),
    "plain": re.compile(rf"(?P<name>{_NAME}?){_AFTER}(?P<before>):(?:\s(?P<text>.*)|$)"),
}
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_RULE = re.compile(r"\s*([-*_])(?:\s*\1){2,}\s*")
_TITLE = re.compile(r"#\s+(\S.*)")

_SUFFIXES = (".txt", ".md", ".markdown", ".text")


class _Mark(NamedTuple):
    """A line that may tell who speaks."""

    name: str
    when: str
    text: str


@dataclass(slots=True)
class _Count:
    """What the lines of a file come to, in each form."""

    names: dict[str, Counter[str]] = field(default_factory=lambda: {form: Counter() for form in _FORMS})
    words: Counter[str] = field(default_factory=Counter)
    lines: int = 0

    def add(self, line: str) -> None:
        self.lines += 1
        for form in _FORMS:
            mark = _mark(form, line)
            # A text that gives a name to every line must not take memory for every line.
            if mark is not None and (mark.name in self.names[form] or len(self.names[form]) < 10_000):
                self.names[form][mark.name] += 1
                self.words[form] += len(mark.text.split())

    def speakers(self, form: str) -> frozenset[str]:
        """Return the names that count as speakers'."""
        sure = form in ("bold", "timed")
        found = self.names[form]
        roles = roles_of(found)
        if {"user", "assistant"} <= set(roles.values()):
            # Nobody else is in such a chat; what else is in bold or before a colon is in an answer.
            return frozenset(roles)
        return frozenset(name for name in found if found[name] > 1 or sure or name in roles)

    def spoken(self, form: str) -> int:
        return sum(self.names[form][name] for name in self.speakers(form))

    def best(self) -> str | None:
        """Return the form the file is in: one that names a role goes first, then the one with most lines."""

        def rank(form: str) -> tuple[int, int]:
            return len(set(roles_of(self.speakers(form)).values()) - {"system"}), self.spoken(form)

        best = max(_FORMS, key=rank)
        return best if self.spoken(best) else None


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return the role of each name that tells one, as an assistant's or a user's; people's names tell none."""
    folded = {name: name.casefold() for name in names}
    known = set(folded.values())
    roles = dict(_ROLES)
    for user, assistant in _PAIRS:
        if user in known and assistant in known:
            roles |= {user: "user", assistant: "assistant"}
    return {name: roles[each] for name, each in folded.items() if each in roles}


def recognises(sample: Sample) -> bool:
    """Tell whether a text is a transcript: it has two roles, or nothing else in it looks like anything but one."""
    if sample.members or sample.path.suffix.lower() not in _SUFFIXES or b"\0" in sample.start:
        return False
    # "[00:12] Ana: ..." begins as a JSON array of numbers does.
    if isinstance(sample.first, (dict, list)) and sample.shape != "lines":
        return False
    text = sample.start.decode(errors="ignore").removeprefix("\ufeff")
    lines = [line for line, fenced in _fenced(text.splitlines()) if not fenced and line.strip()]
    count = _Count()
    for line in lines:
        count.add(line)
    form = count.best()
    if form is None:
        return False
    speakers, spoken = count.speakers(form), count.spoken(form)
    roles = roles_of(speakers)
    if {"user", "assistant"} <= set(roles.values()):
        # A question and its answer may be a part of anything; a file of them is not.
        letters = all(len(name) == 1 for name in roles)
        return not letters or spoken >= 4 or spoken * 2 >= count.lines
    # Among people: names, in a line or two for each thing said, that say sentences. Lists of fields say words.
    proper = all(not name[0].islower() for name in speakers)
    enough = 2 <= len(speakers) <= 20 and spoken >= 4 and proper
    if form in ("heading", "alone") or _are_fields(form, lines, speakers):
        return False
    said = count.words[form] / max(1, sum(count.names[form].values()))
    return enough and (form != "plain" or (spoken * 2 >= count.lines and said >= 3))


def _are_fields(form: str, lines: list[str], speakers: frozenset[str]) -> bool:
    """Tell whether names are those of a form that was filled in several times: three or more, always in one order."""
    if form == "timed":
        return False
    names = [mark.name for line in lines if (mark := _mark(form, line)) is not None and mark.name in speakers]
    count = len(speakers)
    return 2 < count <= len(names) // 2 and all(name == names[at % count] for at, name in enumerate(names))


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the one conversation that a file is."""
    count = _Count()
    for line, fenced in _fenced(_lines(path, None)):
        if not fenced and line.strip():
            count.add(line)
    form = count.best()
    if form is None:
        if count.lines:
            reading.bad("", 'no line tells who speaks; "Name: ...", "**Name:** ..." or "## Name" was expected')
        return
    conversation = _read(path, reading, form, count.speakers(form))
    if conversation is not None:
        yield conversation


def _read(path: Path, reading: Reading, form: str, speakers: frozenset[str]) -> Conversation | None:
    turns: list[Turn] = []
    title: str | None = None
    mark: _Mark | None = None
    begun = at = 0
    said: list[str] = []
    size = 0
    first: _Mark | None = None
    opening = ""
    roles = roles_of(speakers)

    def close() -> None:
        nonlocal first, opening
        if mark is None:
            if any(line.strip() for line in said):
                reading.on_skip("text before the first speaker")
            return
        turn = _turn(mark, roles.get(mark.name), said, begun, reading)
        if turn is not None:
            turns.append(turn)
            if first is None:
                first, opening = mark, turn.text.split("\n", 1)[0]

    for at, (line, fenced) in enumerate(_fenced(_lines(path, reading)), start=1):
        found = None if fenced else _mark(form, line)
        if found is not None and found.name in speakers:
            close()
            mark, begun, said, size = found, at, [found.text] if found.text.strip() else [], len(found.text)
            continue
        if mark is None and title is None and not fenced and (heading := _TITLE.match(line)):
            title = heading[1].strip(" #*") or None
            continue
        size += len(line)
        # One line more than a turn may have is enough to refuse it.
        if size <= MOST_TURN_CHARACTERS * 2:
            said.append(line)
    close()
    if first is None:
        return None
    file = Path(reading.name).stem
    made = hashlib.blake2b("\0".join((file, first.name, first.when, opening)).encode("utf-8", "replace"), digest_size=8)
    dated = turns[0].timestamp is not None
    try:
        return Conversation(
            f"{file or 'transcript'}-{made.hexdigest()}",
            turns,
            title=title,
            timestamp=None if dated else reading.written,
            generated=frozenset() if dated else frozenset({"timestamp:file"}),
        )
    except InputError as error:
        reading.bad("", error)
        return None


def _turn(mark: _Mark, role: str | None, said: list[str], line: int, reading: Reading) -> Turn | None:
    while said and (not said[-1].strip() or _RULE.fullmatch(said[-1])):
        said.pop()
    text = "\n".join(said).strip("\r\n")
    if not text.strip():
        reading.on_skip("an empty message")
        return None
    try:
        return Turn(role or "user", text, _when(mark.when), None if role else mark.name)
    except InputError as error:
        reading.bad(f"line {line}", error)
        return None


def _mark(form: str, line: str) -> _Mark | None:
    match = _FORMS[form].fullmatch(line.rstrip())
    if match is None:
        return None
    name = match["name"].strip()
    if name.split()[0].casefold().strip(".") in _NO_NAMES or len(name.split()) > 5:
        return None
    return _Mark(name, (match["before"] or match["after"] or "").strip(), (match["text"] or "").strip())


def _when(text: str) -> datetime | None:
    """Return the time that a mark tells, if it has a date; a clock or a place in a recording is none."""
    if not re.match(r"\d{4}[-/.]\d|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}", text):
        return None
    return read_time(re.sub(r"[,\s]+", " ", text))


def _fenced(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield lines, and whether each belongs to a code fence."""
    fence = ""
    for line in lines:
        match = _FENCE.match(line)
        if fence:
            yield line, True
            if match and match[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        else:
            fence = match[1] if match else ""
            yield line, bool(match)


def _lines(path: Path, reading: Reading | None) -> Iterator[str]:
    """Yield the lines of a file without their ends; those that are no UTF-8 are reported, if to anybody."""
    with path.open("rb") as stream:
        bounded = iter(lambda: stream.readline(4 * MOST_TURN_CHARACTERS), b"")
        start = next(bounded, b"").removeprefix(b"\xef\xbb\xbf")
        for number, line in enumerate(chain([start], bounded), start=1):
            try:
                yield line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                if reading is not None:
                    reading.bad(f"line {number}", f"not UTF-8 (byte {error.start})")
