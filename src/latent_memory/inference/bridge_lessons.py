"""What a bridge is taught by (see `bridge_training`): words to read, questions made by rule, and the two losses."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_memory.context import written
from latent_memory.inference.extra import needed
from latent_memory.inference.local_model import LocalModel
from latent_memory.inference.soft_tokens import Bridge, Codings
from latent_memory.passages import sentences
from latent_memory.records import Passage
from latent_memory.times import in_words

if TYPE_CHECKING:
    import torch

# Words of others that a batch is compared with; against all, a step would take several times as long.
_OTHERS = 768
# How far (in codes) a word may lie from where it would be if embedder and model cut words alike.
_SPREAD = 1.5
# A passage is shorter; a text that no embedder cuts (of another's file) must not fill memory.
_LINE = 512
# How many of the model's words are put in exchange for others, and for what part of them.
_KNOWN = 10_000
_EXCHANGED = 0.4


class Asked(NamedTuple):
    """A question made from a passage."""

    question: str
    answer: str


def line_of(passage: Passage) -> str:
    """Return a passage as the prompt shows it, without the end of the line."""
    return written(passage).rstrip("\n")


def words_of(model: LocalModel, line: str) -> list[int]:
    """Return what should be read from a passage: its tokens. The speaker, who stays text, is read as colons."""
    name, colon, text = line.partition(":")
    return [*model.encode(colon) * len(model.encode(name + colon)), *model.encode(text)][:_LINE]


def exchanged(model: LocalModel, passages: Sequence[Passage], count: int, chance: random.Random) -> list[Passage]:
    """Return passages with some words exchanged for others of the model's; none if it has no plain words."""
    found = model.tokenizer.batch_decode([[i] for i in range(len(model.tokenizer))])
    # Tokenizers number tokens by how frequent they are.
    known = [word[1:] for word in found if re.fullmatch(r" [A-Za-z][a-z]{2,}", word)][:_KNOWN]
    if not known:
        return []
    made = []
    for passage in chance.choices(passages, k=count):
        words = [
            chance.choice(known) + (m[0] if (m := re.search(r"\W*$", word)) else "")
            if len(word) > 3 and chance.random() < _EXCHANGED
            else word
            for word in passage.text.split()
        ]
        made.append(replace(passage, text=" ".join(words)))
    return made


def rarity(words: Sequence[int], lines: Sequence[Sequence[int]]) -> list[float]:
    """Return for each word the logarithm of how few lines hold it."""
    held: dict[int, int] = {}
    for line in lines:
        for token in set(line):
            held[token] = held.get(token, 0) + 1
    return [math.log((len(lines) + 1) / (held.get(word, 0) + 0.5)) for word in words]


def reading_loss(
    bridge: Bridge, given: Codings, targets: Sequence[Sequence[int]], chance: random.Random
) -> torch.Tensor | None:
    """Return how badly the words of passages are read from their vectors, in nats a word; None without any.

    Args:
        bridge: reads.
        given: the passages' vectors.
        targets: for each passage its words, as places in the bridge's list of words.
        chance: chooses other words to compare with.
    """
    torch = needed("torch")
    device = bridge.model.device
    read = bridge.reading(given)
    among = {word for target in targets for word in target}
    count = bridge.shape.words
    others = chance.sample(range(count), _OTHERS) if count > _OTHERS + len(among) else range(count)
    wanted = sorted(among | set(others))
    at = {word: i for i, word in enumerate(wanted)}
    scores = bridge.scores(read.looked, torch.tensor(wanted, device=device))
    if len(wanted) < count:
        # Each of the others stands for many.
        many = torch.full((len(wanted),), math.log(count / len(wanted)), device=device)
        many[[at[word] for word in among]] = 0.0
        scores = scores + many
    likely = scores.log_softmax(-1)
    losses = []
    for row, target in enumerate(targets):
        places = int(read.there[row].sum())
        if not target or not places:
            continue
        told = likely[row, :places][:, torch.tensor([at[word] for word in target], device=device)]
        if bridge.shape.kind == "tokens":
            middle = (torch.arange(len(target), device=device) + 0.5) * places / len(target) - 0.5
            away = torch.arange(places, device=device)[:, None] - middle[None]
            told = told - 0.5 * (away / _SPREAD) ** 2
            weight = torch.ones(len(target), device=device)
        else:
            # From so little, only words that tell something.
            told = told - math.log(places)
            weight = bridge.weights["rarity"][torch.tensor(target, device=device)]
        losses.append(-(told.logsumexp(0) * weight).sum() / weight.sum().clamp(min=1e-6))
    return torch.stack(losses).mean() if losses else None


def asked(passage: Passage, text: str, chance: random.Random) -> Asked | None:
    """Make a question from a passage, whose answer it holds, by rule; None if it is too short.

    Args:
        passage: who said it, and when.
        text: what was said.
        chance: chooses.
    """
    name = passage.name or passage.role
    said = [s for s in sentences(text) if len(s.split()) >= 4]
    if not said:
        return None
    words = chance.choice(said).split()
    quoted = " ".join(words[:12])
    kind = chance.random()
    if kind < 0.15:
        return Asked(f'When did {name} say "{quoted}"?', in_words(passage.timestamp))
    if kind < 0.25:
        return Asked(f'Who said "{quoted}"?', name)
    # A gap of a few words, with what stood before it.
    size = chance.randint(1, min(4, len(words) // 2))
    start = chance.randint(2, len(words) - size)
    before = " ".join(words[max(0, start - 8) : start])
    gap = re.sub(r"[.,!?;:]+$", "", " ".join(words[start : start + size]))
    if not gap:
        return None
    if kind < 0.7:
        return Asked(f'What did {name} say after "{before}"?', gap)
    topic = " ".join(sorted(words[:start], key=len)[-2:])
    return Asked(f"What did {name} say about {topic}?", " ".join(words[max(0, start - 3) : start + size]))


def answer_loss(
    model: LocalModel, prefix: torch.Tensor, tails: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return the mean negative log-likelihood of answers, each to its own question behind one and the same memory.

    All in one pass: no question sees another, and each stands right behind the memory.
    """
    torch = needed("torch")
    before, device = len(prefix), prefix.device
    rows = [[*tail, *answer] for tail, answer in zip(tails, answers, strict=True)]
    inputs = torch.cat([prefix, *(model.embed_tokens(row).to(prefix.dtype) for row in rows)])
    whose = torch.tensor([-1] * before + [i for i, row in enumerate(rows) for _ in row], device=device)
    positions = torch.tensor([*range(before), *(before + j for row in rows for j in range(len(row)))], device=device)
    order = torch.arange(len(whose), device=device)
    seen = (order[None] <= order[:, None]) & ((whose[None] == -1) | (whose[None] == whose[:, None]))
    mask = torch.zeros(seen.shape, dtype=prefix.dtype, device=device)
    mask = mask.masked_fill(~seen, torch.finfo(prefix.dtype).min)
    predicting: list[int] = []
    wanted: list[int] = []
    start = before
    for tail, answer in zip(tails, answers, strict=True):
        start += len(tail)
        predicting += range(start - 1, start - 1 + len(answer))
        wanted += answer
        start += len(answer)
    made = model.model(
        inputs_embeds=inputs[None],
        attention_mask=mask[None, None],
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=torch.tensor(predicting, device=device),
    )
    loss: Any = torch.nn.functional.cross_entropy(made.logits[0].float(), torch.tensor(wanted, device=device))
    return loss
