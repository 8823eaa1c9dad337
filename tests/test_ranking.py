from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory.ranking import Candidates, Weights, rank
from latent_memory.vectors import Ids, Scores

_NAMES = [
    *("meaning", "words", "exchange", "tokens", "neighbours", "answer", "conversation", "companion", "asking"),
]
_PLAIN = Weights(**dict.fromkeys(("tokens", "answer", "companion", "asking", "time"), 0.0), words=1.0, conversation=0.4)


def _scores(*numbers: float) -> Scores:
    return np.array(numbers, np.float32)


def _ids(*numbers: int) -> Ids:
    return np.array(numbers, np.int64)


def _example() -> Candidates:
    # Candidate 1 stands between 0 and 2 in one conversation; 3 is alone in another.
    return Candidates(
        meaning=_scores(0.4, 0.8, -0.2, 0.2),
        words=_scores(5, 0, 10, 0),
        exchange=_scores(2, 8, 4, 0),
        conversation=_scores(3, 3, 3, 6),
        before=_ids(-1, 0, 1, -1),
        after=_ids(1, 2, -1, -1),
        length=_ids(10, 80, 160, 320),
        key=_ids(7, 7, 7, 9),
        asks=np.array([True, False, False, False]),
        tokens=_scores(0.5, 0.6, np.nan, 0.7),
    )


