from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latent_memory.dense import DenseIndex
from latent_memory.vectors import Ids, Vectors, unit

D = 64
N = 6_000
EXACT_LIMIT = 2_000


def _clustered(count: int, seed: int) -> Vectors:
    centres = np.random.default_rng(100).normal(size=(30, D))
    chance = np.random.default_rng(seed)
    return unit(centres[chance.integers(0, len(centres), count)] + 0.6 * chance.normal(size=(count, D)))


VECTORS = _clustered(N, 1)
# Gaps, as in a store that has forgotten things.
IDS: Ids = np.arange(1, N + 1, dtype=np.int64) * 3
QUERIES = _clustered(20, 2)


def _fetch(ids: Ids) -> Vectors:
    rows: Vectors = VECTORS[np.searchsorted(IDS, ids)]
    return rows


def _never(ids: Ids) -> Vectors:
    raise AssertionError("asked for stored vectors")


def _true(query: Vectors, count: int, ids: Ids) -> Ids:
    nearest: Ids = ids[np.argsort(-(_fetch(ids) @ query), kind="stable")[:count]]
    return nearest


def _recall(index: DenseIndex, ids: Ids, count: int = 100, allowed: Ids | None = None) -> float:
    among = ids if allowed is None else np.intersect1d(ids, allowed)
    shares = []
    for query in QUERIES:
        true = _true(query, count, among)
        found = index.near(query, count, allowed).ids
        assert len(np.unique(found)) == len(found) <= count
        assert np.isin(found, among).all()
        shares.append(len(np.intersect1d(found, true)) / len(true))
    return float(np.mean(shares))


def _check_exact(index: DenseIndex, ids: Ids, allowed: Ids | None = None, count: int = 40) -> None:
    among = ids if allowed is None else np.intersect1d(ids, allowed)
    for query in QUERIES:
        found = index.near(query, count, allowed).ids
        np.testing.assert_array_equal(found, _true(query, count, among))
        np.testing.assert_allclose(index.near(query, 1).score(found), _fetch(found) @ query, atol=1e-6)


def _exact(count: int = 500) -> DenseIndex:
    index = DenseIndex(D, None, _never)
    index.add(IDS[:count], VECTORS[:count])
    return index


def _approximate(file: Path | None = None, count: int = N) -> DenseIndex:
    index = DenseIndex(D, file, _fetch, EXACT_LIMIT)
    index.add(IDS[:count], VECTORS[:count])
    assert index.approximate
    return index


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], bytes]:
    file = tmp_path_factory.mktemp("dense") / "dense.faiss"
    _approximate(file, 3_000).save("7", 0, 4, "")
    data = file.read_bytes()

    def put(into: Path) -> bytes:
        into.write_bytes(data)
        return data

    return put


def test_an_empty_index_finds_nothing() -> None:
    index = DenseIndex(D, None, _never)
    assert (len(index), index.last, index.approximate) == (0, 0, False)
    assert index.near(QUERIES[0], 10).ids.tolist() == []
    assert index.near(QUERIES[0], 1).score(IDS[:0]).tolist() == []
    index.remove(IDS[:3])
    index.add(IDS[:0], VECTORS[:0])
    assert len(index) == 0


def test_exact_search_is_brute_force() -> None:
    index = _exact()
    assert (len(index), index.last) == (500, IDS[499])
    _check_exact(index, IDS[:500])


def test_exact_search_up_to_the_limit() -> None:
    index = DenseIndex(D, None, _never, EXACT_LIMIT)
    index.add(IDS[:EXACT_LIMIT], VECTORS[:EXACT_LIMIT])
    assert not index.approximate
    _check_exact(index, IDS[:EXACT_LIMIT])


def test_exact_search_for_more_than_there_is() -> None:
    index = _exact(30)
    np.testing.assert_array_equal(index.near(QUERIES[0], 1_000).ids, _true(QUERIES[0], 30, IDS[:30]))


@pytest.mark.parametrize("allowed_count", [1, 7, 8, 9, 250, 500])
def test_exact_search_among_allowed(allowed_count: int) -> None:
    allowed = np.sort(np.random.default_rng(allowed_count).choice(IDS[:500], allowed_count, replace=False))
    _check_exact(_exact(), IDS[:500], allowed)


