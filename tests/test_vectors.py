from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory.errors import EmbedderError
from latent_memory.vectors import checked, from_bytes, to_bytes, unit

_NUMBERS = st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12)


def test_unit_divides_each_row_by_its_length() -> None:
    made = unit([[3, 4], [0, -2], [5, 12]])
    expected = np.array([[0.6, 0.8], [0.0, -1.0], [5 / 13, 12 / 13]])
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_unit_keeps_rows_of_zeros() -> None:
    np.testing.assert_array_equal(unit([[0, 0, 0], [0, 2, 0]]), [[0, 0, 0], [0, 1, 0]])


def test_unit_of_a_single_vector_and_of_no_rows() -> None:
    np.testing.assert_allclose(unit([3, 4]), [0.6, 0.8], rtol=1e-6)
    assert unit(np.zeros((0, 5))).shape == (0, 5)


def test_unit_is_contiguous_and_leaves_its_argument_alone() -> None:
    given_vectors = np.asfortranarray(np.array([[3, 4], [6, 8]], np.float32))
    before = given_vectors.copy()
    assert unit(given_vectors).flags.c_contiguous
    np.testing.assert_array_equal(given_vectors, before)


@given(st.lists(_NUMBERS, min_size=1, max_size=20))
def test_unit_agrees_with_exact_arithmetic(row: list[float]) -> None:
    rounded = [float(np.float32(number)) for number in row]
    length = math.sqrt(math.fsum(number * number for number in rounded))
    np.testing.assert_allclose(unit([row])[0], [number / length for number in rounded], rtol=1e-5, atol=1e-7)


def test_checked_returns_unit_vectors() -> None:
    np.testing.assert_allclose(checked([[3, 4]], rows=1, dimension=2, made_by="x"), [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    "vectors",
    [
        [[1.0, 0.0]],
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [1.0, 0.0],
        [[[1.0, 0.0]], [[0.0, 1.0]]],
        [],
        None,
    ],
)
def test_checked_refuses_another_shape_and_tells_it(vectors: object) -> None:
    with pytest.raises(EmbedderError, match=r"'mine' returned vectors of shape .* for 2 texts; \(2, 2\) was expected"):
        checked(vectors, rows=2, dimension=2, made_by="mine")


def test_checked_refuses_rows_of_different_lengths() -> None:
    with pytest.raises(EmbedderError):
        checked([[1.0], [1.0, 2.0]], rows=2, dimension=2, made_by="mine")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_checked_refuses_what_is_no_finite_number(number: float) -> None:
    with pytest.raises(EmbedderError, match="'mine' returned a vector with NaN or infinite numbers"):
        checked([[1.0, 0.0], [0.0, number]], rows=2, dimension=2, made_by="mine")


def test_checked_refuses_numbers_beyond_float32() -> None:
    with pytest.raises(EmbedderError, match="'mine' returned a vector with NaN or infinite numbers"):
        checked([[1e300, 0.0]], rows=1, dimension=2, made_by="mine")


def test_stored_bytes_are_little_endian_float32() -> None:
    vector = np.array([1.0, -0.5, 3.25], np.float32)
    assert to_bytes(vector) == struct.pack("<3f", 1.0, -0.5, 3.25)


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), max_size=5))
def test_bytes_round_trip(rows: list[list[float]]) -> None:
    array = np.array(rows, np.float32).reshape(len(rows), 3)
    back = from_bytes([to_bytes(row) for row in array], 3)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array)