def test_a_small_example_by_hand() -> None:
    signals = rank(_example(), Weights(1.0, 1.0, 0.4, 2.0, 0.25, 0.5, 0.4, 0.3, 0.1, 0.6, 80.0, 5.0))
    assert list(signals) == _NAMES
    # Borrowing: 1, 1, 1/2, 1/4.
    expected = {
        "meaning": [0.5, 1.0, 0.0, 0.25],
        "words": [0.5, 0.0, 1.0, 0.0],
        "exchange": [0.4 * 0.25, 0.4 * 1.0, 0.4 * 0.5 * 0.5, 0.0],
        # What they say themselves: 1.1, 1.4, 1.1, 0.25.
        "neighbours": [0.25 * 1.4, 0.25 * (1.1 + 1.1), 0.25 * 0.5 * 1.4, 0.0],
        "tokens": [0.0, 2 * 0.5, 0.0, 2 * 1.0],
        # Candidate 0 asks, and 1 comes next.
        "answer": [0.0, 0.5 * 1.1, 0.0, 0.0],
        "conversation": [0.4 * 0.5, 0.4 * 0.5, 0.4 * 0.5 * 0.5, 0.4 * 0.25],
        # The best of the first conversation is 2.4, that of the second 2.25, which is the least.
        "companion": [0.3, 0.3, 0.3 * 0.5, 0.0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(signals[name], values, rtol=1e-6, err_msg=name)
    before = 0.5 + 0.5 + 0.1 + 0.35 + 0.2 + 0.3
    np.testing.assert_allclose(signals["asking"], [-0.1 * 0.25 * before, 0, 0, 0], rtol=1e-6)


def test_time_is_added_where_the_query_tells_one() -> None:
    fit = _scores(0, 1, 0.5, 0)
    np.testing.assert_allclose(rank(_example()._replace(time=fit))["time"], 0.6 * fit)
    assert "time" not in rank(_example())


def test_the_latest_of_what_may_answer_is_preferred() -> None:
    scores = _scores(1, 0.9, 0.95, 0.1)
    silence = _scores(0, 0, 0, 0)
    alone = _ids(-1, -1, -1, -1)
    length = _ids(9, 9, 9, 9)
    asked = Candidates(scores, silence, silence, silence, alone, alone, length, alone, np.zeros(4, bool))
    weights = _PLAIN._replace(time=0.6)
    said_at = np.array([20.0, 30.0, 10.0, 99.0])
    told = rank(asked._replace(said_at=said_at, tokens=silence), weights)["time"]
    np.testing.assert_allclose(told, [0.3, 0.6, 0.0, 0.0])
    same = rank(asked._replace(said_at=np.full(4, 5.0), tokens=silence), weights)["time"]
    np.testing.assert_allclose(same, [0, 0, 0, 0])
    both = rank(asked._replace(said_at=said_at, time=_scores(0, 0, 1, 0), tokens=silence), weights)["time"]
    np.testing.assert_allclose(both, [0.3, 0.6, 0.6, 0.0])


def test_without_tokens_vectors_say_more() -> None:
    told = rank(_example()._replace(tokens=None))
    assert not told["tokens"].any()
    np.testing.assert_allclose(told["meaning"], [0.5 + 0.5 * 0.6, 1 + 0.5, 0, 0.25 + 0.5 * 0.4], rtol=1e-6)


def test_the_weights_are_the_measured_ones() -> None:
    assert Weights() == (1.0, 0.7, 0.4, 2.0, 0.25, 0.25, 0.8, 0.4, 0.15, 0.6, 80.0, 20.0)
    by_default, told = rank(_example()), rank(_example(), Weights())
    for name in _NAMES:
        np.testing.assert_array_equal(by_default[name], told[name])


@pytest.mark.parametrize("name", _NAMES)
def test_a_weight_of_zero_silences_a_signal(name: str) -> None:
    assert rank(_example())[name].any()
    assert not rank(_example(), Weights(**{name: 0.0}))[name].any()


def test_a_weight_scales_its_signal_alone() -> None:
    once, twice = rank(_example()), rank(_example(), Weights(conversation=1.6))
    for name in set(_NAMES) - {"asking"}:
        np.testing.assert_allclose(twice[name], once[name] * (2 if name == "conversation" else 1))


def test_borrowing_fades_for_long_passages() -> None:
    lengths = _ids(0, 1, 79, 80, 81, 160, 800, 80_000)
    n = len(lengths)
    same = np.ones(n, np.float32)
    # All borrow from one more candidate, which stands at the end.
    candidates = Candidates(
        meaning=np.append(same, np.float32(1)),
        words=np.append(same, np.float32(1)),
        exchange=np.append(same, np.float32(0)),
        conversation=np.append(same, np.float32(1)),
        before=np.append(np.full(n, n, np.int64), -1),
        after=np.full(n + 1, -1, np.int64),
        length=np.append(lengths, 1),
        key=np.zeros(n + 1, np.int64),
        asks=np.zeros(n + 1, bool),
    )
    signals = rank(candidates, _PLAIN)
    fading = [1, 1, 1, 1, 80 / 81, 0.5, 0.1, 0.001]
    np.testing.assert_allclose(signals["conversation"][:n], 0.4 * np.array(fading), rtol=1e-6)
    np.testing.assert_allclose(signals["exchange"][:n], 0.4 * np.array(fading), rtol=1e-6)
    np.testing.assert_allclose(signals["neighbours"][:n], 0.25 * 2.0 * np.array(fading), rtol=1e-6)
    np.testing.assert_allclose(signals["meaning"][:n], 1.0)
    np.testing.assert_allclose(signals["words"][:n], 1.0)


def test_no_neighbour_lends_nothing() -> None:
    lonely = _example()._replace(before=_ids(-1, -1, -1, -1), after=_ids(-1, -1, -1, -1))
    assert rank(lonely)["neighbours"].tolist() == [0, 0, 0, 0]


def test_the_last_candidate_can_be_a_neighbour() -> None:
    only_last = _two(meaning=_scores(0, 1))
    np.testing.assert_allclose(rank(only_last, _PLAIN)["neighbours"], [0.25, 0.0])


def _two(meaning: Scores) -> Candidates:
    silence = _scores(0, 0)
    neither = np.zeros(2, bool)
    return Candidates(meaning, silence, silence, silence, _ids(-1, 0), _ids(1, -1), _ids(5, 5), _ids(1, 1), neither)


def test_no_candidates() -> None:
    none = Candidates(_scores(), _scores(), _scores(), _scores(), _ids(), _ids(), _ids(), _ids(), np.zeros(0, bool))
    signals = rank(none)
    assert list(signals) == _NAMES
    assert all(values.shape == (0,) for values in signals.values())


def test_cosines_below_zero_and_silence_count_as_zero() -> None:
    signals = rank(_two(meaning=_scores(-0.5, -0.1)), _PLAIN)
    assert all(values.tolist() == [0, 0] for values in signals.values())


@given(
    st.lists(
        st.tuples(
            st.floats(-1, 1, width=32),
            st.floats(0, 50, width=32),
            st.floats(0, 50, width=32),
            st.floats(0, 50, width=32),
            st.integers(-1, 1_000),
            st.integers(-1, 1_000),
            st.integers(0, 5_000),
            st.integers(0, 3),
            st.booleans(),
            st.just(float("nan")) | st.floats(-1, 1, width=16),
        ),
        min_size=1,
        max_size=12,
    ),
    st.builds(Weights, *(st.floats(0, 3) for _ in range(10)), st.floats(1, 300), st.floats(1, 300)),
)
def test_the_contributions_are_those_of_a_plain_loop(rows: list[Any], weights: Weights) -> None:
    n = len(rows)
    before = [row[4] if row[4] < n else -1 for row in rows]
    after = [row[5] if row[5] < n else -1 for row in rows]
    meaning, words, exchange, conversation = (_scores(*(float(row[i]) for row in rows)) for i in range(4))
    length, key = (_ids(*(row[i] for row in rows)) for i in (6, 7))
    asks = np.array([row[8] for row in rows])
    tokens = _scores(*(row[9] for row in rows))
    signals = rank(
        Candidates(
            *(meaning, words, exchange, conversation, _ids(*before), _ids(*after), length, key, asks),
            tokens=tokens,
        ),
        weights,
    )

    def share(place: int, i: int) -> float:
        best = max(0.0, *(row[place] for row in rows), 0.0)
        return max(0.0, rows[i][place]) / best if best > 0 else 0.0

    def spread(values: list[float]) -> list[float]:
        known = [value for value in values if value == value]
        if not known or max(known) == min(known):
            return [0.0] * len(values)
        return [(v - min(known)) / (max(known) - min(known)) if v == v else 0.0 for v in values]

    borrow = [min(1.0, weights.borrowing_words / max(1, row[6])) for row in rows]
    own = [
        weights.meaning * share(0, i) + weights.words * share(1, i) + weights.exchange * borrow[i] * share(2, i)
        for i in range(n)
    ]
    compared = [weights.tokens * value for value in spread([row[9] for row in rows])]
    keys = sorted({row[7] for row in rows})
    bests = [max(np.float32(own[i] + compared[i]) for i in range(n) if rows[i][7] == k) for k in keys]
    companion = dict(zip(keys, spread([float(best) for best in bests]), strict=True))
    for i in range(n):
        around = sum(own[j] for j in (before[i], after[i]) if j >= 0)
        asked = own[before[i]] if before[i] >= 0 and rows[before[i]][8] else 0.0
        lent = borrow[i] * (
            weights.neighbours * around
            + weights.answer * asked
            + weights.conversation * share(3, i)
            + weights.companion * companion[rows[i][7]]
        )
        whole = own[i] + compared[i] + lent
        short = min(1.0, weights.asking_words / max(1, rows[i][6])) ** 2
        whole -= weights.asking * short * whole if rows[i][8] else 0.0
        assert sum(float(values[i]) for values in signals.values()) == pytest.approx(whole, abs=1e-4)
