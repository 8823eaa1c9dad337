"""Conversation -> stretches: what one block of keys and values is computed of.

A stretch is some turns in a row with the heading above them, written as in a context. Turns are taken from the
conversation's beginning, so that a conversation which grows changes its last stretch alone.
"""

from __future__ import annotations

from typing import NamedTuple

from latent_memory import context
from latent_memory.block_files import digest
from latent_memory.inference.local_model import LocalModel
from latent_memory.passages import pieces
from latent_memory.records import Conversation, Passage
from latent_memory.times import in_words

# About so many tokens; measured in docs/in-the-model.md.
STRETCH_TOKENS = 256

# A passage's place in its conversation: the turn (-1 for a summary) and where in it the passage starts.
Place = tuple[int, int]


class Part(NamedTuple):
    """A passage of a stretch, or a heading (place None), with its tokens."""

    place: Place | None
    tokens: list[int]


class Stretch(NamedTuple):
    """A stretch of conversation.

    Attributes:
        parts: a heading, and the passages; more headings where the day changes.
        digest: of what it says, in this order.
    """

    conversation_id: str
    parts: list[Part]
    digest: str

    @property
    def tokens(self) -> list[int]:
        """The tokens of all parts."""
        return [token for part in self.parts for token in part.tokens]

    def has(self, place: Place) -> bool:
        """Tell whether the stretch holds a passage."""
        return any(part.place == place for part in self.parts)


def place_of(passage: Passage) -> Place:
    """Return a passage's place."""
    return -1 if passage.turn is None else passage.turn, passage.start


def passages_of(conversation: Conversation, scope: str) -> list[Passage]:
    """Return the passages of a stored conversation, in order, as the store keeps them."""
    assert conversation.timestamp is not None
    known = {
        "scope": scope,
        "conversation_id": conversation.conversation_id or "",
        "title": "" if "title" in conversation.generated else conversation.title or "",
    }
    if not conversation.turns:
        text = conversation.summary or ""
        said = {"turn": None, "role": "", "name": None, "timestamp": conversation.timestamp}
        return [Passage(text=p.text, start=p.start, end=p.start + len(p.text), **said, **known) for p in pieces(text)]  # type: ignore[arg-type]
    return [
        Passage(
            turn=number,
            role=turn.role,
            name=turn.name,
            text=piece.text,
            timestamp=turn.timestamp or conversation.timestamp,
            start=piece.start,
            end=piece.start + len(piece.text),
            **known,
        )
        for number, turn in enumerate(conversation.turns)
        for piece in pieces(turn.text)
    ]


def stretches_of(
    model: LocalModel, conversation: Conversation, scope: str, size: int = STRETCH_TOKENS
) -> list[Stretch]:
    """Cut a stored conversation into stretches of at most `size` tokens, or of one passage that is longer."""
    found: list[Stretch] = []
    parts: list[Part] = []
    texts: list[str] = []
    count = 0
    day = ""

    def end() -> None:
        if parts:
            found.append(Stretch(conversation.conversation_id or "", list(parts), digest(*texts)))
        parts.clear()
        texts.clear()

    for passage in passages_of(conversation, scope):
        text = context.written(passage)
        tokens = model.encode(text)
        if not parts or count + len(tokens) > size:
            end()
            count = 0
            heading: str | None = context.heading(passage.title, passage.timestamp)
        else:
            heading = context.day_heading(passage.timestamp) if in_words(passage.timestamp) != day else None
        day = in_words(passage.timestamp)
        if heading is not None:
            parts.append(Part(None, model.encode(heading)))
            texts.append(heading)
            count += len(parts[-1].tokens)
        parts.append(Part(place_of(passage), tokens))
        texts.append(text)
        count += len(tokens)
    end()
    return found
