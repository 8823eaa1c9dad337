"""Server-sent events out of raw bytes, in whatever pieces they come. Knows nothing of what the events mean."""

from __future__ import annotations

MEBIBYTE = 1 << 20
_BOM = b"\xef\xbb\xbf"


class Events:
    """Bytes of a stream -> the data of its events, as the WHATWG's standard reads them.

    Args:
        most: bytes that one event may have; a larger one is passed over, and those after it are read.
    """

    def __init__(self, most: int = 8 * MEBIBYTE) -> None:
        self._most = most
        # A line that has not ended yet, in the pieces that it came in.
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._event_bytes = 0
        self._too_large = False
        self._after_return = False
        self._begun = False

    def feed(self, chunk: bytes) -> list[str]:
        """Take what came; return the data of the events that are complete by now."""
        if self._after_return and chunk[:1] == b"\n":
            # The second half of a line's end.
            chunk = chunk[1:]
            self._after_return = False
        if not chunk:
            return []
        self._after_return = chunk.endswith(b"\r")
        found: list[str] = []
        for piece in chunk.splitlines(keepends=True):
            line = piece.rstrip(b"\r\n")
            self._line_bytes += len(line)
            if self._event_bytes + self._line_bytes > self._most:
                self._too_large = True
                self._line.clear()
                self._data.clear()
            else:
                self._line.append(line)
            if len(line) < len(piece):
                found += self._end_line()
        return found

    def end(self) -> list[str]:
        """Return the data of a last event that no empty line ends; some servers leave it out."""
        last = self._end_line() if self._line_bytes else []
        return [*last, *self._end_event()]

    def _end_line(self) -> list[str]:
        line = b"".join(self._line)
        is_empty = not self._line_bytes
        self._event_bytes += self._line_bytes
        self._line.clear()
        self._line_bytes = 0
        if not self._begun:
            line = line.removeprefix(_BOM)
            self._begun = True
        if is_empty:
            return self._end_event()
        name, _, value = line.partition(b":")
        # What begins with a colon is a comment; other fields do not matter here.
        if name == b"data" and not self._too_large:
            self._data.append(value.removeprefix(b" "))
        return []

    def _end_event(self) -> list[str]:
        found = [b"\n".join(self._data).decode("utf-8", "replace")] if self._data else []
        self._data.clear()
        self._event_bytes = 0
        self._too_large = False
        return found
