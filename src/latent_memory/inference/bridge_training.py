"""Training of a bridge (`soft_tokens`) on the user's own store; the model stays as it is.

Two stages, both self-supervised:

1. Reading: the words of a passage from its stored vectors. The model is not run, so this is quick. Nobody tells which
   code belongs to which word (embedders cut words in their own way): each word may come from any of the codes about as
   far into the passage, and whichever tells it best is taught it (as in IBM's alignment models).
2. Answering: soft tokens of some passages as the memory, and questions made from them by rule, laid out as at answer
   time; what is learned is what makes the model give the answer.

A run that was stopped goes on from its checkpoint and ends where it would have ended.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_memory.errors import InputError
from latent_memory.inference import prompt, tensor_files
from latent_memory.inference.bridge_lessons import (
    Asked,
    answer_loss,
    asked,
    exchanged,
    line_of,
    rarity,
    reading_loss,
    words_of,
)
from latent_memory.inference.extra import in_memory, needed
from latent_memory.inference.local_model import LocalModel
from latent_memory.inference.soft_tokens import (
    KINDS,
    Bridge,
    Codings,
    GetVectors,
    Shape,
    checked,
    load,
    on_device,
)
from latent_memory.late import TokenVectors
from latent_memory.records import Passage

if TYPE_CHECKING:
    import torch

# Fewer passages teach nothing that would hold for others.
LEAST = 32
_WIDTH = 384
# So many of the model's tokens can be read; the ones that the store uses most.
_WORDS = 16_384
_PASSAGES = 16
_RATES = {"reading": 2e-3, "answering": 3e-4}
# A memory in training has so many positions, and so many questions are asked of it.
_MEMORY = 112
_QUESTIONS = 4
_LONGEST = 24
# How many memories of conversations that were kept out are looked at.
_VALIDATED = 6
# Not trained.
_FIXED = ("words",)


class Progress(NamedTuple):
    """How far training is.

    Attributes:
        stage: "reading" or "answering".
        step, of: steps of this stage.
        loss: of the last steps, a running mean; in nats a word.
        seconds: since this run began.
    """

    stage: str
    step: int
    of: int
    loss: float
    seconds: float


class Report(NamedTuple):
    """What training came to.

    Attributes:
        bridge: ready to use, and saved.
        passages: how many it was trained on.
        steps: of both stages.
        before, after: the mean loss of questions about conversations that were kept out, before the second stage and
            after it; NaN where too few conversations could be kept out.
        finished: whether all steps were made in the time given; otherwise `train` with `resume` goes on.
    """

    bridge: Bridge
    passages: int
    steps: dict[str, int]
    before: float
    after: float
    finished: bool


def train(
    model: LocalModel,
    passages: Sequence[Passage],
    vectors: GetVectors,
    path: Path,
    *,
    embedder: str,
    embed: GetVectors | None = None,
    exchanged: int = 6_000,
    soft: int = 4,
    keywords: int = 8,
    kind: str = "tokens",
    reading: int = 1_000,
    answering: int = 150,
    minutes: float | None = None,
    seed: int = 0,
    resume: bool = True,
    every: int = 50,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Train a bridge, and write it to a file.

    Args:
        model: stays as it is.
        passages: what is trained on, of any number of scopes.
        vectors: returns what is stored of passages.
        path: the bridge; beside it, until the end, lies the checkpoint (`checkpoint_of`).
        embedder: name and fingerprint of what made the vectors.
        embed: returns the embedder's vectors of passages that are not stored. With it, reading is also taught by
            passages with some words exchanged for others that the model knows, so that names and rare words can be
            read that the store does not hold yet.
        exchanged: how many of these.
        soft: soft tokens a passage.
        keywords: how many of a passage's rarest words stay text beside them.
        kind: "tokens" or "embedding"; see `soft_tokens.Shape`.
        reading, answering: steps of the two stages.
        minutes: stop after so long, with what was learned by then.
        seed: the same one gives the same bridge on the same machine.
        resume: go on from a checkpoint, if there is one.
        every: steps from one checkpoint to the next.
        progress: called after each step.

    Raises:
        InputError: for too few passages, or a setting that is none.
        DerivedError: if the checkpoint is damaged, or of another model or embedder.
        ModelMemoryError: if memory runs out.
    """
    if kind not in KINDS:
        raise InputError(f"kind: {kind!r} is unknown; use one of {', '.join(KINDS)}")
    if keywords < 0:
        raise InputError(f"keywords: {keywords} is no number of words; give 0 or more")
    if soft < 1:
        raise InputError(f"soft: {soft} tokens are none; give 1 or more")
    told = [passage for passage in passages if passage.text.strip()]
    if len(told) < LEAST:
        raise InputError(f"passages: {len(told)} are too few to train on; add conversations until there are {LEAST}")
    run = _Run(model, told, vectors, (embed, exchanged), embedder, (soft, keywords), kind, seed)
    checkpoint = checkpoint_of(path)
    if resume and checkpoint.is_file():
        run.restore(checkpoint)
    began = time.perf_counter()
    stages = {"reading": reading, "answering": answering}
    in_time = True
    try:
        for stage, steps in stages.items():
            if stage == "answering" and run.step["answering"] == 0:
                run.before = run.validation()
            while run.step[stage] < steps and in_time:
                with in_memory("training the bridge"):
                    run.make_step(stage, steps)
                if progress is not None:
                    progress(Progress(stage, run.step[stage], steps, run.loss, time.perf_counter() - began))
                if run.step[stage] % every == 0:
                    run.keep(checkpoint)
                in_time = minutes is None or time.perf_counter() - began < 60 * minutes
    except BaseException:
        # Ctrl-C above all. A step that was cut short has changed nothing yet, or everything.
        if run.whole:
            run.keep(checkpoint)
        raise
    run.bridge.save(path)
    if in_time:
        checkpoint.unlink(missing_ok=True)
    else:
        run.keep(checkpoint)
    return Report(run.bridge, len(told), dict(run.step), run.before, run.validation(), in_time)


