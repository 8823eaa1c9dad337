from __future__ import annotations

import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import tantivy
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from latent_memory.lexical import LexicalIndex, words
from latent_memory.vectors import Ids

Documents = Mapping[int, Sequence[str]]

_VOCABULARY = [f"w{i}" for i in range(300)]


def _documents(first: int, last: int, seed: int = 0) -> dict[int, list[str]]:
    """Return documents of 3 to 12 words; low numbers are common words, high ones rare."""
    chance = np.random.default_rng(seed)
    return {
        key: [_VOCABULARY[i] for i in (chance.random(chance.integers(3, 13)) ** 2 * len(_VOCABULARY)).astype(int)]
        for key in range(first, last + 1)
    }


_QUERIES = [["w0"], ["w250"], ["w1", "w40", "w299"], ["w7", "w7", "w200"], ["w3", "nowhere"], ["w10", "w20", "w30"]]


def _bm25(documents: Documents, query: Iterable[str]) -> dict[int, float]:
    """Return the BM25 score of each document that has a word of the query, from the formula and nothing else."""
    k1, b = 1.2, 0.75
    mean = sum(map(len, documents.values())) / len(documents)
    scores: dict[int, float] = {}
    for word in set(query):
        having = [key for key, text in documents.items() if word in text]
        idf = math.log(1 + (len(documents) - len(having) + 0.5) / (len(having) + 0.5))
        for key in having:
            times, length = list(documents[key]).count(word), len(documents[key])
            scores[key] = scores.get(key, 0) + idf * times * (k1 + 1) / (times + k1 * (1 - b + b * length / mean))
    return scores


def _fields(documents: Documents) -> dict[int, tuple[Sequence[str], ...]]:
    return {key: (text,) for key, text in documents.items()}


def _open(index: LexicalIndex, generation: int = 1) -> None:
    index.open(str(generation), lambda state: state.generation == str(generation))


def _index(directory: Path | None, generation: int = 1) -> LexicalIndex:
    index = LexicalIndex(directory, ("text",))
    _open(index, generation)
    return index


def _committed(directory: Path, documents: Documents) -> LexicalIndex:
    index = _index(directory)
    index.put(_fields(documents))
    assert index.commit(max(documents), 0)
    return index


def _found(index: LexicalIndex, query: Sequence[str], count: int = 100_000, allowed: Ids | None = None) -> list[int]:
    return sorted(index.search("text", query, count, allowed).keys.tolist())


