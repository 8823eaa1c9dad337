"""What importers share: how a file is recognised, how it is read, and who is told what was left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from latent_memory import json_stream
from latent_memory.errors import InputError
from latent_memory.importers import archives
from latent_memory.messages import kind
from latent_memory.records import MOST_TURN_CHARACTERS, Conversation, Turn
from latent_memory.times import parse_time

Value = TypeVar("Value")
OnBad = Callable[[InputError], None]
OnSkip = Callable[[str], None]

# How much of a file is looked at to recognise it.
SAMPLE_BYTES = 1 << 16
# An export is often one line of any length; of JSON Lines, a first line that is longer is not expected.
_LONG_LINE = 1 << 24
# One conversation of an export can be many megabytes; a line or a first element beyond this is none.
MOST_LINE_BYTES = 1 << 28
# What some importer reads, by its name. Exports hold pictures and pages by the thousand beside it.
_READABLE = frozenset((".af", ".db", ".json", ".jsonl", ".md", ".sqlite", ".sqlite3", ".txt", ".yaml", ".yml"))


@dataclass(frozen=True, slots=True)
class Sample:
    """The beginning of a file, from which an importer tells whether it is one of its own.

    An importer is asked several times about one file if need be: with its first value, then with the next, so that
    one broken entry at the beginning does not hide what the file is.

    Attributes:
        path: the file, or the directory.
        start: its first bytes (up to SAMPLE_BYTES); of an archive or a directory those of its main member.
        members: names of the files in an archive or directory ("/" between folders); empty for a plain file.
        first: a JSON value from the beginning of the file (of the main member): of an array an element, of JSON
            Lines a line, of an object the object; None if it is no JSON.
        shape: "array", "lines" (several JSON values, one a line), "object" (one, on one line or over several) or
            "text".
    """

    path: Path
    start: bytes = b""
    members: tuple[str, ...] = ()
    first: Any = None
    shape: str = "text"


@dataclass(frozen=True, slots=True)
class Reading:
    """How one file is read, and who is told what was left out.

    Attributes:
        name: what messages call the file.
        written: when the file was written last; dates what tells no time itself.
        on_bad: called with the error of each part that cannot be used, which is then left out; without it that
            error is raised.
        on_skip: called with a few words ("an empty message") for each part that is left out by design.
        branches: keep what was said in other branches of a conversation that was edited.
        table, columns: of summaries, the table that is read, and the fields that have another name in the file.
    """

    name: str
    written: datetime
    on_bad: OnBad | None = None
    on_skip: OnSkip = lambda _: None
    branches: bool = False
    table: str | None = None
    columns: Mapping[str, str] | None = None

    def bad(self, where: str, reason: object) -> None:
        """Report a part that cannot be used: raise an InputError that says where and why, unless it is left out."""
        error = InputError(f"{self.name}, {where}: {reason}" if where else f"{self.name}: {reason}")
        if self.on_bad is None:
            raise error
        self.on_bad(error)

    def turn(
        self, where: str, role: str, text: str, when: object = None, name: object = None, *, spare: bool = False
    ) -> Turn | None:
        """Make a turn; None if it says nothing or cannot be used, which is reported.

        Args:
            where: its place, for the report.
            role, text, when, name: as of a Turn; a name that is no text is none.
            spare: leave it out by design if it is longer than a turn may be: what a tool printed, a file's text.
        """
        if not text.strip():
            self.on_skip("an empty message")
            return None
        if spare and len(text) > MOST_TURN_CHARACTERS:
            self.on_skip("an overlong text")
            return None
        try:
            return Turn(role, text, parse_time(when), name if isinstance(name, str) else None)
        except InputError as error:
            self.bad(where, error)
            return None

    def conversation(
        self,
        where: str,
        identifier: object,
        turns: Sequence[Turn],
        *,
        title: object = None,
        timestamp: object = None,
        metadata: Mapping[str, Any],
    ) -> Conversation | None:
        """Make a conversation; None if it has no turns or cannot be used, which is reported.

        One that tells no time is dated by its first turn that does, else by the file.

        Args:
            where: its place, for the report.
            identifier: the export's own id, a text or a number; None if it has none.
            turns: what was said.
            title, timestamp: a title that is no text is none.
            metadata: what else is kept; None in it is left out.
        """
        if not turns:
            self.on_skip("an empty conversation")
            return None
        generated: frozenset[str] = frozenset()
        try:
            when = parse_time(timestamp) or next((turn.timestamp for turn in turns if turn.timestamp), None)
            if when is None:
                when, generated = self.written, frozenset({"timestamp:file"})
            return Conversation(
                identifier_of(identifier),
                turns,
                title=title if isinstance(title, str) else None,
                timestamp=when,
                metadata={key: value for key, value in metadata.items() if value is not None},
                generated=generated,
            )
        except InputError as error:
            self.bad(where, error)
            return None


def identifier_of(value: object) -> str | None:
    """Return an id as a text; None if it is neither a text nor a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def parts_text(content: object, reading: Reading) -> str:
    """Return what a message's content says: the text itself, or the text parts of a list, one a line.

    Parts that are no text are left out, and told to `reading.on_skip`.

    Raises:
        InputError: if the content is neither a text, nor a list, nor null.
    """
    said = []
    for part in parts_of(content):
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            said.append(text)
        else:
            what = str(part.get("type") or part.get("content_type") or "") if isinstance(part, Mapping) else ""
            reading.on_skip(medium(what))
    return "\n".join(said)