def checkpoint_of(path: Path) -> Path:
    """Return where the checkpoint of a bridge lies while it is trained."""
    return path.with_name(path.name + ".checkpoint")


class _Run:
    """A training: the bridge, its optimizer, and what it learns from."""

    def __init__(
        self,
        model: LocalModel,
        passages: Sequence[Passage],
        vectors: GetVectors,
        exchange: tuple[GetVectors | None, int],
        embedder: str,
        sizes: tuple[int, int],
        kind: str,
        seed: int,
    ) -> None:
        self.model = model
        self.seed = seed
        self.step = {"reading": 0, "answering": 0}
        self.loss = math.nan
        self.before = math.nan
        self.whole = True
        self.passages = list(passages)
        self.stored = vectors(self.passages)
        self.lines = [line_of(passage) for passage in self.passages]
        self.tokens = [words_of(model, line) for line in self.lines]
        own = Counter(token for line in self.tokens for token in line)
        self.exchanged: list[list[int]] = []
        embed, count = exchange
        if embed is not None and (others := exchanged(model, self.passages, count, random.Random(seed))):
            self.stored_exchanged = embed(others)
            self.exchanged = [words_of(model, line_of(passage)) for passage in others]
        codes = [c.shape[1] for c in self.stored.codes if c.size]
        if kind == "tokens" and not codes:
            kind = "embedding"
        own.update(token for line in self.exchanged for token in line)
        words = sorted(token for token, _ in own.most_common(_WORDS))
        shape = Shape(
            kind=kind,
            soft=sizes[0],
            keywords=sizes[1],
            width=_WIDTH,
            vector=int(self.stored.vectors.shape[1]),
            code=codes[0] if codes else 1,
            hidden=self._hidden(),
            words=len(words),
        )
        weights = on_device(_first(shape, words, rarity(words, self.tokens), seed), model)
        self.bridge = Bridge(model, embedder, shape, weights, vectors)
        self.place = {word: i for i, word in enumerate(words)}
        self._split()
        self._optimizer("reading")

    def _hidden(self) -> int:
        return int(self.model.model.get_input_embeddings().weight.shape[1])

    def _split(self) -> None:
        """Keep some conversations out, to see what holds for others."""
        whose = {(p.scope, p.conversation_id) for p in self.passages}
        kept = sorted(whose)
        random.Random(self.seed).shuffle(kept)
        out = set(kept[: len(kept) // 10])
        self.learned: Sequence[int] = [
            i for i, p in enumerate(self.passages) if (p.scope, p.conversation_id) not in out
        ]
        self.kept_out = [i for i, p in enumerate(self.passages) if (p.scope, p.conversation_id) in out]
        self.of_scope: dict[tuple[str, bool], list[int]] = {}
        for which, out_ in ((self.learned, False), (self.kept_out, True)):
            for i in which:
                self.of_scope.setdefault((self.passages[i].scope, out_), []).append(i)

    def _optimizer(self, stage: str) -> None:
        torch = needed("torch")
        self.stage = stage
        self.trained = {n: t.requires_grad_(True) for n, t in self.bridge.weights.items() if n not in _FIXED}
        self.optimizer = torch.optim.AdamW(list(self.trained.values()), weight_decay=0.01)

    def make_step(self, stage: str, steps: int) -> None:
        """Learn from one batch."""
        torch = needed("torch")
        if self.stage != stage:
            self._optimizer(stage)
        step = self.step[stage]
        chance = random.Random(f"{self.seed}/{stage}/{step}")
        rate = _RATES[stage] * min(1.0, (step + 1) / max(1, steps // 20)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._reading(chance) if stage == "reading" else self._answering(chance, False)
        if loss is not None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
            self.whole = False
            self.optimizer.step()
            value = float(loss.detach())
            self.loss = value if math.isnan(self.loss) or step == 0 else 0.95 * self.loss + 0.05 * value
        self.step[stage] = step + 1
        self.whole = True

    def _coded(self, which: Sequence[int], stored: TokenVectors) -> Codings:
        codes = [stored.codes[i] for i in which] if stored.codes else []
        return self.bridge.coded(TokenVectors(stored.vectors[list(which)], codes))

    def _reading(self, chance: random.Random) -> torch.Tensor | None:
        stored, tokens, among = self.stored, self.tokens, self.learned
        if self.exchanged and chance.random() < 0.6:
            stored, tokens, among = self.stored_exchanged, self.exchanged, range(len(self.exchanged))
        which = chance.sample(among, min(_PASSAGES, len(among)))
        targets = [[self.place[t] for t in tokens[i] if t in self.place] for i in which]
        return reading_loss(self.bridge, self._coded(which, stored), targets, chance)

    # -- answering ----------------------------------------------------------------------------------------

    def _memory(self, chance: random.Random, kept_out: bool) -> list[int]:
        """Choose passages as recall would: one, those most like it, and some of the same scope."""
        all_of = self.kept_out if kept_out else self.learned
        first = chance.choice(all_of)
        others = [i for i in self.of_scope[self.passages[first].scope, kept_out] if i != first]
        near = self.stored.vectors[others] @ self.stored.vectors[first] if others else []
        ranked = [others[j] for j in sorted(range(len(others)), key=lambda j: -near[j])]
        some = chance.sample(others, min(6, len(others)))
        return list(dict.fromkeys([first, *ranked[:6], *some]))

    def _answering(self, chance: random.Random, kept_out: bool) -> torch.Tensor | None:
        torch = needed("torch")
        which = self._memory(chance, kept_out)
        chance.shuffle(which)
        soft = self.bridge.soft(self._coded(which, self.stored))
        told = [self.passages[i] for i in which]
        parts = self.bridge.parts(told, soft, _MEMORY)
        if not parts:
            return None
        # Whichever found room.
        room = sum(1 for part in soft if any(part is taken for taken in parts))
        questions: list[Asked] = []
        for _ in range(3 * _QUESTIONS):
            i = chance.choice(which[:room])
            question = asked(self.passages[i], self.lines[i].partition(": ")[2], chance)
            if question is not None and len(questions) < _QUESTIONS:
                questions.append(question)
        if not questions:
            return None
        layouts = [prompt.layout(self.model, question.question) for question in questions]
        head = self.model.embed_tokens(layouts[0].head)
        answers = [self.model.encode(question.answer)[:_LONGEST] for question in questions]
        memory = torch.cat([part.to(head.dtype) for part in parts])
        tails = [layout.tail for layout in layouts]
        return answer_loss(self.model, torch.cat([head, memory]), tails, answers)

    def validation(self) -> float:
        """Return the loss of questions about what was kept out; always the same ones."""
        torch = needed("torch")
        if not self.kept_out:
            return math.nan
        with torch.no_grad(), in_memory("training the bridge"):
            losses = [self._answering(random.Random(f"validation/{i}"), True) for i in range(_VALIDATED)]
        found = [float(loss) for loss in losses if loss is not None]
        return sum(found) / len(found) if found else math.nan

    # -- checkpoints --------------------------------------------------------------------------------------

    def keep(self, path: Path) -> None:
        """Write down where the training is."""
        tensors = dict(self.bridge.weights)
        for name, tensor in self.trained.items():
            for part, value in self.optimizer.state.get(tensor, {}).items():
                tensors[f"optimizer/{part}/{name}"] = value
        state = {"step": self.step, "stage": self.stage, "seed": self.seed, "loss": self.loss, "before": self.before}
        tensor_files.save(path, tensors, self.bridge.about | {"what": "checkpoint", "state": json.dumps(state)})

    def restore(self, path: Path) -> None:
        """Go on from where a training was.

        Raises:
            DerivedError: if it is damaged, or of another model or embedder.
            InputError: if it was begun with other passages or settings.
        """
        tensors, told = load(path, {"what": "checkpoint"})
        shape = checked(path, told, self.model, self.bridge.embedder)
        state = json.loads(told["state"])
        words = tensors["words"].tolist()
        if shape != self.bridge.shape or state["seed"] != self.seed or words != self.bridge.weights["words"].tolist():
            raise InputError(
                f"{path}: this training was begun with other settings ({json.dumps(asdict(shape))}, seed "
                f"{state['seed']}) or other passages; give the same, or begin anew (resume=False)"
            )
        for name, tensor in self.bridge.weights.items():
            tensor.data.copy_(tensors[name])
        self._optimizer(state["stage"])
        for name, tensor in self.trained.items():
            prefix, suffix = "optimizer/", f"/{name}"
            parts = {
                key[len(prefix) : -len(suffix)]: value
                for key, value in tensors.items()
                if key.startswith(prefix) and key.partition("/")[2].partition("/")[2] == name
            }
            if parts:
                # Its count of steps stays where PyTorch keeps it, on the CPU.
                self.optimizer.state[tensor] = {k: v if k == "step" else v.to(tensor.device) for k, v in parts.items()}
        self.step, self.loss, self.before = state["step"], state["loss"], state["before"]


def _first(shape: Shape, words: Sequence[int], rare: Sequence[float], seed: int) -> dict[str, Any]:
    """Return a bridge's tensors before training."""
    torch = needed("torch")
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, scale: float) -> Any:
        return torch.randn(*sizes, generator=generator) * scale

    width, hidden = shape.width, shape.hidden
    weights = {
        "vector": normal(width, shape.vector, scale=0.3 * shape.vector**-0.5),
        "look": normal(hidden, width, scale=width**-0.5),
        "look.bias": torch.zeros(hidden),
        "often": torch.zeros(shape.words),
        "worth": torch.tensor(rare),
        "rarity": torch.tensor(rare),
        "worth.inner": torch.zeros(width),
        "pull": torch.tensor([1.0, math.log(3.0)]),
        "extra": torch.zeros(hidden, width),
        "words": torch.tensor(words),
    }
    if shape.kind == "tokens":
        weights |= {
            "code": normal(width, shape.code, scale=shape.code**-0.5),
            "code.bias": torch.zeros(width),
            "near": normal(width, width, 3, scale=0.5 * (3 * width) ** -0.5),
            "near.bias": torch.zeros(width),
        }
    else:
        weights["vector"] = normal(width, shape.vector, scale=shape.vector**-0.5)
        weights |= {
            "head": normal(shape.heads, width, scale=0.3),
            "heads": normal(shape.heads, width, width, scale=width**-0.5),
            "heads.bias": torch.zeros(shape.heads, width),
        }
    return weights
