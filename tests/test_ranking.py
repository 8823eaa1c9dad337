from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory.ranking import Candidates, Weights, rank
from latent_memory.vectors import Ids, Scores

_NAMES = ["meaning", "words", "exchange", "neighbours", "conversation"]


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
    )


def test_a_small_example_by_hand() -> None:
    signals = rank(_example(), Weights(1.0, 1.0, 0.4, 0.25, 0.4, 80.0))
    assert list(signals) == _NAMES
    # Borrowing: 1, 1, 1/2, 1/4.
    expected = {
        "meaning": [0.5, 1.0, 0.0, 0.25],
        "words": [0.5, 0.0, 1.0, 0.0],
        "exchange": [0.4 * 0.25, 0.4 * 1.0, 0.4 * 0.5 * 0.5, 0.0],
        # What they say themselves: 1.1, 1.4, 1.1, 0.25.
        "neighbours": [0.25 * 1.4, 0.25 * (1.1 + 1.1), 0.25 * 0.5 * 1.4, 0.0],
        "conversation": [0.4 * 0.5, 0.4 * 0.5, 0.4 * 0.5 * 0.5, 0.4 * 0.25],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(signals[name], values, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(sum(signals.values()), [1.65, 2.15, 1.375, 0.35], rtol=1e-6)


def test_the_weights_are_the_measured_ones() -> None:
    assert Weights() == (1.0, 1.0, 0.4, 0.25, 0.4, 80.0)
    by_default, told = rank(_example()), rank(_example(), Weights())
    for name in _NAMES:
        np.testing.assert_array_equal(by_default[name], told[name])


@pytest.mark.parametrize("place", range(5))
def test_a_weight_of_zero_silences_a_signal(place: int) -> None:
    weights = list(Weights())
    weights[place] = 0.0
    assert not rank(_example(), Weights(*weights))[_NAMES[place]].any()


def test_a_weight_scales_its_signal_alone() -> None:
    once, twice = rank(_example()), rank(_example(), Weights(conversation=0.8))
    for name in _NAMES:
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
    )
    signals = rank(candidates)
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
    only_last = Candidates(
        _scores(0, 1), _scores(0, 0), _scores(0, 0), _scores(0, 0), _ids(-1, 0), _ids(1, -1), _ids(5, 5)
    )
    np.testing.assert_allclose(rank(only_last)["neighbours"], [0.25, 0.0])


def test_no_candidates() -> None:
    none = Candidates(_scores(), _scores(), _scores(), _scores(), _ids(), _ids(), _ids())
    signals = rank(none)
    assert list(signals) == _NAMES
    assert all(values.shape == (0,) for values in signals.values())


def test_cosines_below_zero_and_silence_count_as_zero() -> None:
    signals = rank(
        Candidates(
            _scores(-0.5, -0.1), _scores(0, 0), _scores(0, 0), _scores(0, 0), _ids(-1, 0), _ids(1, -1), _ids(3, 3)
        )
    )
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
        ),
        min_size=1,
        max_size=12,
    ),
    st.builds(Weights, *(st.floats(0, 3) for _ in range(5)), st.floats(1, 300)),
)
def test_the_contributions_are_those_of_a_plain_loop(
    rows: list[tuple[float, float, float, float, int, int, int]], weights: Weights
) -> None:
    n = len(rows)
    before = [row[4] if row[4] < n else -1 for row in rows]
    after = [row[5] if row[5] < n else -1 for row in rows]
    meaning, words, exchange, conversation = (_scores(*(float(row[i]) for row in rows)) for i in range(4))
    length = _ids(*(row[6] for row in rows))
    signals = rank(Candidates(meaning, words, exchange, conversation, _ids(*before), _ids(*after), length), weights)

    def share(place: int, i: int) -> float:
        best = max(0.0, *(row[place] for row in rows), 0.0)
        return max(0.0, rows[i][place]) / best if best > 0 else 0.0

    borrow = [min(1.0, weights.borrowing_words / max(1, row[6])) for row in rows]
    own = [
        weights.meaning * share(0, i) + weights.words * share(1, i) + weights.exchange * borrow[i] * share(2, i)
        for i in range(n)
    ]
    for i in range(n):
        around = sum(own[j] for j in (before[i], after[i]) if j >= 0)
        lent = borrow[i] * (weights.neighbours * around + weights.conversation * share(3, i))
        assert sum(float(values[i]) for values in signals.values()) == pytest.approx(own[i] + lent, abs=1e-6)
