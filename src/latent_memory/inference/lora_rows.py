"""Training text -> tokens: rows of the record and of questions in the model's chat template, in batches of one size.

A pass goes through the record once, and through a part of the questions; which part, and in what order, follows from
the seed and the number of the pass, so that a training that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_memory.inference import prompt
from latent_memory.inference.extra import needed
from latent_memory.inference.local_model import LocalModel
from latent_memory.training_text import Stretch

if TYPE_CHECKING:
    import torch

# Questions follow one another in one chat: the instruction is read once for them. Most are asked alone.
_IN_A_ROW = (1, 1, 2, 4)
# So that what was learnt does not hang on one instruction; "" for the model's own.
_SYSTEMS = (prompt.INSTRUCTION, "You are a helpful assistant.", "")
_HERE = "\ue000question\ue000"


class Row(NamedTuple):
    """Tokens, and which of them are to be learnt."""

    tokens: list[int]
    wanted: list[bool]


class Batch(NamedTuple):
    """Rows of equal length: (rows, length) each, with what is padding marked by 0 in `mask`."""

    tokens: torch.Tensor
    mask: torch.Tensor
    wanted: torch.Tensor


class Rows:
    """Makes rows of stretches.

    Args:
        model: whose tokens and chat template they are made for.
        size: the most tokens of a row, and about as many as a batch has.
    """

    def __init__(self, model: LocalModel, size: int) -> None:
        self._model = model
        self.size = min(size, model.window)

    def record(self, stretch: Stretch) -> Iterator[Row]:
        """Yield a stretch's text; in pieces, if it is longer than a row."""
        tokens = self._model.encode(stretch.record)
        first = self._model.tokenizer.bos_token_id
        start = [] if first is None else [int(first)]
        for at in range(0, len(tokens), self.size - len(start)):
            piece = start + tokens[at : at + self.size - len(start)]
            if len(piece) > 1:
                yield Row(piece, [False] + [True] * (len(piece) - 1))

    def questions(self, pairs: Sequence[tuple[str, str]], system: str) -> Row:
        """Return questions with their answers, in one chat; only the answers are to be learnt."""
        told = [{"role": "system", "content": system}] if system else []
        tokens: list[int] = []
        wanted: list[bool] = []
        read = ""
        for question, answer in pairs:
            told.append({"role": "user", "content": question})
            text = self._template(told)
            if not text.startswith(read):
                # A template that writes earlier messages otherwise than the last: the first question alone.
                break
            asked, answered = self._model.encode(text[len(read) :]), self._model.encode(answer)
            end = [int(self._model.tokenizer.eos_token_id)] if self._model.tokenizer.eos_token_id is not None else []
            if tokens and end and asked[: len(end)] == end:
                # The mark that ends the answer before it.
                asked = asked[len(end) :]
            tokens += asked + answered + end
            wanted += [False] * len(asked) + [True] * (len(answered) + len(end))
            told.append({"role": "assistant", "content": answer})
            read = text + answer
        return Row(tokens[: self.size], wanted[: self.size])

    def passed(self, stretches: Sequence[Stretch], seed: str, share: float = 1.0) -> list[Row]:
        """Return the rows of one pass, in the order they are learnt in.

        Args:
            stretches: the memory.
            seed: tells this pass from others.
            share: of the questions of each kind but facts, which are few and are all asked.
        """
        chance = random.Random(seed)
        rows = [row for stretch in stretches for row in self.record(stretch)]
        asked = [
            (question, answer)
            for stretch in stretches
            for kind, question, answer in stretch.questions
            if kind == "fact" or chance.random() < share
        ]
        chance.shuffle(asked)
        while asked:
            count = chance.choice(_IN_A_ROW)
            rows.append(self.questions(asked[:count], chance.choice(_SYSTEMS)))
            asked = asked[count:]
        chance.shuffle(rows)
        return [row for row in rows if any(row.wanted)]

    def batches(self, rows: Sequence[Row], seed: str) -> list[list[Row]]:
        """Return the rows in batches of about `size` tokens, those of about one length together, in random order."""
        made: list[list[Row]] = []
        now: list[Row] = []
        for row in sorted(rows, key=lambda row: len(row.tokens)):
            # The last is the longest.
            if now and len(row.tokens) * (len(now) + 1) > self.size * 5 // 4:
                made.append(now)
                now = []
            now.append(row)
        if now:
            made.append(now)
        random.Random(seed).shuffle(made)
        return made

    def padded(self, rows: Sequence[Row]) -> Batch:
        """Return rows as one batch, on the model's device."""
        torch = needed("torch")
        width = max(len(row.tokens) for row in rows)

        def filled(values: list[list[Any]], kind: Any) -> Any:
            return torch.tensor([[*v, *[0] * (width - len(v))] for v in values], dtype=kind, device=self._model.device)

        return Batch(
            filled([row.tokens for row in rows], torch.long),
            filled([[1] * len(row.tokens) for row in rows], torch.long),
            filled([row.wanted for row in rows], torch.bool),
        )

    def openings(self) -> list[list[int]]:
        """Return what the model's own texts begin with: any text, and what a user asks."""
        tokenizer = self._model.tokenizer
        first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
        found = [[int(first)]]
        before, here, _ = self._template([{"role": "user", "content": _HERE}]).partition(_HERE)
        if here and (tokens := self._model.encode(before)):
            found.append(tokens)
        return found

    def _template(self, told: Sequence[dict[str, str]]) -> str:
        """Return the messages in the chat template; without the system message, if it takes none."""
        from latent_memory.errors import InputError

        try:
            return self._model.template(told)
        except InputError:
            return self._model.template([message for message in told if message["role"] != "system"])
