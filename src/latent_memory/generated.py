"""Metadata that a source lacks, made without a language model: id, title, summary.

Everything here is a function of the conversation alone, so that adding the same file again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from latent_memory.passages import count_words, sentences
from latent_memory.records import Conversation, Turn
from latent_memory.vectors import Vectors, unit

TITLE_CHARACTERS = 60
SUMMARY_CHARACTERS = 300
DEFAULT_TYPE = "conversation"

# What a machine said to a machine makes no title and no summary, unless there is nothing else.
_TALK = ("user", "assistant")


def turn_digest(turn: Turn) -> bytes:
    """Return 16 bytes that differ when anything of the turn differs."""
    return digest_of(turn.role, turn.name, turn.text, turn.timestamp.isoformat() if turn.timestamp else None)


def digest_of(role: str, name: str | None, text: str, timestamp: str | None) -> bytes:
    """Return the digest of a turn from what is stored of it; its time is ISO 8601."""
    return hashlib.blake2b(json.dumps([role, name, text, timestamp]).encode(), digest_size=16).digest()


def conversation_id(digests: Sequence[bytes], summary: str | None) -> str:
    """Return an id made of everything that was said: the same conversation always gets the same one."""
    whole = hashlib.blake2b(digest_size=8)
    for digest in digests:
        whole.update(digest)
    whole.update((summary or "").encode())
    return f"gen-{whole.hexdigest()}"


def id_of(conversation: Conversation) -> str:
    """Return the id under which a conversation is kept: its own, or the one that is made of it."""
    if conversation.conversation_id is not None:
        return conversation.conversation_id
    return conversation_id([turn_digest(turn) for turn in conversation.turns], conversation.summary)


def title(turns: Sequence[Turn], summary: str | None) -> str:
    """Return the first thing the user asked or said that is more than a greeting, in one line."""
    said = [turn for turn in turns if turn.role == "user"] or list(turns)
    candidates = [sentence for turn in said[:3] for sentence in sentences(turn.text)] or [summary or ""]
    telling = (candidate for candidate in candidates if count_words(candidate) >= 4)
    return shorten(next(telling, candidates[0]), TITLE_CHARACTERS)


def summary(turns: Sequence[Turn], vectors: Mapping[int, Vectors]) -> str:
    """Return the sentences nearest the conversation's centroid, in the order they were said.

    A sentence stands where its turn stands (the memory embeds turns, and embedding every sentence as well would
    double the cost of adding); within a turn, the sentence goes first that has the most words in common with
    the rest of the conversation.

    Args:
        turns: the conversation's turns.
        vectors: for each turn's position, its passages' vectors (m, d), unit length.

    Returns:
        At most `SUMMARY_CHARACTERS` characters.
    """
    talk = [i for i, turn in enumerate(turns) if turn.role in _TALK] or list(range(len(turns)))
    means = {i: unit(vectors[i].mean(axis=0)) for i in talk}
    centroid = sum(means.values()) / len(means)
    nearest = sorted(talk, key=lambda i: (-float(means[i] @ centroid), i))

    split = {i: sentences(turns[i].text) for i in nearest}
    common = Counter(word for told in split.values() for s in told for word in set(_words(s)))

    def shared(sentence: str) -> float:
        words = set(_words(sentence))
        return sum(common[word] - 1 for word in words) / (len(words) + 5)

    chosen: list[tuple[int, int, str]] = []
    room = SUMMARY_CHARACTERS
    for i in nearest:
        ranked = sorted(enumerate(split[i]), key=lambda pair: (-shared(pair[1]), pair[0]))
        for place, sentence in ranked[:1]:
            line = " ".join(sentence.split())
            if count_words(line) >= 4 and len(line) + 1 <= room:
                chosen.append((i, place, line))
                room -= len(line) + 1
    if not chosen:
        return shorten(turns[nearest[0]].text, SUMMARY_CHARACTERS)
    return " ".join(line for _, _, line in sorted(chosen))


def shorten(text: str, most: int) -> str:
    """Return the text on one line, cut at a word if it is longer than `most` characters."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    cut = line[: most - 1]
    at = cut.rfind(" ")
    return (cut[:at] if at > most // 2 else cut).rstrip(" ,;:-") + "…"


def _words(text: str) -> list[str]:
    return [word.strip(".,;:!?\"'()[]").lower() for word in text.split() if len(word) > 3]
