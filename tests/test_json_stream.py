"""Arrays read one element at a time mean what `json.load` makes of them, wherever the stream is cut into pieces."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory import json_stream
from latent_memory.errors import InputError


class Pieces(io.BytesIO):
    """A stream that gives out a few bytes at a time, as one from a network does."""

    def __init__(self, content: bytes, most: int) -> None:
        super().__init__(content)
        self.most = most

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.most)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(values=st.lists(JSON, max_size=6), most=st.integers(1, 9), indent=st.sampled_from([None, 1]), bare=st.booleans())
def test_elements_are_what_the_standard_library_reads(
    values: list[Any], most: int, indent: int | None, bare: bool
) -> None:
    content = json.dumps(values, indent=indent, ensure_ascii=bare).encode("utf-8", "surrogatepass")
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    assert list(json_stream.elements(Pieces(content, most))) == json.loads(content)
    assert list(json_stream.values(Pieces(content, most))) == json.loads(content)


@given(values=st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=4), most=st.integers(1, 9))
def test_values_that_stand_in_no_array(values: list[Any], most: int) -> None:
    content = "\n".join(json.dumps(value) for value in values).encode()
    assert list(json_stream.values(Pieces(content, most))) == values


@given(content=st.binary(max_size=60) | st.text('[]{}",:1eE+-.tfnNI\\u0 \n', max_size=30).map(str.encode))
def test_any_bytes_mean_what_they_do_to_the_standard_library(content: bytes) -> None:
    try:
        expected = json.loads(content.decode("utf-8-sig"))
    except ValueError:
        expected = None
    try:
        found = list(json_stream.elements(Pieces(content, 3)))
    except InputError:
        assert not isinstance(expected, list)
    else:
        assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not nothing"),
        (b"{}", "not an object"),
        (b"[", "line 1"),
        (b'[{"a": 1},\n {"b": 2}', "it ends within the list: line 2"),
        (b"[1 2]", "a comma was expected: line 1"),
        (b"[1,\n2,\n]", "line 3"),
        (b"[1]\n[2]", "something follows the list's end: line 2"),
        (b'["a\n"]', "line 1"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"9" * 5_000 + b"]", "line 1"),
        (b'["\xff"]', "not UTF-8 (near byte 2)"),
        (b"[oops]", "line 1"),
    ],
    ids=ascii,
)
def test_what_is_no_array_is_told_with_its_line(content: bytes, told: str) -> None:
    with pytest.raises(InputError) as caught:
        list(json_stream.elements(io.BytesIO(content)))
    assert told in str(caught.value)


def test_a_mistake_early_in_a_long_file_is_told_at_once() -> None:
    stream = io.BytesIO(b'[{"a": oops}, ' + b'"' + b"x" * 50_000_000)
    with pytest.raises(InputError, match="line 1"):
        list(json_stream.elements(stream))
    assert stream.tell() < 1_000_000


def test_a_large_array_is_read_in_little_memory() -> None:
    content = b"[" + b",".join(json.dumps({"text": "x" * 50_000}).encode() for _ in range(200)) + b"]"
    tracemalloc.start()
    assert sum(1 for _ in json_stream.elements(io.BytesIO(content))) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@given(
    objects=st.lists(
        st.dictionaries(st.sampled_from(["results", "memories", "a", "b"]), st.lists(JSON, max_size=5) | JSON),
        max_size=3,
    ),
    most=st.integers(1, 9),
    indent=st.sampled_from([None, 1]),
)
def test_lists_in_objects_are_read_one_element_at_a_time(
    objects: list[dict[str, Any]], most: int, indent: int | None
) -> None:
    names = ("results", "memories")
    content = "\n".join(json.dumps(each, indent=indent) for each in objects).encode()
    expected: list[tuple[int, str, Any]] = []
    for number, each in enumerate(objects, start=1):
        lists = {key: value for key, value in each.items() if key in names and isinstance(value, list)}
        for key, value in lists.items():
            expected += [(number, f"{key}[{i}]", element) for i, element in enumerate(value)]
        if not lists:
            expected.append((number, "", each))
    assert list(json_stream.listed(Pieces(content, most), names)) == expected
    short = [{key: value[:2] if isinstance(value, list) else value for key, value in each.items()} for each in objects]
    assert list(json_stream.abridged(Pieces(content, most), 2)) == short


@given(
    content=st.binary(max_size=60) | st.text('{}[]",:1eE+-.tfnNI\\u0 \n', max_size=30).map(lambda t: f"{{{t}".encode())
)
def test_any_bytes_are_objects_to_both_or_to_neither(content: bytes) -> None:
    try:
        expected = json.loads(content.decode("utf-8-sig"))
    except ValueError:
        expected = None
    for read in (lambda stream: json_stream.listed(stream, ()), lambda stream: json_stream.abridged(stream, 99)):
        try:
            found = list(read(Pieces(content, 3)))
        except InputError:
            assert not isinstance(expected, dict)
        else:
            if isinstance(expected, dict):
                assert len(found) == 1
                value = found[0][2] if isinstance(found[0], tuple) else found[0]
                assert json.dumps(value) == json.dumps(expected)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"results": [1', "it ends within the list: line 1"),
        (b'{"results": [1]', "it ends within the object: line 1"),
        (b'{"results": [1]\n"a": 2}', "a comma was expected: line 2"),
        (b'{"results" [1]}', "a colon was expected: line 1"),
        (b"{results: [1]}", "a name in double quotes was expected: line 1"),
        (b'{"a": 1,}', "a name in double quotes was expected: line 1"),
    ],
    ids=ascii,
)
def test_what_is_no_object_is_told_with_its_line(content: bytes, told: str) -> None:
    with pytest.raises(InputError) as caught:
        list(json_stream.listed(io.BytesIO(content), ("results",)))
    assert told in str(caught.value)


def test_a_large_list_in_an_object_is_read_in_little_memory() -> None:
    elements = b",".join(json.dumps({"text": "x" * 50_000}).encode() for _ in range(200))
    content = b'{"count": 200, "results": [' + elements + b'], "next": null}'
    tracemalloc.start()
    assert sum(1 for _ in json_stream.listed(io.BytesIO(content), ("results",))) == 200
    (short,) = json_stream.abridged(io.BytesIO(content), 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (list(short), len(short["results"])) == (["count", "results", "next"], 3)
    assert peak < 2_000_000
