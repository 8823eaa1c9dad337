"""A conversation with a local model that remembers: recall, answer, keep.

What is said is kept as it is said: the question before it is read, and the answer, or as much of it as came, when it
ends, is interrupted or fails.
"""

from __future__ import annotations

import bisect
import itertools
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import datetime

from latent_memory.errors import InputError
from latent_memory.inference import prompt
from latent_memory.inference.local_model import LocalModel, Sampling
from latent_memory.inference.ways import Way
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.records import Context, Conversation, Turn

BUDGET = 1024
MOST = 256
# A memory of fewer tokens has no room for one turn beside its fence.
_LEAST_BUDGET = 48
_GREEDY = Sampling()
_NOTHING = Context("", (), 0, 0)


@dataclass(slots=True)
class Exchange:
    """A question and what became of it.

    Attributes:
        question: what the user said.
        context: what was recalled for it.
        answer: what came of the answer so far.
        seconds: to the first piece of the answer; None before it has come.
        read: how many tokens the model read for it.
    """

    question: str
    context: Context = _NOTHING
    answer: str = ""
    seconds: float | None = None
    read: int = 0


class Chat:
    """A conversation with a model, which is part of a memory while it goes on.

    Args:
        memory: is asked for what matters to each question, and is given each exchange.
        model: answers.
        way: brings what was recalled into the model.
        scope: whose memory it is.
        conversation_id: of the conversation; one that is there is continued. By default a new one.
        recalls: ask the memory; a way that takes nothing of it need not.
        budget: the most tokens of memory.
        most: the most tokens of an answer.
        sampling: how its tokens are chosen.
        system: what the model is told first, instead of the default instruction.
        save: give the exchanges to the memory.

    Attributes:
        conversation_id: of this conversation.
        continued: how many turns of it were there before.
        last: the last exchange, None before the first.
        dropped: how many turns have left the live messages since they no longer fit; the memory has them.
    """

    def __init__(
        self,
        memory: LatentMemory,
        model: LocalModel,
        way: Way,
        *,
        scope: str = DEFAULT_SCOPE,
        conversation_id: str | None = None,
        recalls: bool = True,
        budget: int = BUDGET,
        most: int = MOST,
        sampling: Sampling = _GREEDY,
        system: str | None = None,
        save: bool = True,
    ) -> None:
        self._memory = memory
        self._model = model
        self._way = way
        self._scope = scope
        self._recalls = recalls
        self._budget = budget
        self._most = most
        self._sampling = sampling
        self._system = system
        self._save = save
        self.conversation_id = conversation_id or new_id()
        known = memory.get(self.conversation_id, scope=scope) if conversation_id else None
        self._live: list[Turn] = [turn for turn in known.turns if turn.role in _SPEAKERS] if known else []
        self._unsaved: list[Turn] = []
        self._known = known is not None
        self.continued = len(known.turns) if known else 0
        self.last: Exchange | None = None
        self.dropped = 0

    def ask(self, question: str, recalled: Callable[[Exchange], None] = lambda _: None) -> Generator[str]:
        """Yield the answer to a question in pieces, as it is made; close the iterator to stop it.

        Args:
            question: what the user says.
            recalled: called when the memory has been asked, before the model reads.

        Raises:
            InputError: for a question that is empty, or longer than the model's window.
            ModelMemoryError: if memory runs out.

        Whatever is raised, the question is kept, and what came of the answer.
        """
        began = time.perf_counter()
        turn = _said("user", question)
        exchange = self.last = Exchange(turn.text)
        self._live.append(turn)
        if self._save:
            self._unsaved.append(turn)
        try:
            budget = self._make_room()
            if self._recalls and budget >= _LEAST_BUDGET:
                exchange.context = self._memory.context(
                    self._live, budget, tokenizer=self._model.count_tokens, scope=self._scope
                )
            recalled(exchange)
            self._keep()
            prefilled = self._way.read(exchange.context, self._messages(self._live))
            exchange.read = prefilled.read
            for piece in self._model.answer(prefilled, most=self._most, sampling=self._sampling):
                # Some models begin with a line break.
                shown = piece if exchange.answer else piece.lstrip()
                if shown:
                    exchange.answer += shown
                    if exchange.seconds is None:
                        exchange.seconds = time.perf_counter() - began
                    yield shown
        finally:
            if exchange.answer.strip():
                answer = _said("assistant", exchange.answer.rstrip())
                self._live.append(answer)
                if self._save:
                    self._unsaved.append(answer)
            self._keep()

    def close(self) -> None:
        """Keep what is not in the memory yet, which happens if keeping it was interrupted."""
        self._keep()

    def _keep(self) -> None:
        """Add what is not in the memory yet to the conversation, as it is there by now."""
        if not self._unsaved:
            return
        unsaved = tuple(self._unsaved)

        def following(stored: Conversation | None) -> Conversation:
            if stored is None and self._known:
                # It was forgotten meanwhile, and must not come back.
                self._live = list(unsaved)
            before = stored.turns if stored else ()
            # Behind what another process has added, and without what was added just as somebody interrupted it.
            turns = [*before, *(turn for turn in unsaved if turn not in before)]
            return Conversation(self.conversation_id, turns, type="chat" if stored is None else None)

        self._memory.extend(self.conversation_id, following, self._scope)
        self._known = True
        self._unsaved.clear()

    def _make_room(self) -> int:
        """Drop the oldest exchanges from the live messages until all fits; return what the memory may take."""

        def room(first: int) -> int:
            """Return what is left of the window beside the answer and the turns from one on."""
            taken = len(prompt.tokens(self._model, self._messages(self._live[first:])))
            return self._model.window - taken - self._most

        left = room(0)
        if left < self._budget:
            # Of an exchange both turns go: an answer without its question tells little.
            starts = [i for i, turn in enumerate(self._live) if turn.role == "user"]
            found = bisect.bisect_left(starts, self._budget, key=room)
            first = starts[min(found, len(starts) - 1)]
            self.dropped += first
            del self._live[:first]
            left = room(0)
        return max(0, min(self._budget, left))

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        """Return the turns as the model's chat template takes them: the user and the model in turn."""
        told: list[dict[str, str]] = []
        # Some templates want the user to begin.
        for turn in itertools.dropwhile(lambda turn: turn.role != "user", turns):
            if told and told[-1]["role"] == turn.role:
                told[-1]["content"] += f"\n\n{turn.text}"
            else:
                told.append({"role": turn.role, "content": turn.text})
        return [{"role": "system", "content": self._system}, *told] if self._system else told


_SPEAKERS = ("user", "assistant")


def new_id() -> str:
    """Return an id for a new conversation: when it began, and a few letters that tell it from others."""
    return f"chat-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _said(role: str, text: str) -> Turn:
    if not text.strip():
        raise InputError("question: empty; ask for something")
    return Turn(role, text, datetime.now().astimezone())
