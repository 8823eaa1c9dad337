"""A bridge from stored vectors to a local model's input embeddings: trained, stopped, saved, refused, read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.context import CLOSING, OPENING
from latent_memory.errors import DerivedError, InputError
from latent_memory.inference import bridge_training, prompt
from latent_memory.inference.bridge_lessons import answer_loss, asked
from latent_memory.inference.local_model import LocalModel
from latent_memory.inference.soft_tokens import Bridge, Shape
from latent_memory.late import TokenVectors
from latent_memory.records import Context, Passage
from latent_memory.times import in_words
from tiny_model import real_model, tiny_model

EMBEDDER = "of the test"
CODE = 24
WHAT = ("garden", "dog", "meeting", "violin", "kitchen", "harbour", "teacher", "bicycle", "winter", "letter")
DID = ("painted", "sold", "found", "forgot", "repaired", "described", "visited", "borrowed")
HOW = ("yesterday", "with my sister", "in the rain", "for the first time", "near the station", "without a map")


def passages() -> list[Passage]:
    chance = np.random.default_rng(0)
    made = []
    for number in range(60):
        text = (
            f"I {chance.choice(DID)} the {chance.choice(WHAT)} {chance.choice(HOW)} and then the {chance.choice(WHAT)}."
        )
        when = datetime(2024, 1, 1) + timedelta(days=number // 6)
        name = ("Ann", "Bob")[number % 2]
        made.append(Passage("s", f"c{number // 6}", number % 6, "user", name, text, when, "", 0, len(text)))
    return made


def code(word: str) -> Any:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
    vector = np.random.default_rng(seed).normal(size=CODE)
    return np.rint(np.clip(vector / np.linalg.norm(vector) * 254, -127, 127)).astype(np.int8)


def stored(found: Sequence[Passage], *, codes: bool = True) -> TokenVectors:
    """Return what a store would keep: a code a word, and their mean."""
    each = [np.stack([code(word) for word in f"{p.name} : {p.text}".split()]) for p in found]
    means = np.stack([c.astype(np.float32).mean(0) for c in each])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return TokenVectors(means, each if codes else [np.zeros((0, 1), np.int8)] * len(each))


@pytest.fixture(scope="module")
def model() -> LocalModel:
    torch.set_num_threads(1)
    return tiny_model()


def trained(model: LocalModel, path: Path, **given: Any) -> bridge_training.Report:
    settings: dict[str, Any] = {
        "embedder": EMBEDDER,
        "soft": 4,
        "keywords": 3,
        "reading": 6,
        "answering": 3,
        "every": 2,
    }
    vectors = settings.pop("vectors", stored)
    return bridge_training.train(model, passages(), given.pop("vectors", vectors), path, **settings | given)


@pytest.fixture(scope="module")
def bridge(model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bridge, Path]:
    path = tmp_path_factory.mktemp("bridge") / "bridge.safetensors"
    return trained(model, path).bridge, path


def context(found: Sequence[Passage], relevance: tuple[float, ...] = ()) -> Context:
    text = OPENING + "".join(f"{p.name}: {p.text}\n" for p in found) + CLOSING
    return Context(text, tuple(found), 0, 0, 0, relevance)


# -- reading at answer time -------------------------------------------------------------------------------


def test_each_passage_becomes_at_most_so_many_embeddings(bridge: tuple[Bridge, Path]) -> None:
    made = bridge[0].embeddings(passages()[:5])
    assert [tuple(part.shape) for part in made] == [(4, 32)] * 5
    assert all(part.isfinite().all() for part in made)
    assert bridge[0].embeddings([]) == []


def test_a_memory_takes_its_share_of_what_the_text_would(bridge: tuple[Bridge, Path], model: LocalModel) -> None:
    told = context(passages()[:30])
    head, tail = prompt.layout(model, "What was painted?")
    read = bridge[0].read(told, "What was painted?")
    used = read.length - len(head) - len(tail)
    assert 0 < used <= model.count_tokens(prompt.body(told)) / 8
    assert len(list(model.answer(read, most=3))) > 0
    assert bridge[0].read(told, "What?", most=50).length <= sum(map(len, prompt.layout(model, "What?"))) + 50


def test_without_a_memory_the_prompt_is_plain(bridge: tuple[Bridge, Path], model: LocalModel) -> None:
    plain = model.prefill(prompt.tokens(model, "What?"))
    for nothing in (
        bridge[0].read(Context("", (), 0, 0), "What?"),
        bridge[0].read(context(passages()), "What?", most=1),
    ):
        assert torch.equal(nothing.logits, plain.logits)


def test_the_most_relevant_stands_last_and_the_least_is_left_out(bridge: tuple[Bridge, Path]) -> None:
    found = [passages()[i] for i in (0, 10, 20)]
    alone = {i: bridge[0].memory([found[i]], (), 1_000) for i in range(3)}
    whole = bridge[0].memory(found, (0.2, 0.9, 0.5), 1_000)
    assert torch.allclose(whole, torch.cat([alone[0], alone[2], alone[1]]), atol=1e-6)
    some = bridge[0].memory(found, (0.2, 0.9, 0.5), len(whole) - 1)
    assert torch.allclose(some, torch.cat([alone[2], alone[1]]), atol=1e-6)


def test_vectors_of_another_size_are_refused(bridge: tuple[Bridge, Path], model: LocalModel) -> None:
    other = Bridge.load(
        bridge[1], model, EMBEDDER, lambda found: TokenVectors(np.zeros((len(found), 7), np.float32), [])
    )
    with pytest.raises(InputError, match="trained on 24 numbers"):
        other.embeddings(passages()[:2])


def test_passages_without_codes_among_others_are_read_from_their_embedding_or_left_empty(
    model: LocalModel, tmp_path: Path
) -> None:
    report = trained(model, tmp_path / "b", vectors=partial(stored, codes=False))
    assert report.bridge.shape.kind == "embedding"
    assert [len(part) for part in report.bridge.embeddings(passages()[:3])] == [4, 4, 4]


# -- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tokens", "embedding"])
def test_reading_is_learned(model: LocalModel, tmp_path: Path, kind: str) -> None:
    losses: list[float] = []
    report = trained(
        model, tmp_path / "b", kind=kind, reading=30, answering=0, progress=lambda p: losses.append(p.loss)
    )
    assert losses[-1] < 0.9 * losses[0]
    assert report.finished
    assert report.steps == {"reading": 30, "answering": 0}


def test_exchanged_words_are_learned_as_well(model: LocalModel, tmp_path: Path) -> None:
    seen: list[int] = []

    def embed(found: Sequence[Passage]) -> TokenVectors:
        seen.append(len(found))
        return stored(found)

    trained(model, tmp_path / "b", embed=embed, exchanged=80)
    assert sum(seen) in (0, 80)


@pytest.mark.parametrize("stop", [4, 8])
def test_a_training_that_was_stopped_goes_on_and_ends_the_same(model: LocalModel, tmp_path: Path, stop: int) -> None:
    whole = trained(model, tmp_path / "whole").bridge
    steps = iter(range(1, 100))

    def interrupt(_: bridge_training.Progress) -> None:
        if next(steps) == stop:
            raise KeyboardInterrupt

    path = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        trained(model, path, progress=interrupt)
    assert bridge_training.checkpoint_of(path).is_file()
    assert not path.exists()
    told: list[bridge_training.Progress] = []
    again = trained(model, path, progress=told.append).bridge
    assert len(told) == 9 - stop
    assert not bridge_training.checkpoint_of(path).exists()
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, again.weights[name]), name


def test_a_training_stops_in_time_and_can_be_used(model: LocalModel, tmp_path: Path) -> None:
    report = trained(model, tmp_path / "b", minutes=0)
    assert not report.finished
    assert report.steps["answering"] == 0
    assert Bridge.load(tmp_path / "b", model, EMBEDDER, stored).embeddings(passages()[:1])[0].shape == (4, 32)
    assert trained(model, tmp_path / "b").finished


def test_a_checkpoint_of_other_settings_is_refused(model: LocalModel, tmp_path: Path) -> None:
    trained(model, tmp_path / "b", minutes=0)
    with pytest.raises(InputError, match="begun with other settings"):
        trained(model, tmp_path / "b", soft=5)
    assert trained(model, tmp_path / "b", soft=5, resume=False).finished
    trained(model, tmp_path / "c", minutes=0)
    with pytest.raises(DerivedError, match="another embedder"):
        trained(model, tmp_path / "c", embedder="another")


@pytest.mark.parametrize(
    ("given", "message"), [({"kind": "letters"}, "kind"), ({"soft": 0}, "soft")], ids=["kind", "soft"]
)
def test_settings_that_are_none_are_refused(model: LocalModel, tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(model, tmp_path / "b", **given)


def test_too_few_passages_are_refused(model: LocalModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few"):
        bridge_training.train(model, passages()[:5], stored, tmp_path / "b", embedder=EMBEDDER)


def test_questions_hold_their_answer_back_and_the_passage_holds_it() -> None:
    import random

    chance = random.Random(0)
    for passage in passages():
        made = asked(passage, passage.text, chance)
        assert made is not None
        known = (passage.text, passage.name, in_words(passage.timestamp))
        assert any(made.answer in str(each) for each in known)


def test_answers_in_one_pass_are_as_likely_as_one_by_one(model: LocalModel) -> None:
    memory = model.encode("the dog was in the garden")
    tails = [model.encode("what was it?"), model.encode("where was the dog of last week?")]
    answers = [model.encode("the dog"), model.encode("a garden!")]
    together = float(answer_loss(model, model.embed_tokens(memory), tails, answers))
    each = [
        (model.nll(model.prefill([*memory, *tail]), answer), len(answer))
        for tail, answer in zip(tails, answers, strict=True)
    ]
    assert together == pytest.approx(sum(n * k for n, k in each) / sum(k for _, k in each), abs=1e-4)


# -- on disk ----------------------------------------------------------------------------------------------


def test_a_saved_bridge_makes_the_same_embeddings(bridge: tuple[Bridge, Path], model: LocalModel) -> None:
    loaded = Bridge.load(bridge[1], model, EMBEDDER, stored)
    assert isinstance(loaded.shape, Shape)
    assert loaded.shape == bridge[0].shape
    for one, other in zip(loaded.embeddings(passages()), bridge[0].embeddings(passages()), strict=True):
        assert torch.equal(one, other)


def test_a_bridge_of_other_models_is_refused(bridge: tuple[Bridge, Path], model: LocalModel) -> None:
    with pytest.raises(DerivedError, match="another model"):
        Bridge.load(bridge[1], tiny_model(seed=1), EMBEDDER, stored)
    with pytest.raises(DerivedError, match="another embedder"):
        Bridge.load(bridge[1], model, "another", stored)


def test_a_damaged_bridge_is_refused(bridge: tuple[Bridge, Path], model: LocalModel, tmp_path: Path) -> None:
    data = bridge[1].read_bytes()
    header = int.from_bytes(data[:8], "little")
    damaged = {"cut short": data[: len(data) // 2], "empty": b"", "cut by one": data[:-1]}
    for name, place in (("in the weights", 8 + header + 1000), ("at the end", len(data) - 1), ("length", 3)):
        damaged[name] = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
    told = data.index(b"tokens")
    damaged["in what is told"] = data[:told] + b"T" + data[told + 1 :]
    for name, content in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DerivedError, match=name):
            Bridge.load(path, model, EMBEDDER, stored)


def test_a_bridge_that_is_not_there_and_a_checkpoint_are_none(model: LocalModel, tmp_path: Path) -> None:
    with pytest.raises(DerivedError, match="train a bridge first"):
        Bridge.load(tmp_path / "none", model, EMBEDDER, stored)
    trained(model, tmp_path / "b", minutes=0)
    with pytest.raises(DerivedError, match="no bridge"):
        Bridge.load(bridge_training.checkpoint_of(tmp_path / "b"), model, EMBEDDER, stored)


# -- the real model ---------------------------------------------------------------------------------------


def test_smollm2_reads_what_a_memory_holds(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    smollm2 = real_model()
    told = passages()
    with LatentMemory.open(tmp_path / "memory") as memory:
        for number in range(10):
            turns = [Turn("user", p.text, name=p.name) for p in told if p.conversation_id == f"c{number}"]
            memory.add(Conversation(f"c{number}", turns, timestamp=datetime(2024, 1, 1) + timedelta(days=number)))
        found = [replaced(passage) for passage in told]
        losses: dict[str, list[float]] = {"reading": [], "answering": []}
        report = bridge_training.train(
            smollm2,
            found,
            memory.vectors_of,
            tmp_path / "bridge",
            embedder="minilm",
            keywords=2,
            reading=25,
            answering=2,
            progress=lambda p: losses[p.stage].append(p.loss),
        )
        assert losses["reading"][-1] < losses["reading"][0] - 0.5
        assert math.isfinite(losses["answering"][-1])
        assert math.isfinite(report.after)
        recalled = memory.context("Who painted the garden?", budget=400)
        read = report.bridge.read(recalled, "Who painted the garden?")
        assert read.length < smollm2.count_tokens(prompt.rendered(smollm2, "Who painted the garden?", recalled))


def replaced(passage: Passage) -> Passage:
    """Return the passage as it is in the default scope."""
    from dataclasses import replace

    return replace(passage, scope="default")