def test_exact_search_among_allowed_that_are_not_there() -> None:
    index = _exact()
    assert index.near(QUERIES[0], 5, IDS[:0]).ids.tolist() == []
    assert index.near(QUERIES[0], 5, IDS[500:600]).ids.tolist() == []
    _check_exact(index, IDS[:500], IDS[490:600])


def test_exact_search_after_removals_and_additions() -> None:
    index = _exact()
    gone = np.random.default_rng(3).choice(IDS[:500], 200, replace=False)
    index.remove(np.append(np.sort(gone), 1_000_000))
    left = np.setdiff1d(IDS[:500], gone)
    assert len(index) == 300
    _check_exact(index, left)
    _check_exact(index, left, IDS[:400])

    index.add(IDS[500:700], VECTORS[500:700])
    left = np.append(left, IDS[500:700])
    assert (len(index), index.last) == (500, IDS[699])
    _check_exact(index, left)
    _check_exact(index, left, IDS[300:650])

    index.remove(left)
    assert (len(index), index.last) == (0, 0)
    assert index.near(QUERIES[0], 5).ids.tolist() == []
    index.add(IDS[700:800], VECTORS[700:800])
    _check_exact(index, IDS[700:800])


def test_exact_scores_of_any_ids_in_any_order() -> None:
    index = _exact()
    index.remove(IDS[100:120])
    ids = np.array([IDS[499], IDS[0], IDS[250], IDS[0]])
    np.testing.assert_allclose(index.near(QUERIES[1], 1).score(ids), _fetch(ids) @ QUERIES[1], atol=1e-6)


def test_approximate_search_finds_nine_in_ten_of_the_nearest_hundred() -> None:
    index = _approximate()
    assert (len(index), index.last) == (N, IDS[-1])
    assert _recall(index, IDS) >= 0.9


def test_approximate_search_after_growing() -> None:
    index = _approximate(count=3_000)
    for start in range(3_000, N, 500):
        index.add(IDS[start : start + 500], VECTORS[start : start + 500])
    assert (len(index), index.last) == (N, IDS[-1])
    assert _recall(index, IDS) >= 0.9


def test_growing_past_the_limit_in_small_steps() -> None:
    index = DenseIndex(D, None, _fetch, EXACT_LIMIT)
    for start in range(0, EXACT_LIMIT, 400):
        index.add(IDS[start : start + 400], VECTORS[start : start + 400])
    assert not index.approximate
    index.remove(IDS[10:20])
    index.add(IDS[EXACT_LIMIT : EXACT_LIMIT + 300], VECTORS[EXACT_LIMIT : EXACT_LIMIT + 300])
    assert index.approximate
    assert _recall(index, np.delete(IDS[: EXACT_LIMIT + 300], slice(10, 20)), 40) >= 0.9


def test_approximate_scores_are_the_cosines_of_the_stored_vectors() -> None:
    index = _approximate()
    for query in QUERIES:
        found = index.near(query, 100).ids
        np.testing.assert_allclose(index.near(query, 1).score(found), _fetch(found) @ query, atol=1e-6)


@pytest.mark.parametrize("allowed_count", [50, 200, 1_000, 4_000])
def test_approximate_search_among_allowed(allowed_count: int) -> None:
    allowed = np.sort(np.random.default_rng(4).choice(IDS, allowed_count, replace=False))
    assert _recall(_approximate(), IDS, allowed=allowed) >= 0.9


def test_approximate_search_among_few_allowed_finds_them_wherever_they_lie() -> None:
    index = _approximate()
    far = _true(-QUERIES[0], 5, IDS)
    assert sorted(index.near(QUERIES[0], 10, np.sort(far)).ids.tolist()) == sorted(far.tolist())


def test_approximate_removal() -> None:
    index = _approximate()
    gone = np.unique(np.concatenate([_true(query, 5, IDS) for query in QUERIES] + [IDS[::7]]))
    index.remove(gone)
    left = np.setdiff1d(IDS, gone)
    assert len(index) == len(left)
    assert _recall(index, left) >= 0.9
    index.remove(gone)
    assert len(index) == len(left)


