"""Texts that say the same: a long conversation is compared as its messages would be, one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory import quoting
from latent_memory.quoting import QUOTED, SHORT, Live, Said, spaced

LONG = (
    "The cellar is locked with a code that nobody but the two of us should ever know, and it hangs beside my old "
    "winter coat upstairs"
)


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("Yes.", "yes", True),
        ("Yes.", "Yes, of course", False),
        ("the code is 4711", "As I said, the code is 4711!", True),
        ("code is 4711", "the code is 4711", False),
        (LONG, LONG.upper() + "!", True),
        (LONG, LONG.replace("ever", "really"), True),
        (f"{LONG} 1", f"{LONG} 2", False),
        (LONG, LONG.replace("the two of us", "a stranger or three"), False),
        ("\U0001f44d", "\U0001f44d ", True),
        ("\U0001f44d", "\U0001f44e", False),
        ("\u6211\u4eec\u6628\u5929\u53bb", "\u6628\u5929\uff1f\u6211\u4eec\u6628\u5929\u53bb\u4e86", True),
    ],
)
def test_what_says_the_same(text: str, other: str, same: bool) -> None:
    assert Said(text).is_told_by(Said(other), QUOTED) == same
    assert Live(["something else", other]).tells(Said(text)) == same


def test_nothing_is_quoted_from_two_messages() -> None:
    assert not Live(["the code is", "4711 as you know"]).tells(Said("code is 4711 as"))
    assert not Live([]).tells(Said("the code is 4711"))


WORDS = st.lists(st.sampled_from("abcdefghijklmno12你"), max_size=30).map(" ".join)


@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=4))
def test_all_at_once_as_one_by_one(live: list[str], texts: list[str]) -> None:
    # Texts that are nearly those that are live, too.
    texts = [*texts, *(text.partition(" ")[2] for text in live), *(f"{text} b" for text in live)]
    together = Live(live)
    for text in texts:
        said = Said(text)
        assert together.tells(said) == any(said.is_told_by(Said(other), QUOTED) for other in live)


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_of_any_text(text: str) -> None:
    assert quoting._words(text) == quoting._WORD.findall(text.lower())


@given(st.text())
def test_words_stand_between_spaces(text: str) -> None:
    words = quoting._words(text)
    assert spaced(text) == (f" {' '.join(words)} " if words else text.strip())
    assert (Said(text).count < SHORT) == (len(words) < SHORT)
