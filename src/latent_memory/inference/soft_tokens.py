"""A bridge from a passage's stored vectors to a few input embeddings of a frozen local model.

What the store keeps of each passage for recall, its embedding and the codes of its tokens (`late`), is turned into
positions that the model reads as if they were tokens: soft tokens. The bridge is trained on the user's own store
(`bridge_training`). It works in two steps:

1. Reading. Each code, with its neighbours and the passage's embedding, is mapped to a distribution over the words (the
   model's tokens) that the store uses; the input embedding that stands for it is their mean. So what comes out lies
   where the model's own embeddings lie.
2. Choosing. Each word has a worth: at first its rarity, then what training makes of it. The codes of the most worth
   are kept, in their order, each with something of its neighbours.

The day, the speaker and a passage's rarest words stay text: they cost little and say much, and a name that is read
almost right is worse than none. They, too, count as positions. Without codes (another embedder), the words are read
from the passage's embedding alone, which holds far less.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latent_memory.context import written
from latent_memory.errors import DerivedError, InputError
from latent_memory.inference import prompt, tensor_files
from latent_memory.inference.extra import in_memory, needed
from latent_memory.inference.local_model import LocalModel, Messages, Prefilled
from latent_memory.late import TokenVectors
from latent_memory.records import Context, Passage
from latent_memory.times import in_words

if TYPE_CHECKING:
    import torch

KINDS = ("tokens", "embedding")

_VERSION = 1
# Codes have length one; a number of 48 is then about a seventh.
_CODE = 254.0
# Neighbours that a chosen code takes something of, on either side.
_REACH = 3
# What is no code's. Not infinity: a row of nothing else would give no number.
_NEVER = -1e4


GetVectors = Callable[[Sequence[Passage]], TokenVectors]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a bridge is made of.

    Attributes:
        kind: what is read: "tokens" (codes, and the embedding with them) or "embedding".
        soft: how many soft tokens a passage has at most.
        keywords: how many of a passage's rarest words (the model's tokens) stay text, before its soft tokens.
        width: of the layers between.
        vector: how many numbers an embedding has.
        code: how many a token's code has.
        hidden: how many an input embedding of the model has.
        words: how many of the model's tokens can be read.
        heads: how many words are read from an embedding alone.
    """

    kind: str
    soft: int
    keywords: int
    width: int
    vector: int
    code: int
    hidden: int
    words: int
    heads: int = 16


class Codings(NamedTuple):
    """Vectors of passages as tensors, the shorter ones filled up with zeros.

    Attributes:
        vectors: (n, vector).
        codes: (n, t, code), of variance one; t is 0 if no passage has any.
        there: (n, t), which of the codes there are.
    """

    vectors: torch.Tensor
    codes: torch.Tensor
    there: torch.Tensor


class Reading(NamedTuple):
    """What was read from n passages: at each of t places something like a word.

    Attributes:
        inner: (n, t, width).
        looked: (n, t, hidden), compared with the words' input embeddings.
        there: (n, t), which of the places hold any.
    """

    inner: torch.Tensor
    looked: torch.Tensor
    there: torch.Tensor


