"""Events out of bytes, in whatever pieces they come."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory.sse import Events


def read(*chunks: bytes, most: int = 1 << 20) -> list[str]:
    events = Events(most)
    return [data for chunk in chunks for data in events.feed(chunk)] + events.end()


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: one\n\ndata: two\n\n", ["one", "two"]),
        (b"data:one\n\n", ["one"]),
        (b"data:  one\n\n", [" one"]),
        (b"data: one\ndata: two\n\n", ["one\ntwo"]),
        (b": a comment\n\ndata: one\n\n", ["one"]),
        (b"event: delta\nid: 7\nretry: 10\ndata: one\n\n", ["one"]),
        (b"data\n\n", [""]),
        (b"data: a: b\n\n", ["a: b"]),
        (b"other: x\n\n", []),
        (b"\xef\xbb\xbfdata: one\n\n", ["one"]),
        (b"data: \xef\xbb\xbfone\n\n", ["\ufeffone"]),
        (b"\n\n\n\n", []),
        (b"", []),
        ("data: 大阪 🎉\n\n".encode(), ["大阪 🎉"]),
        (b"data: \xff\n\n", ["\ufffd"]),
        # What no empty line ends.
        (b"data: one\n\ndata: two", ["one", "two"]),
        (b"data: one\n", ["one"]),
        # Other marks that Python takes for the end of a line are text.
        ("data: a\u2028b\x0bc\x1cd\x85e\n\n".encode(), ["a\u2028b\x0bc\x1cd\x85e"]),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_whole_and_byte_by_byte(stream: bytes, expected: list[str], end: bytes) -> None:
    stream = stream.replace(b"\n", end)
    expected = [data.replace("\r", "\n") for data in expected]
    assert read(stream) == expected
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == expected


def test_events_come_as_soon_as_they_are_complete() -> None:
    events = Events()
    assert events.feed(b"data: on") == []
    assert events.feed(b"e\n") == []
    assert events.feed(b"\ndata: two\r\n\r") == ["one", "two"]
    assert events.feed(b"\ndata: three\r\n\r\n") == ["three"]


def test_an_event_that_is_too_large_is_passed_over() -> None:
    large = b"data: " + b"x" * 500
    assert read(b"data: one\n\n" + large + b"\n\ndata: two\n\n", most=100) == ["one", "two"]
    many = b"".join(b"data: %d\n" % i for i in range(100))
    assert read(b"data: one\n\n" + many + b"\ndata: two\n\n", most=100) == ["one", "two"]


def test_of_an_event_that_is_too_large_nothing_is_held() -> None:
    events = Events(most=1_000)
    for _ in range(1_000):
        events.feed(b"x" * 1_000)
    assert sum(map(len, events._line)) <= 1_000
    assert events.feed(b"\n\ndata: two\n\n") == ["two"]


_LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20)


@given(
    st.lists(st.lists(_LINES, min_size=1, max_size=3), max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_any_events_cut_anywhere(events: list[list[str]], end: bytes, cuts: list[int]) -> None:
    stream = b"".join(b"".join(b"data: " + line.encode() + end for line in lines) + end for lines in events)
    places = [0, *sorted(cuts), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(places)]
    assert read(*chunks) == ["\n".join(lines) for lines in events]


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_any_bytes_are_read_without_an_error(chunks: list[bytes]) -> None:
    assert read(*chunks) == read(b"".join(chunks))
