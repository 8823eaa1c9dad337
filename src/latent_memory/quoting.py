"""What a prompt holds already: texts that say the same, or quote each other, in whatever marks and capitals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

# Texts of fewer words share them easily, and still differ in the one that counts.
SHORT = 12
# Two texts that share this much of their words, and all of their numbers, say the same.
_SAME = 0.9
# A text of so many words is told by another that holds it word for word; fewer ("yes") are in any text.
QUOTED = 4


class Said:
    """A text as a bag of words, to be compared."""

    def __init__(self, text: str) -> None:
        words = _words(text)
        self.exactly = _joined(words) if words else text.strip()
        self.count = len(words)
        self.words = frozenset(words)

    def is_told_by(self, other: Said, quoted: int) -> bool:
        """Tell whether the other says the same, or quotes this one, if it has so many words, word for word."""
        if self.exactly == other.exactly or (self.count >= quoted and self.exactly in other.exactly):
            return True
        return self.is_like(other)

    def is_like(self, other: Said) -> bool:
        """Tell whether the other says the same in nearly the same words."""
        mine, others = self.words, other.words
        # Short texts share their few words easily and still differ in the one that counts; so do long ones in a number.
        return (
            self.count >= SHORT
            # Those that differ more in size cannot share enough.
            and len(mine) >= _SAME * len(others)
            and len(others) >= _SAME * len(mine)
            and len(mine & others) >= _SAME * len(mine | others)
            and _numbers(mine) == _numbers(others)
        )


class Live:
    """What the prompt holds anyway, put together: a long conversation is compared in little time."""

    def __init__(self, texts: Iterable[str]) -> None:
        said = [Said(text) for text in texts]
        self._exactly = {each.exactly for each in said}
        # Nothing is found across two texts: there is no line break between words.
        self._whole = "\n".join(each.exactly for each in said)
        self._words = frozenset().union(*(each.words for each in said))
        self._by_size: dict[int, list[Said]] = {}
        for each in said:
            self._by_size.setdefault(len(each.words), []).append(each)

    def tells(self, said: Said) -> bool:
        """Tell whether one of the texts says the same, or quotes it."""
        if said.exactly in self._exactly:
            return True
        # Most have a word that is nowhere in them, which is sooner found.
        if said.count >= QUOTED and said.words <= self._words and said.exactly in self._whole:
            return True
        if said.count < SHORT:
            return False
        size = len(said.words)
        sizes = range(math.floor(_SAME * size), math.ceil(size / _SAME) + 1)
        return any(said.is_like(other) for each in sizes for other in self._by_size.get(each, ()))


# CJK is written without spaces; each character counts as a word.
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def spaced(text: str) -> str:
    """Return the words in lower case, with a space before and after each; the text itself if it has none."""
    words = _words(text)
    return _joined(words) if words else text.strip()


def _joined(words: Iterable[str]) -> str:
    return f" {' '.join(words)} "


# What is between the words of a text in ASCII.
_BETWEEN = str.maketrans({c: " " for c in map(chr, range(128)) if not (c.isalnum() or c == "_")})


def _words(text: str) -> list[str]:
    if text.isascii():
        # The same, five times as fast.
        return text.lower().translate(_BETWEEN).split()
    return _WORD.findall(text.lower())


def _numbers(words: Iterable[str]) -> set[str]:
    return {word for word in words if any(map(str.isdigit, word))}