class Bridge:
    """Soft tokens for a model. Made by `bridge_training.train`, or `Bridge.load`.

    Args:
        model: what reads them.
        embedder: name and fingerprint of what made the vectors, as one text.
        shape: what it is made of.
        weights: its tensors, on the model's device, in fp32.
        vectors: returns what is stored of passages.

    Attributes:
        share: how much of what the memory takes as text its soft tokens may take.
        passages: how many passages are read at most; the most relevant ones.
    """

    def __init__(
        self,
        model: LocalModel,
        embedder: str,
        shape: Shape,
        weights: dict[str, torch.Tensor],
        vectors: GetVectors,
    ) -> None:
        self.model = model
        self.embedder = embedder
        self.shape = shape
        self.weights = weights
        self.vectors = vectors
        self.share = 1 / 8
        self.passages = 32
        # Copied: training goes through them, which what was made in inference mode does not allow.
        table = model.embed_tokens(weights["words"].tolist()).float().clone()
        self._table = table
        self._size = float(table.square().mean().sqrt())
        self._directions = table / self._size
        self._rarity = dict(zip(weights["words"].tolist(), weights["rarity"].tolist(), strict=True))

    # -- at answer time -----------------------------------------------------------------------------------

    def read(self, context: Context, question: str | Messages, *, most: int | None = None) -> Prefilled:
        """Return the model when it has read the memory's soft tokens and the question.

        Args:
            context: what was recalled.
            question: a text, or the live conversation.
            most: how many positions the memory may take; by default `share` of what it takes as text.

        Raises:
            InputError: if the prompt is longer than the model's window.
        """
        torch = needed("torch")
        if not context.passages:
            return self.model.prefill(prompt.tokens(self.model, question))
        if most is None:
            most = int(self.share * self.model.count_tokens(prompt.body(context)))
        memory = self.memory(context.passages, getattr(context, "relevance", ()), most)
        if not len(memory):
            return self.model.prefill(prompt.tokens(self.model, question))
        head, tail = prompt.layout(self.model, question)
        parts = [self.model.embed_tokens(head), memory, self.model.embed_tokens(tail)]
        return self.model.prefill(torch.cat([part.to(parts[0].dtype) for part in parts]))

    def memory(self, passages: Sequence[Passage], relevance: Sequence[float], most: int) -> torch.Tensor:
        """Return the input embeddings of a memory, (positions, hidden), the most relevant last.

        Args:
            passages: what was recalled.
            relevance: of each; without it, the first ones count as the most relevant.
            most: how many positions there may be; the least relevant passages are left out.
        """
        torch = needed("torch")
        if relevance:
            ranked = [passages[i] for i in sorted(range(len(passages)), key=lambda i: -relevance[i])]
        else:
            ranked = list(passages)
        ranked = ranked[: self.passages]
        with torch.inference_mode():
            parts = self.parts(ranked, self.embeddings(ranked), most)
        return torch.cat(parts) if parts else torch.zeros(0, self.shape.hidden, device=self.model.device)

    def parts(self, ranked: Sequence[Passage], soft: Sequence[torch.Tensor], most: int) -> list[torch.Tensor]:
        """Return the embeddings of a memory's parts, texts and soft tokens, the most relevant conversation last."""
        days: dict[tuple[str, str], list[tuple[Passage, torch.Tensor]]] = {}
        taken = 0
        end = self.model.encode("\n")
        for passage, tokens in zip(ranked, soft, strict=True):
            day = passage.conversation_id, in_words(passage.timestamp)
            cost = len(self._plain(passage)) + len(tokens) + len(end)
            cost += 0 if day in days else len(self._heading(day[1]))
            if taken + cost > most:
                break
            taken += cost
            days.setdefault(day, []).append((passage, tokens))
        parts: list[torch.Tensor] = []
        for (_, when), said in reversed(days.items()):
            parts.append(self.model.embed_tokens(self._heading(when)).float())
            for passage, tokens in reversed(said):
                parts += [self.model.embed_tokens(self._plain(passage)).float(), tokens]
                parts.append(self.model.embed_tokens(end).float())
        return parts

    def embeddings(self, passages: Sequence[Passage]) -> list[torch.Tensor]:
        """Return the soft tokens of each passage, (at most `shape.soft`, hidden)."""
        torch = needed("torch")
        if not passages:
            return []
        with torch.inference_mode(), in_memory(f"reading {len(passages)} passages"):
            return self.soft(self.coded(self.vectors(passages)))

    # -- the bridge itself --------------------------------------------------------------------------------

    def coded(self, stored: TokenVectors) -> Codings:
        """Return stored vectors as tensors.

        Raises:
            InputError: if they have other sizes than those the bridge was trained on.
        """
        torch = needed("torch")
        device = self.model.device
        vectors = np.asarray(stored.vectors, np.float32)
        codes = [c if c.size else np.zeros((0, self.shape.code), np.int8) for c in stored.codes] or [
            np.zeros((0, self.shape.code), np.int8)
        ] * len(vectors)
        if vectors.shape[1:] != (self.shape.vector,) or any(c.shape[1] != self.shape.code for c in codes):
            raise InputError(
                f"vectors: of {vectors.shape[1:]} numbers; the bridge was trained on {self.shape.vector} numbers a "
                f"passage, and {self.shape.code} a token"
            )
        longest = max((len(c) for c in codes), default=0)
        filled = np.zeros((len(codes), longest, self.shape.code), np.float32)
        there = np.zeros((len(codes), longest), bool)
        for row, code in enumerate(codes):
            filled[row, : len(code)] = code
            there[row, : len(code)] = True
        filled *= self.shape.code**0.5 / _CODE
        return Codings(*(torch.from_numpy(array).to(device) for array in (vectors, filled, there)))

    def reading(self, given: Codings) -> Reading:
        """Read words, from the codes or from the embeddings alone."""
        torch = needed("torch")
        functional = torch.nn.functional
        w = self.weights
        about = functional.linear(given.vectors * self.shape.vector**0.5, w["vector"])
        if self.shape.kind == "tokens":
            there = given.there
            inner = functional.linear(given.codes, w["code"], w["code.bias"]) + about[:, None]
            inner = functional.gelu(inner) * there[..., None]
            near = functional.conv1d(inner.mT, w["near"], w["near.bias"], padding=w["near"].shape[-1] // 2).mT
            inner = inner + functional.gelu(near)
        else:
            there = torch.ones(len(about), self.shape.heads, dtype=torch.bool, device=about.device)
            inner = functional.gelu(about[:, None] + w["head"])
            inner = inner + functional.gelu(torch.einsum("nhi,hoi->nho", inner, w["heads"]) + w["heads.bias"])
        return Reading(inner, functional.linear(inner, w["look"], w["look.bias"]), there)

    def scores(self, looked: torch.Tensor, among: Any = slice(None)) -> torch.Tensor:
        """Return what is read as scores of words, of all or of some, (..., words)."""
        scores: torch.Tensor = looked @ self._directions[among].T / self.shape.hidden**0.5
        return scores + self.weights["often"][among]

    def soft(self, given: Codings) -> list[torch.Tensor]:
        """Return the soft tokens of passages, (at most `shape.soft`, hidden) each."""
        torch = needed("torch")
        read = self.reading(given)
        likely = self.scores(read.looked).softmax(-1)
        words = likely @ self._table
        # Squared: a guess among many rare words is worth little.
        worth = (likely * (0.5 + 0.5 * likely)) @ self.weights["worth"] + (read.inner @ self.weights["worth.inner"])
        worth = worth.masked_fill(~read.there, _NEVER)
        made = []
        extra = torch.nn.functional.linear(read.inner, self.weights["extra"]) * self._size
        for row in range(len(words)):
            count = int(read.there[row].sum())
            chosen = worth[row, :count].topk(min(self.shape.soft, count)).indices.sort().values
            places = torch.arange(count, device=words.device)
            distance = (places[None] - chosen[:, None]).abs()
            pull = worth[row, None, :count] * self.weights["pull"][0] - distance * self.weights["pull"][1].exp()
            # What has a place of its own is nobody's neighbour.
            taken = torch.zeros(count, dtype=torch.bool, device=words.device)
            taken[chosen] = True
            pull = pull.masked_fill((taken[None] & (distance > 0)) | (distance > _REACH), _NEVER)
            made.append(pull.softmax(-1) @ words[row, :count] + extra[row, chosen])
        return made

    def _plain(self, passage: Passage) -> list[int]:
        """Return the tokens of what stays text: the speaker, and the rarest words in the order they were said."""
        # As the prompt shows it.
        name, _, text = written(passage).rstrip("\n").partition(": ")
        # A word that the store did not hold is rarer than all others.
        words = dict.fromkeys(self.model.encode(f" {text}"))
        ranked = sorted(words, key=lambda word: -self._rarity.get(word, math.inf))
        rarest = set(ranked[: self.shape.keywords])
        return [*self.model.encode(f"{name}:"), *(word for word in words if word in rarest)]

    def _heading(self, day: str) -> list[int]:
        return self.model.encode(f"\n# {day}\n")

    # -- on disk ------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the bridge to a file, as a whole or not at all."""
        tensor_files.save(path, self.weights, self.about | {"what": "bridge"})

    @property
    def about(self) -> dict[str, str]:
        """What it belongs to: the fingerprints of both models, and its shape."""
        return {
            "version": str(_VERSION),
            "model": self.model.fingerprint,
            "embedder": self.embedder,
            "shape": json.dumps(asdict(self.shape), sort_keys=True),
        }

    @classmethod
    def load(cls, path: Path, model: LocalModel, embedder: str, vectors: GetVectors) -> Bridge:
        """Read a bridge.

        Args:
            path: where `save` has put it.
            model: the model that it was trained for.
            embedder: name and fingerprint of what makes the vectors.
            vectors: returns what is stored of passages.

        Raises:
            DerivedError: if it is not there, is damaged, or was trained for another model or another embedder.
        """
        weights, told = load(path, {"what": "bridge", "version": str(_VERSION)})
        return cls(model, embedder, checked(path, told, model, embedder), on_device(weights, model), vectors)


def checked(path: Path, told: Mapping[str, str], model: LocalModel, embedder: str) -> Shape:
    """Return the shape of what a file holds, if it was made for these models.

    Raises:
        DerivedError: if it was not.
    """
    for what, name, own in (("model", model.name, model.fingerprint), ("embedder", embedder, embedder)):
        if told.get(what) != own:
            raise DerivedError(
                f"{path}: was trained for another {what} than {name}; train a bridge for it, or use the {what} it was "
                "trained for"
            )
    return Shape(**json.loads(told["shape"]))


def on_device(weights: Mapping[str, torch.Tensor], model: LocalModel) -> dict[str, torch.Tensor]:
    """Return the tensors where the model computes."""
    return {name: tensor.to(model.device) for name, tensor in weights.items()}


def load(path: Path, expected: Mapping[str, str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a bridge's tensors, or a checkpoint's, and what is told of them.

    Raises:
        DerivedError: if it is not there, is damaged, or is something else.
    """
    try:
        tensors, told = tensor_files.load(path, "train it anew")
    except FileNotFoundError:
        raise DerivedError(f"{path}: there is none; train a bridge first, with: latent-memory bridge") from None
    if any(told.get(name) != value for name, value in expected.items()):
        raise DerivedError(f"{path}: is no {expected.get('what')} of this version; train it anew")
    return tensors, told