def test_the_same_vectors_give_the_same_index() -> None:
    one, two = _approximate(), _approximate()
    for query in QUERIES:
        np.testing.assert_array_equal(one.near(query, 100).ids, two.near(query, 100).ids)


def test_save_and_load(tmp_path: Path) -> None:
    file = tmp_path / "indexes" / "1" / "dense.faiss"
    index = _approximate(file, 5_000)
    index.remove(IDS[100:300])
    index.save("7", 0, 200, "")
    assert [path.name for path in file.parent.iterdir()] == ["dense.faiss"]

    read = DenseIndex(D, file, _fetch, EXACT_LIMIT)
    assert read.load(_stands(7)) == 200
    assert (len(read), read.last, read.approximate) == (4_800, IDS[4_999], True)
    for query in QUERIES:
        np.testing.assert_array_equal(read.near(query, 100).ids, index.near(query, 100).ids)
        np.testing.assert_array_equal(read.near(query, 1).score(IDS[:50]), index.near(query, 1).score(IDS[:50]))

    read.remove(IDS[300:320])
    read.add(IDS[5_000:], VECTORS[5_000:])
    assert _recall(read, np.delete(IDS, slice(100, 320))) >= 0.9


def test_load_keeps_ids_beyond_32_bits(tmp_path: Path) -> None:
    file = tmp_path / "dense.faiss"
    index = DenseIndex(D, file, _fetch, EXACT_LIMIT)
    index.add(IDS[:3_000] + 2**40, VECTORS[:3_000])
    index.save("1", 0, 0, "")
    read = DenseIndex(D, file, _fetch, EXACT_LIMIT)
    read.load(_stands(1))
    assert read.last == IDS[2_999] + 2**40
    np.testing.assert_array_equal(read.near(QUERIES[0], 50).ids, index.near(QUERIES[0], 50).ids)


def test_a_small_scope_writes_no_file(tmp_path: Path) -> None:
    file = tmp_path / "dense.faiss"
    index = DenseIndex(D, file, _never)
    index.add(IDS[:500], VECTORS[:500])
    index.save("1", 0, 0, "")
    assert list(tmp_path.iterdir()) == []
    assert index.load(_stands(1)) == 0
    assert len(index) == 500


def test_the_file_is_written_again_after_growth_of_a_tenth(tmp_path: Path) -> None:
    file = tmp_path / "dense.faiss"
    index = _approximate(file, 3_000)
    index.save("1", 0, 0, "")
    first = file.read_bytes()
    index.add(IDS[3_000:3_200], VECTORS[3_000:3_200])
    index.save("1", 0, 0, "")
    assert file.read_bytes() == first
    index.add(IDS[3_200:3_400], VECTORS[3_200:3_400])
    index.save("1", 0, 9, "")
    read = DenseIndex(D, file, _fetch, EXACT_LIMIT)
    assert (read.load(_stands(1)), len(read)) == (9, 3_400)


def _stands(generation: int) -> Callable[[str, int, int, str], bool]:
    return lambda found, added, deleted, anchor: found == str(generation)


def _refused(file: Path, dimension: int, generation: int, caplog: pytest.LogCaptureFixture) -> str:
    """Return what is wrong with how an unfit file was met; nothing if all is well."""
    caplog.clear()
    index = DenseIndex(dimension, file, _never, EXACT_LIMIT)
    try:
        known = index.load(_stands(generation))
    except Exception as error:  # noqa: BLE001 - told to the test
        return f"{type(error).__name__}: {error}"
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    if (known, len(index), index.last, index.approximate, len(warned)) != (0, 0, 0, False, 1):
        return f"known={known} length={len(index)} warnings={len(warned)}"
    if str(file) not in warned[0].getMessage():
        return warned[0].getMessage()
    return ""


