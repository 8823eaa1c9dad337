"""What was answered, read from a copy of the bytes that pass by; the bytes themselves are not touched."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Protocol

from latent_memory import enrichment
from latent_memory.enrichment import Api
from latent_memory.sse import MEBIBYTE, Events

# Of an answer; what is longer is passed on, and its beginning is kept.
MOST_CHARACTERS = 4_000_000
# Of an answer that does not come in events: it can only be read as a whole.
MOST_BYTES = 16 * MEBIBYTE


class _Decoder(Protocol):
    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes: ...


class Copy:
    """Takes the bytes of an answer as they come; tells what was said in it.

    Args:
        api: the shape of the answer.
        headers: of the answer.
    """

    def __init__(self, api: Api, headers: Sequence[tuple[bytes, bytes]]) -> None:
        told = {name.lower(): value.strip().lower() for name, value in headers}
        kind = told.get(b"content-type", b"").partition(b";")[0].strip()
        encoding = told.get(b"content-encoding", b"identity")
        self._answer = enrichment.answer_of(api)
        self._events = Events() if kind == b"text/event-stream" else None
        # In compressed form all of it may be a small part of what it is.
        self._decoder: _Decoder | None = zlib.decompressobj(47) if encoding in (b"gzip", b"deflate") else None
        self._whole: list[bytes] = []
        self._bytes = 0
        self.unreadable: str | None = None
        """Why the answer cannot be read; None if it can."""
        if self._events is None and kind != b"application/json":
            self._give_up(f"its type is {kind.decode('latin-1')[:60]!r}")
        elif self._decoder is None and encoding not in (b"identity", b""):
            self._give_up(f"its encoding is {encoding.decode('latin-1')[:60]!r}")

    def feed(self, chunk: bytes) -> None:
        """Take a piece."""
        if self.unreadable is not None:
            return
        if self._decoder is not None:
            try:
                chunk = self._decoder.decompress(chunk, MOST_BYTES)
            except zlib.error as error:
                self._give_up(str(error))
                return
        if self._events is not None:
            for data in self._events.feed(chunk):
                self._event(data)
            return
        self._bytes += len(chunk)
        if self._bytes > MOST_BYTES:
            self._give_up(f"larger than {MOST_BYTES:,} bytes")
        else:
            self._whole.append(chunk)

    def end(self) -> None:
        """Take what is left: nothing more will come."""
        if self.unreadable is not None:
            return
        if self._events is not None:
            for data in self._events.end():
                self._event(data)
            return
        try:
            self._answer.whole(json.loads(b"".join(self._whole)))
        except (ValueError, RecursionError) as error:
            self._give_up(f"no JSON ({error})")
        self._whole.clear()

    @property
    def is_stream(self) -> bool:
        """Whether the answer comes in events."""
        return self._events is not None

    @property
    def text(self) -> str:
        """What was said so far."""
        return self._answer.text[:MOST_CHARACTERS]

    @property
    def response_id(self) -> str | None:
        """The id that the upstream gave to the answer, where it does that."""
        return self._answer.response_id if isinstance(self._answer, enrichment.ResponsesAnswer) else None

    def _event(self, data: str) -> None:
        if data == "[DONE]" or self._answer.characters > MOST_CHARACTERS:
            return
        try:
            self._answer.event(json.loads(data))
        except (ValueError, RecursionError):
            # Not all that comes as an event need be one of the API's.
            return

    def _give_up(self, why: str) -> None:
        self.unreadable = why
        self._whole.clear()