def parts_of(content: object) -> list[Any]:
    """Return the parts of a message's content: of a list its elements, of a text the text, of null none.

    Raises:
        InputError: if the content is none of these.
    """
    if content is None or isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list):
        raise InputError(f"a text or a list of parts was expected, not {kind(content)}")
    return content


def medium(content_type: str) -> str:
    """Return what a part is that holds no text, in words for `on_skip`."""
    for sign, told in (("image", "an image"), ("audio", "a sound recording"), ("video", "a video")):
        if sign in content_type.lower():
            return told
    return "an attachment"


def call_text(name: object, arguments: object) -> str:
    """Return a tool call as a text: `name(arguments)`; what is no text among the arguments is written as JSON."""
    if not isinstance(name, str) or not name:
        return ""
    try:
        told = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    except RecursionError:
        told = "..."
    return f"{name}({told})"


# -- streams of JSON ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One file to read: a plain file (then it has no name), or a member of an archive or a directory."""

    name: str
    open: Callable[[], BinaryIO]

    def where(self, place: str) -> str:
        """Return a place in it, for messages."""
        return f"{self.name}, {place}" if self.name else place


def members(path: Path, reading: Reading, wanted: Callable[[str], bool], usual: str) -> Iterator[Member]:
    """Yield what is to be read of a path: the file itself, or the wanted members of an archive or a directory.

    Args:
        path: a plain file, a zip or a directory.
        reading: is told if there is none, and what was not wanted, if another importer could have read it.
        wanted: tells from a member's name, "/" between folders, whether it is to be read.
        usual: what the wanted members are called, for the message.
    """
    if not archives.is_archive(path):
        yield Member("", lambda: path.open("rb"))
        return
    with archives.opened(path, reading.name) as archive:
        there = [name for name in archive.names if not name.startswith("__MACOSX/")]
        names = [name for name in there if wanted(name)]
        for name in set(there).difference(names):
            if PurePosixPath(name).suffix.lower() in _READABLE:
                reading.on_skip("a file of another kind")
        for name in names:
            yield Member(name, lambda name=name: archive.open(name))  # type: ignore[misc]
        if not names:
            reading.bad("", f"there is no {usual} in it")


def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, each with its number from 1; a byte order mark is passed over.

    Raises:
        InputError: if a line is longer than any conversation.
    """
    number = 0
    while line := stream.readline(MOST_LINE_BYTES):
        number += 1
        if len(line) == MOST_LINE_BYTES:
            raise InputError(f"line {number}: longer than {MOST_LINE_BYTES >> 20} MiB; this is no line of text")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def json_lines(member: Member, reading: Reading) -> Iterator[tuple[str, Any]]:
    """Yield the JSON value of each line with its place; a line that is none is reported and passed over."""
    with member.open() as stream:
        for number, line in until_broken(lines(stream), member, reading):
            where = member.where(f"line {number}")
            try:
                value = json.loads(line.decode())
            except UnicodeDecodeError as error:
                reading.bad(where, f"not UTF-8 (byte {error.start})")
            except RecursionError:
                reading.bad(where, "not JSON (nested too deeply)")
            except ValueError as error:
                reading.bad(where, f"not JSON ({error})")
            else:
                yield where, value


def json_values(member: Member, reading: Reading) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a file's JSON array, or else its JSON values, each with its place.

    What follows a mistake in the JSON cannot be read; that is reported once.
    """
    with member.open() as stream:
        for number, value in enumerate(until_broken(json_stream.values(stream), member, reading), start=1):
            yield member.where(f"entry {number}"), value


def json_records(member: Member, reading: Reading) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a file, which is either JSON Lines or one JSON document, each with its place."""
    with member.open() as stream:
        shape = shape_of(stream)
    return json_lines(member, reading) if shape == "lines" else json_values(member, reading)


def shape_of(stream: BinaryIO) -> str:
    """Tell from a stream's beginning what it holds: "array", "lines", "object" or "text"; see Sample."""
    head = stream.read(SAMPLE_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    first, newline, rest = head.partition(b"\n")
    rest = rest.lstrip()
    if head.startswith(b"["):
        alone = is_json(first) if newline else _ends_early(stream, b"]")
        return "lines" if alone and (rest or not newline) else "array"
    if is_json(first) and head.startswith(b"{"):
        return "lines" if rest else "object"
    # The first line may be broken. In an object over several lines, one that is a value by itself is indented.
    if any(line[:1] == b"{" and is_json(line) for line in rest.splitlines()):
        return "lines"
    if not head.startswith(b"{"):
        return "text"
    if newline:
        return "object"
    return "lines" if _ends_early(stream, b"") else "object"


def _ends_early(stream: BinaryIO, closing: bytes) -> bool:
    """Tell whether a long first line, of which the rest is read here, ends so, and others follow it."""
    last = b""
    for _ in range(_LONG_LINE // SAMPLE_BYTES):
        if not (chunk := stream.read(SAMPLE_BYTES)):
            break
        line, newline, rest = chunk.partition(b"\n")
        last = (last + line).rstrip()[-1:]
        if newline:
            # An array may go on after its first line; then that ends with a comma or within something.
            return last.endswith(closing) and bool((rest + stream.read(SAMPLE_BYTES)).strip(b" \t\r\n]"))
    return False


def is_json(text: bytes) -> bool:
    """Tell whether a text is a JSON value by itself."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def until_broken(found: Iterator[Value], member: Member, reading: Reading) -> Iterator[Value]:
    """Yield what is found until an error ends it, which is reported; the archive's own errors are raised."""
    while True:
        try:
            value = next(found)
        except StopIteration:
            return
        except archives.ArchiveError:
            raise
        except InputError as error:
            reading.bad(member.name, error)
            return
        yield value