def test_a_flipped_byte_in_the_vectors_means_a_rebuild(
    tmp_path: Path, saved: Callable[[Path], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "dense.faiss"
    data = saved(file)
    body = data.index(b"\n") + 1
    for at in (*range(body, body + 120, 7), *range(body, len(data), len(data) // 20), len(data) - 1):
        altered = bytearray(data)
        altered[at] ^= 0x01
        file.write_bytes(altered)
        assert _refused(file, D, 7, caplog) == "", at


def test_a_flipped_byte_in_the_head_means_a_rebuild(
    tmp_path: Path, saved: Callable[[Path], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "dense.faiss"
    data = saved(file)
    head = data.index(b"\n") + 1
    wrong = {}
    for at in range(head):
        altered = bytearray(data)
        altered[at] ^= 0x01
        file.write_bytes(altered)
        if said := _refused(file, D, 7, caplog):
            wrong[bytes(altered[max(0, at - 8) : at + 4])] = said
    assert wrong == {}


@pytest.mark.parametrize("kept", [0, 1, 50, 200, 10_000, -1])
def test_a_truncated_file_means_a_rebuild(
    tmp_path: Path, saved: Callable[[Path], bytes], caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    file = tmp_path / "dense.faiss"
    data = saved(file)
    file.write_bytes(data[:kept])
    assert _refused(file, D, 7, caplog) == ""


@pytest.mark.parametrize(
    "content",
    [b"\n", b"[]\n", b"null\n", b"{}\n", b"\xff\xfe\n", b'{"generation": 7}\n', b"\0" * 1_000, b"7\n" + b"x" * 100],
)
def test_a_file_of_something_else_means_a_rebuild(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file = tmp_path / "dense.faiss"
    file.write_bytes(content)
    assert _refused(file, D, 7, caplog) == ""


@pytest.mark.parametrize("generation", [-1, 0, 6, 8])
def test_a_file_of_another_generation_means_a_rebuild(
    tmp_path: Path, saved: Callable[[Path], bytes], caplog: pytest.LogCaptureFixture, generation: int
) -> None:
    file = tmp_path / "dense.faiss"
    saved(file)
    assert _refused(file, D, generation, caplog) == ""


@pytest.mark.parametrize("dimension", [32, 63, 384])
def test_a_file_of_another_dimension_means_a_rebuild(
    tmp_path: Path, saved: Callable[[Path], bytes], caplog: pytest.LogCaptureFixture, dimension: int
) -> None:
    file = tmp_path / "dense.faiss"
    saved(file)
    assert _refused(file, dimension, 7, caplog) == ""


def test_a_directory_in_place_of_the_file_means_a_rebuild(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _refused(tmp_path, D, 7, caplog) == ""


def test_no_file_is_nothing_to_warn_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in (None, tmp_path / "no" / "dense.faiss"):
        assert DenseIndex(D, file, _never).load(_stands(7)) == 0
    assert caplog.records == []


def test_a_rebuilt_index_overwrites_the_unfit_file(
    tmp_path: Path, saved: Callable[[Path], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "dense.faiss"
    file.write_bytes(saved(file)[:-1])
    index = DenseIndex(D, file, _fetch, EXACT_LIMIT)
    assert index.load(_stands(7)) == 0
    index.add(IDS[:3_000], VECTORS[:3_000])
    index.save("7", 0, 5, "")
    read = DenseIndex(D, file, _fetch, EXACT_LIMIT)
    assert (read.load(_stands(7)), len(read)) == (5, 3_000)


def test_a_file_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "dense.faiss"
    file.mkdir()
    index = _approximate(file, 3_000)
    index.save("1", 0, 0, "")
    assert "could not be written" in caplog.text
    assert list(tmp_path.iterdir()) == [file]
    assert _recall(index, IDS[:3_000], 40) >= 0.9


def test_a_directory_that_cannot_be_made_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "indexes").write_text("a file")
    index = _approximate(tmp_path / "indexes" / "dense.faiss", 3_000)
    index.save("1", 0, 0, "")
    assert "could not be written" in caplog.text


def test_the_head_tells_what_the_file_was_made_from(tmp_path: Path, saved: Callable[[Path], bytes]) -> None:
    head = json.loads(saved(tmp_path / "dense.faiss").partition(b"\n")[0])
    assert (head["generation"], head["deleted"]) == ("7", 4)