def _check(
    index: LexicalIndex,
    documents: Documents,
    relative: float,
    allowed: Ids | None = None,
    queries: Sequence[Sequence[str]] = _QUERIES,
) -> None:
    """Compare with the reference: which are found, their scores, their order, and the best ten of them."""
    among = None if allowed is None else set(allowed.tolist())
    for query in queries:
        expected = {k: v for k, v in _bm25(documents, query).items() if among is None or k in among}
        found = index.search("text", query, 100_000, allowed)
        assert found.keys.dtype == np.int64
        assert found.scores.dtype == np.float32
        assert sorted(found.keys.tolist()) == sorted(expected), query
        assert all(np.diff(found.scores) <= 0)
        np.testing.assert_allclose(found.scores, [expected[key] for key in found.keys.tolist()], rtol=relative)
        best = index.search("text", query, 10, allowed)
        np.testing.assert_allclose(best.scores, found.scores[:10], rtol=1e-6)
        assert set(best.keys.tolist()) <= set(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n\t", []),
        ("Hello, WORLD!", ["hello", "world"]),
        ("Running runs RUN", ["run", "run", "run"]),
        ("allergies allergy", ["allergi", "allergi"]),
        ("Café crème BRÛLÉE", ["cafe", "creme", "brule"]),
        ("Ærø straße naïve", ["aero", "strass", "naiv"]),
        ("日本語のテスト", ["日", "本", "語", "の", "テ", "ス", "ト"]),
        ("한국어 ok 中文", ["한", "국", "어", "ok", "中", "文"]),
        ("GPT4は便利", ["gpt4", "は", "便", "利"]),
        ("🎉 party 🎉🎉", ["parti"]),
        ("👍", []),
        ("don't", ["don", "t"]),
        ("don\u2019t", ["don", "t"]),
        ("Ana's O'Brien", ["ana", "s", "o", "brien"]),
        ("e-mail foo_bar x.y 3.14", ["e", "mail", "foo", "bar", "x", "y", "3", "14"]),
        ("a\0b\u2028c", ["a", "b", "c"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("x" * 79, ["x" * 79]),
        ("x" * 80, []),
        ("ﬁre Ｆｕｌｌ", ["fire", "full"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_words_of_composed_and_decomposed_accents_are_the_same() -> None:
    assert words("cafe\u0301 U\u0308bung") == words("caf\u00e9 \u00dcbung")


@given(st.text())
def test_words_hold_no_spaces(text: str) -> None:
    assert all(word and word.split() == [word] for word in words(text))


def test_an_empty_index_finds_nothing(tmp_path: Path) -> None:
    for index in (_index(None), _index(tmp_path / "i"), LexicalIndex(None, ("text",))):
        assert _found(index, ["w1"]) == []
        assert (index.pending, index.hidden) == (0, 0)
        index.remove([1, 2])
        assert _found(index, []) == []


def test_overlay_scores_are_those_of_the_formula() -> None:
    documents = _documents(1, 800)
    index = _index(None)
    index.put(_fields(documents))
    assert index.pending == 800
    _check(index, documents, 1e-5)


def test_overlay_after_replacing_and_removing() -> None:
    documents = _documents(1, 300)
    index = _index(None)
    index.put(_fields(documents))
    replaced = _documents(50, 90, seed=1)
    index.put(_fields(replaced))
    index.remove([1, 2, 60, 299, 12_345])
    documents |= replaced
    left = {key: text for key, text in documents.items() if key not in (1, 2, 60, 299)}
    assert index.pending == len(left)
    _check(index, left, 1e-5)


def test_words_of_a_document_may_repeat() -> None:
    documents = {1: ["a"] * 5 + ["b"], 2: ["a"], 3: ["b", "c"]}
    index = _index(None)
    index.put(_fields(documents))
    _check(index, documents, 1e-5, queries=[["a"], ["b"], ["c", "a"], ["a", "a"]])


def test_a_document_of_no_words_is_never_found(tmp_path: Path) -> None:
    documents: Documents = {1: ["a"], 2: [], 3: ["a", "b"]}
    index = _index(tmp_path / "i")
    index.put(_fields(documents))
    _check(index, documents, 1e-5, queries=[["a"], ["b"]])
    assert index.commit(3, 0)
    assert _found(index, ["a"]) == [1, 3]


def test_committed_scores_are_those_of_the_formula(tmp_path: Path) -> None:
    # tantivy keeps a document's length in a byte, exact up to 40 words and rounded down beyond, so exact scores
    # can only be asked of short texts. The document of the index's own state counts as one of 5,001, which moves
    # rarity and mean length by 2e-4.
    documents = _documents(1, 5_000)
    index = _committed(tmp_path / "i", documents)
    assert index.pending == 0
    _check(index, documents, 1e-3)


def test_committed_scores_of_long_texts_are_near_those_of_the_formula(tmp_path: Path) -> None:
    # Lengths beyond 40 words are rounded by up to an eighth.
    chance = np.random.default_rng(2)
    documents = {
        key: [_VOCABULARY[i] for i in chance.integers(0, len(_VOCABULARY), chance.integers(41, 400))]
        for key in range(1, 1_001)
    }
    index = _committed(tmp_path / "i", documents)
    _check(index, documents, 0.1)


def test_overlay_and_committed_part_score_alike(tmp_path: Path) -> None:
    documents = _documents(1, 4_000)
    index = _committed(tmp_path / "i", {k: v for k, v in documents.items() if k <= 2_000})
    index.put(_fields({k: v for k, v in documents.items() if k > 2_000}))
    assert (index.pending, index.hidden) == (2_000, 0)
    # The committed part is scored by its own statistics, the overlay by those of both.
    common = [query for query in _QUERIES if not {"w250", "w299"} & set(query)]
    _check(index, documents, 0.1, queries=common)


def _with_changes(index: LexicalIndex, documents: Documents) -> dict[int, Sequence[str]]:
    """Replace some documents, remove others and add new ones; return what there is then."""
    replaced = _documents(100, 150, seed=3)
    added = _documents(5_001, 5_040, seed=4)
    gone = [1, 2, 3, 120, 4_000, 5_010]
    index.put(_fields(replaced))
    index.put(_fields(added))
    index.remove(gone)
    now = {**documents, **replaced, **added}
    return {key: text for key, text in now.items() if key not in gone}


def _check_sets(index: LexicalIndex, documents: Documents) -> None:
    for query in _QUERIES:
        assert _found(index, query) == sorted(_bm25(documents, query)), query


def test_changes_over_a_committed_part(tmp_path: Path) -> None:
    documents = _documents(1, 5_000)
    index = _committed(tmp_path / "i", documents)
    _check_sets(index, _with_changes(index, documents))


def test_changes_are_kept_when_they_are_committed(tmp_path: Path) -> None:
    documents = _documents(1, 5_000)
    index = _committed(tmp_path / "i", documents)
    now = _with_changes(index, documents)
    assert index.commit(5_040, 6)
    assert (index.pending, index.hidden) == (0, 0)
    _check_sets(index, now)
    _check_sets(_index(tmp_path / "i"), now)


def test_a_replaced_document_is_found_by_its_new_words_only(tmp_path: Path) -> None:
    index = _committed(tmp_path / "i", {1: ["old", "same"], 2: ["old"]})
    index.put({1: (["new", "same"],)})
    assert (_found(index, ["old"]), _found(index, ["new"]), _found(index, ["same"])) == ([2], [1], [1])
    assert index.commit(2, 1)
    assert (_found(index, ["old"]), _found(index, ["new"]), _found(index, ["same"])) == ([2], [1], [1])
    read = _index(tmp_path / "i")
    assert (_found(read, ["old"]), _found(read, ["new"]), _found(read, ["same"])) == ([2], [1], [1])


def test_a_removed_document_is_never_found_again(tmp_path: Path) -> None:
    index = _committed(tmp_path / "i", {1: ["a"], 2: ["a"], 3: ["a"]})
    index.remove([2])
    assert (_found(index, ["a"]), index.hidden) == ([1, 3], 1)
    assert index.commit(3, 1)
    assert (_found(index, ["a"]), index.hidden) == ([1, 3], 0)
    assert _found(_index(tmp_path / "i"), ["a"]) == [1, 3]


def test_many_hidden_documents_do_not_crowd_out_the_others(tmp_path: Path) -> None:
    documents: Documents = {**{key: ["a"] for key in range(1, 2_000)}, 2_000: ["a", "b", "c", "d"]}
    index = _committed(tmp_path / "i", documents)
    index.remove(range(1, 2_000))
    assert index.search("text", ["a"], 5).keys.tolist() == [2_000]


@pytest.mark.parametrize("allowed_count", [0, 1, 30, 4_096, 4_097, 4_900])
@pytest.mark.parametrize("committed", [5_000, 4_000, 0])
def test_only_allowed_documents_are_found(tmp_path: Path, allowed_count: int, committed: int) -> None:
    documents = _documents(1, 5_000)
    index = _index(tmp_path / "i")
    if committed:
        index = _committed(tmp_path / "i", {k: v for k, v in documents.items() if k <= committed})
    if committed < 5_000:
        index.put(_fields({k: v for k, v in documents.items() if k > committed}))
    allowed = np.sort(np.random.default_rng(5).choice(np.arange(1, 5_001), allowed_count, replace=False))
    for query in _QUERIES:
        everything = index.search("text", query, 100_000)
        among = np.isin(everything.keys, allowed)
        found = index.search("text", query, 100_000, allowed)
        assert dict(zip(found.keys.tolist(), found.scores.tolist(), strict=True)) == pytest.approx(
            dict(zip(everything.keys[among].tolist(), everything.scores[among].tolist(), strict=True)), rel=1e-5
        )
        best = index.search("text", query, 7, allowed)
        np.testing.assert_allclose(best.scores[:7], everything.scores[among][:7], rtol=1e-5)


def test_allowed_keys_that_are_not_there(tmp_path: Path) -> None:
    index = _committed(tmp_path / "i", {1: ["a"], 2: ["a"]})
    assert _found(index, ["a"], allowed=np.array([2, 3, 2**40])) == [2]
    assert _found(index, ["a"], allowed=np.arange(2, 10_000)) == [2]


def test_fields_are_apart(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "i", ("passage", "exchange"))
    _open(index, 1)
    index.put({1: (["a"], ["a", "b"]), 2: (["c"], ["d", "c"])})
    for _ in range(2):
        assert index.search("passage", ["b", "d"], 9).keys.tolist() == []
        assert index.search("exchange", ["b"], 9).keys.tolist() == [1]
        assert index.search("passage", ["c"], 9).keys.tolist() == [2]
        assert sorted(index.search("exchange", ["b", "d"], 9).keys.tolist()) == [1, 2]
        assert index.commit(2, 0)


def test_another_object_sees_what_is_committed(tmp_path: Path) -> None:
    documents = _documents(1, 5_000)
    one = _committed(tmp_path / "i", documents)
    two = _index(tmp_path / "i")
    assert two.state == one.state
    assert (two.state.generation, two.state.added, two.state.deleted, two.state.documents) == ("1", 5_000, 0, 5_000)
    assert two.state.words == (sum(map(len, documents.values())),)
    _check(two, documents, 1e-3)
    # What is only in memory is nobody else's.
    one.put({6_000: (["w0"],)})
    assert 6_000 in _found(one, ["w0"])
    assert 6_000 not in _found(_index(tmp_path / "i"), ["w0"])


def test_the_state_of_the_last_of_many_commits_is_read(tmp_path: Path) -> None:
    index = _index(tmp_path / "i")
    documents: dict[int, list[str]] = {}
    for step in range(1, 13):
        more = _documents(step * 10, step * 10 + 9, seed=step)
        documents |= more
        index.put(_fields(more))
        assert index.commit(step * 10 + 9, step), step
        read = _index(tmp_path / "i")
        assert (read.state.added, read.state.deleted, read.state.documents) == (step * 10 + 9, step, step * 10)
        assert read.state == index.state
    _check_sets(_index(tmp_path / "i"), documents)


def test_another_generation_is_not_read(tmp_path: Path) -> None:
    index = _committed(tmp_path / "i", {1: ["a"]})
    _open(index, 2)
    assert (index.state.generation, index.state.added, _found(index, ["a"])) == ("2", 0, [])
    index.put({5: (["a"],)})
    assert index.commit(5, 0)
    assert _found(_index(tmp_path / "i", 2), ["a"]) == [5]
    assert _found(_index(tmp_path / "i", 1), ["a"]) == []


def test_opening_forgets_what_is_in_memory(tmp_path: Path) -> None:
    index = _committed(tmp_path / "i", {1: ["a"], 2: ["a"]})
    index.put({3: (["a"],)})
    index.remove([1])
    _open(index, 1)
    assert (index.pending, index.hidden, _found(index, ["a"])) == (0, 0, [1, 2])


def test_an_index_without_a_directory_is_never_committed() -> None:
    index = _index(None)
    index.put({1: (["a"],)})
    assert not index.commit(1, 0)
    assert (_found(index, ["a"]), index.pending) == ([1], 1)


def test_a_commit_is_refused_when_another_object_has_committed_since(tmp_path: Path) -> None:
    one = _committed(tmp_path / "i", {1: ["a"]})
    two = _index(tmp_path / "i")
    two.put({2: (["a"],)})
    assert two.commit(2, 0)
    one.put({3: (["a"],)})
    assert not one.commit(3, 0)
    assert (_found(one, ["a"]), one.pending) == ([1, 3], 1)
    assert _found(_index(tmp_path / "i"), ["a"]) == [1, 2]
    _open(one, 1)
    one.put({3: (["a"],)})
    assert one.commit(3, 0)
    assert _found(_index(tmp_path / "i"), ["a"]) == [1, 2, 3]


def test_a_first_commit_is_refused_when_another_object_has_committed(tmp_path: Path) -> None:
    one, two = _index(tmp_path / "i"), _index(tmp_path / "i")
    one.put({1: (["a"],)})
    two.put({1: (["a"],)})
    assert one.commit(1, 0)
    assert not two.commit(1, 0)
    assert _found(two, ["a"]) == [1]


def test_a_commit_is_refused_while_the_lock_is_held(tmp_path: Path) -> None:
    index = _committed(tmp_path / "i", {1: ["a"]})
    index.put({2: (["a"],)})
    with FileLock(tmp_path / "i.lock"):
        assert not index.commit(2, 0)
        assert (_found(index, ["a"]), index.pending) == ([1, 2], 1)
    assert index.commit(2, 0)
    assert _found(index, ["a"]) == [1, 2]


def test_a_commit_is_refused_while_another_process_holds_the_lock(tmp_path: Path) -> None:
    index = _committed(tmp_path / "i", {1: ["a"]})
    index.put({2: (["a"],)})
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n print('held', flush=True)\n sys.stdin.read()\n"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "i.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert not index.commit(2, 0)
    assert index.commit(2, 0)


def test_a_commit_is_refused_while_tantivys_own_lock_is_held(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = _committed(tmp_path / "i", {1: ["a"]})
    index.put({2: (["a"],)})
    other = tantivy.Index.open(str(tmp_path / "i")).writer(heap_size=15_000_000, num_threads=1)
    assert not index.commit(2, 0)
    assert "could not be written" in caplog.text
    assert (_found(index, ["a"]), index.pending) == ([1, 2], 1)
    other.wait_merging_threads()
    assert index.commit(2, 0)
    assert _found(_index(tmp_path / "i"), ["a"]) == [1, 2]


def test_a_directory_that_cannot_be_made_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("a file")
    index = _index(tmp_path / "file" / "i")
    index.put({1: (["a"],)})
    assert not index.commit(1, 0)
    assert _found(index, ["a"]) == [1]
    assert "could not be written" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        'text:w1 AND "w2 w3"~2 OR NOT w4',
        "(w1 +w2 -w3) [a TO b] {x}",
        "w1* w?2 /w3.*/ w4^2 \\w5",
        'unbalanced " quote ( bracket',
        "state:{} key:0 IN [1 2]",
        "<script> *:* ^ ~ : \\",
    ],
)
@pytest.mark.parametrize("settled", [False, True])
def test_query_syntax_is_plain_words(tmp_path: Path, text: str, settled: bool) -> None:
    documents = {i: words(other) for i, other in enumerate(["not or and", "key state text", "w1", "w2 w3", "b"], 1)}
    documents[9] = words(text)
    index = _index(tmp_path / "i")
    index.put(_fields(documents))
    if settled:
        assert index.commit(9, 0)
    query = words(text)
    assert _found(index, query) == sorted(key for key, had in documents.items() if set(had) & set(query))


@pytest.mark.parametrize("settled", [False, True])
def test_every_word_of_odd_texts_finds_its_text(tmp_path: Path, settled: bool) -> None:
    texts = [
        "日本語のコーヒー ok",
        "한국어와 English",
        "⑴ ½ ② Ⅳ",
        "İstanbul ıstanbul",
        "नमस्ते दुनिया",
        "สวัสดี",
        "e\u0301 \u0301",
        "a\0b\x1fc\u2003d",
        "ﬁ ﬄ Ǆ",
        "x" * 79,
        "𝔘𝔫𝔦 𐍈",
        "don't O'Brien's",
    ]
    documents = {i: words(text) for i, text in enumerate(texts, 1)}
    index = _index(tmp_path / "i")
    index.put(_fields(documents))
    if settled:
        assert index.commit(99, 0)
    for key, text in documents.items():
        assert text
        for word in text:
            assert key in _found(index, [word]), (texts[key - 1], word)


def test_a_query_of_very_many_words(tmp_path: Path) -> None:
    documents = _documents(1, 500)
    index = _committed(tmp_path / "i", documents)
    query = [*_VOCABULARY, *(f"other{i}" for i in range(20_000))]
    assert _found(index, query) == sorted(documents)


# -- damaged directories --------------------------------------------------------------------------------------


def _small(directory: Path) -> dict[int, Sequence[str]]:
    """Commit twice, with a document replaced and one removed in between, and return what there is then."""
    documents: dict[int, Sequence[str]] = {**_documents(1, 60)}
    index = _committed(directory, documents)
    more = {5: ["w1", "w2"], **_documents(61, 100, seed=6)}
    index.put(_fields(more))
    index.remove([7])
    assert index.commit(100, 1)
    documents |= more
    del documents[7]
    return documents


def _halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _fill(file: Path) -> None:
    file.write_bytes(np.random.default_rng(7).bytes(max(64, file.stat().st_size)))


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _fill_with_zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _use(directory: Path, documents: Documents) -> str:
    """Open a damaged directory, put all documents again, search, commit; return what went wrong, if anything."""
    step = "open"
    try:
        index = _index(directory)
        if index.state.added:
            step = "search as it was"
            _check_sets(index, documents)
        index.put(_fields(documents))
        step = "search"
        _check_sets(index, documents)
        step = "commit"
        # A commit may be refused once: tantivy's threads can still touch the directory that was given up.
        if not index.commit(101, 1) and not index.commit(101, 1):
            return "the commit was refused"
        step = "search after the commit"
        _check_sets(index, documents)
        _check_sets(_index(directory), documents)
    # A panic in tantivy is no Exception.
    except BaseException as error:  # noqa: BLE001 - told to the test
        return f"{step}: {type(error).__name__}: {str(error)[:80]}"
    return ""


@pytest.mark.parametrize("damage", [_halve, _fill, _empty, _fill_with_zeros, Path.unlink])
def test_a_damaged_file_means_a_rebuild(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    documents = _small(tmp_path / "i")
    wrong = {}
    for number, file in enumerate(sorted((tmp_path / "i").iterdir())):
        # Each in a place of its own: an index that is still open somewhere may have mapped the file into memory.
        copy = tmp_path / f"damaged{number}"
        shutil.copytree(tmp_path / "i", copy)
        damage(copy / file.name)
        if said := _use(copy, documents):
            wrong[file.name] = said
    assert wrong == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"null", b"[]", b"\xff\xfe", b'{"segments": []}', b'{"index_settings": {}, "segments": 3}'],
)
def test_a_meta_file_of_something_else_means_a_rebuild(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    documents = _small(tmp_path / "i")
    (tmp_path / "i" / "meta.json").write_bytes(content)
    index = _index(tmp_path / "i")
    assert (index.state.added, _found(index, ["w0"])) == (0, [])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(tmp_path / "i") in caplog.text
    assert _use(tmp_path / "i", documents) == ""


def test_an_index_of_other_fields_means_a_rebuild(tmp_path: Path) -> None:
    other = LexicalIndex(tmp_path / "i", ("passage", "exchange"))
    _open(other, 1)
    other.put({1: (["w0"], ["w1"])})
    assert other.commit(1, 0)
    documents = _documents(1, 20)
    assert _index(tmp_path / "i").state.added == 0
    assert _use(tmp_path / "i", documents) == ""


def test_an_index_without_a_state_means_a_rebuild(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    schema = tantivy.SchemaBuilder().add_text_field("anything").build()
    tantivy.Index(schema, path=str(tmp_path / "i"))
    assert _use(tmp_path / "i", _documents(1, 20)) == ""


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "i").write_text("a file")
    index = _index(tmp_path / "i")
    index.put({1: (["a"],)})
    assert not index.commit(1, 0)
    assert _found(index, ["a"]) == [1]


@pytest.mark.parametrize("how", ["removed", "emptied", "damaged"])
def test_a_commit_after_the_directory_went_forgets_nothing(tmp_path: Path, how: str) -> None:
    index = _committed(tmp_path / "i", {1: ["a"], 2: ["a"]})
    if how == "removed":
        shutil.rmtree(tmp_path / "i")
    elif how == "emptied":
        for file in (tmp_path / "i").iterdir():
            file.unlink()
    else:
        (tmp_path / "i" / "meta.json").write_bytes(b"{")
    index.put({3: (["a"],)})
    committed = index.commit(3, 0)
    # Either it says no, so that all is read again, or it has everything.
    if committed:
        assert _found(index, ["a"]) == [1, 2, 3]
    read = _index(tmp_path / "i")
    assert read.state.added == 0 or _found(read, ["a"]) == [1, 2, 3]


# In a process of its own: a panic in one of tantivy's threads ends the process.
_FLIPPED = """
import shutil, sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from test_lexical import _small, _use
directory, name, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
documents = _small(directory / "i")
for number, file in enumerate(sorted((directory / "i").iterdir())):
    data = file.read_bytes()
    for at in range(0, len(data) if file.name.endswith(name) else 0, step):
        copy = directory / f"{number}-{at}"
        shutil.copytree(directory / "i", copy)
        altered = bytearray(data)
        altered[at] ^= 0xFF
        (copy / file.name).write_bytes(altered)
        print(file.suffix or file.name, "byte", at, end=" ", flush=True)
        print(_use(copy, documents) or "fine", flush=True)
print("done")
"""


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (".fast", 16),
        (".fieldnorm", 16),
        (".idx", 40),
        (".pos", 16),
        (".store", 40),
        (".term", 40),
        ("meta.json", 60),
        (".managed.json", 60),
    ],
)
def test_a_flipped_byte_means_a_rebuild_or_nothing(tmp_path: Path, name: str, step: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _FLIPPED, str(tmp_path), name, str(step), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = run.stdout.splitlines()
    wrong = [line for line in lines if line != "done" and not line.endswith(" fine")]
    assert wrong == []
    assert (run.returncode, lines[-1:]) == (0, ["done"]), run.stderr[-300:]
