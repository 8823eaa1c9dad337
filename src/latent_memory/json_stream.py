"""JSON lists too large to hold: one element at a time, in the memory that one element takes.

The list is all that a stream holds, or stands in an object under a name.

The standard library's decoder does the reading, so that every value means what `json.load` makes of it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, BinaryIO

from latent_memory.errors import InputError

_CHUNK = 1 << 16
# An element beyond this is not one conversation or one passage; a file that is no JSON ends here instead of in memory.
MOST_ELEMENT_CHARACTERS = 1 << 28

# Longer than any piece of JSON, strings apart, that is an error only because its end was not read yet ("-Infinity").
_LONGEST_TOKEN = 16

_UNFINISHED = re.compile(r"([.eE][+-]?)?")
_SPACE = re.compile(r"[ \t\n\r]*")


def elements(stream: BinaryIO) -> Iterator[Any]:
    """Yield the elements of the JSON array that a UTF-8 stream holds.

    Raises:
        InputError: if the stream is not UTF-8, not JSON, no array, or ends within it; the message names the line.
    """
    text = _Text(stream)
    opening = text.skip_space()
    if opening != "[":
        found = {"{": "an object", "": "nothing"}.get(opening, f"{opening!r}")
        raise InputError(f"a JSON array (a list in square brackets) was expected, not {found}")
    yield from _whole(text)


def values(stream: BinaryIO) -> Iterator[Any]:
    """Yield the elements of the array that a UTF-8 stream holds; if it holds no array, the values that it does hold.

    Raises:
        InputError: if the stream is not UTF-8, not JSON, or ends within a value; the message names the line.
    """
    text = _Text(stream)
    if text.skip_space() == "[":
        yield from _whole(text)
    else:
        while text.skip_space():
            yield text.value()


def listed(stream: BinaryIO, names: Collection[str]) -> Iterator[tuple[int, str, Any]]:
    """Yield the elements of the lists that objects hold under these names, one at a time.

    Args:
        stream: UTF-8; one object, or several after each other.
        names: of the lists.

    Yields:
        The object's number from 1, an element's place in it ("results[3]"), and the element. Of an object without
        such a list, and of any other value, the value as a whole, whose place is "".

    Raises:
        InputError: if the stream is not UTF-8, not JSON, or ends within a value; the message names the line.
    """
    text = _Text(stream)
    number = 0
    while opening := text.skip_space():
        number += 1
        if opening != "{":
            yield number, "", text.value()
            continue
        found, rest = False, {}
        for key in _keys(text):
            if key in names and text.skip_space() == "[":
                found = True
                for index, element in enumerate(_elements(text)):
                    yield number, f"{key}[{index}]", element
            else:
                rest[key] = text.value()
        if not found:
            yield number, "", rest


def abridged(stream: BinaryIO, most: int) -> Iterator[Any]:
    """Yield the values that a UTF-8 stream holds, objects without what follows the first elements of their lists.

    Args:
        stream: as of `listed`.
        most: so many elements of each list that stands in an object are kept.

    Raises:
        InputError: if the stream is not UTF-8, not JSON, or ends within a value; the message names the line.
    """
    text = _Text(stream)
    while opening := text.skip_space():
        if opening != "{":
            yield text.value()
            continue
        short: dict[str, Any] = {}
        for key in _keys(text):
            if text.skip_space() == "[":
                elements = _elements(text)
                short[key] = list(islice(elements, most))
                # The rest is read past: what comes after it may tell more.
                for _ in elements:
                    pass
            else:
                short[key] = text.value()
        yield short


def _keys(text: _Text) -> Iterator[str]:
    """Yield the keys of an object; before the next one is asked for, the value that follows has to be read."""
    text.take(1)
    if text.skip_space() == "}":
        text.take(1)
        return
    while True:
        if text.skip_space() != '"':
            raise text.error("a name in double quotes was expected")
        key = text.value()
        if text.skip_space() != ":":
            raise text.error("a colon was expected")
        text.take(1)
        yield key
        if text.closes("}", "object"):
            return


def _whole(text: _Text) -> Iterator[Any]:
    yield from _elements(text)
    if text.skip_space():
        raise text.error("something follows the list's end")


def _elements(text: _Text) -> Iterator[Any]:
    text.take(1)
    if text.skip_space() == "]":
        text.take(1)
        return
    while True:
        yield text.value()
        if text.closes("]", "list"):
            return


class _Text:
    """The part of a stream that was read and not yet used."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._start = 0
        self._bytes = 0
        self._line = 1
        self._ended = False

    def _more(self) -> bool:
        """Read on, twice as much as is waiting, so that a long element is not scanned too often."""
        if self._ended:
            return False
        chunk = self._stream.read(max(_CHUNK, len(self._buffer) - self._start))
        self._ended = not chunk
        try:
            decoded = self._decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 (near byte {self._bytes + error.start})") from None
        self._bytes += len(chunk)
        self._line += self._buffer.count("\n", 0, self._start)
        self._buffer, self._start = self._buffer[self._start :] + decoded, 0
        return True

    def take(self, count: int) -> None:
        self._start += count

    def skip_space(self) -> str:
        """Go to the next character that is no white space, and return it; "" at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._start)
            assert match is not None
            self._start = match.end()
            if self._start < len(self._buffer):
                return self._buffer[self._start]
            if not self._more():
                return ""

    def closes(self, bracket: str, what: str) -> bool:
        """Read what stands between two values: the closing bracket, or a comma."""
        following = self.skip_space()
        if following not in (bracket, ","):
            raise self.error(f"it ends within the {what}" if not following else "a comma was expected")
        self.take(1)
        return following == bracket

    def value(self) -> Any:
        """Read one value."""
        self.skip_space()
        while True:
            try:
                value, end = self._scan(self._buffer, self._start)
            except json.JSONDecodeError as error:
                waiting = len(self._buffer) - self._start
                # Only what stands at the end of the buffer can be cut off; a mistake before it stays one.
                cut = error.pos + _LONGEST_TOKEN > len(self._buffer) or error.msg.startswith("Unterminated string")
                if not cut or waiting > MOST_ELEMENT_CHARACTERS or not self._more():
                    raise self.error(error.msg, error.pos) from None
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError as error:  # a whole number of more digits than Python reads
                raise self.error(str(error)) from None
            else:
                # A number may go on in what was not read yet: 1 and 1. and 1e+ are the beginning of others.
                if not _UNFINISHED.fullmatch(self._buffer, end) or not self._more():
                    self._start = end
                    return value

    def error(self, reason: str, position: int | None = None) -> InputError:
        at = self._start if position is None else position
        return InputError(f"not JSON ({reason}: line {self._line + self._buffer.count(chr(10), 0, at)})")
