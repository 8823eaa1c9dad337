"""Memory in the weights: training, going on with it, and an adapter's use; and what `export` writes."""

from __future__ import annotations

import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

import pytest

from latent_memory import Conversation, LatentMemory, Turn, adapters
from latent_memory.errors import DerivedError, InputError, ModelError
from latent_memory.records import Context
from latent_memory.training_text import KINDS, chat_examples, stretches

if TYPE_CHECKING:
    from latent_memory.inference.local_model import LocalModel

Run = Callable[..., CompletedProcess[str]]
NOTHING = Context("", (), 0, 0)


def talks(count: int = 3) -> list[Conversation]:
    """Return conversations of two people, long enough for a few stretches."""
    said = [
        ("Ana", "I went to a pottery class yesterday and made a blue bowl."),
        ("Bea", "That sounds lovely, I adopted a dog called Bruno last week."),
        ("Ana", "My favourite colour is the green of old tram tickets."),
        ("Bea", "I'm reading about the history of lighthouses in Portugal."),
    ]
    return [
        Conversation(
            f"c{number}",
            [Turn("user", f"{text} [{number}/{i}]", name=name) for i, (name, text) in enumerate(said * 8)],
            timestamp=datetime(2024, 5, 8 + number, 12, tzinfo=UTC),
        )
        for number in range(count)
    ]


# -- training text, without a model ---------------------------------------------------------------------------


def test_stretches_hold_every_turn_once() -> None:
    for conversation in talks():
        found = list(stretches(conversation, 600))
        assert len(found) > 2
        assert [turn for stretch in found for turn in stretch.turns] == list(range(len(conversation.turns)))
        for stretch in found:
            assert re.match(r"\n# \d+ May 2024\n(Ana|Bea): ", stretch.record)
            assert all(conversation.turns[turn].text in stretch.record for turn in stretch.turns)


def test_questions_are_answered_by_the_memory() -> None:
    said = Turn("user", "I went to a pottery class yesterday. My favourite colour is green!", name="Ana")
    (stretch,) = stretches(Conversation("c", [said], timestamp=datetime(2024, 5, 8, tzinfo=UTC)))
    asked = {question: answer for _, question, answer in stretch.questions}
    assert asked["When did Ana go to a pottery class?"] == "7 May 2024"
    assert asked["Where did Ana go?"] == "a pottery class"
    assert asked["What is Ana's favourite colour?"] == "green"
    assert "Ana" in asked.values()
    assert "8 May 2024" in asked.values()


@pytest.mark.parametrize(
    ("words", "time"),
    [
        ("last week", "the week before 8 May 2024"),
        ("next month", "June 2024"),
        ("last month", "April 2024"),
        ("last year", "2023"),
        ("three days ago", "5 May 2024"),
        ("two months ago", "March 2024"),
        ("five years ago", "2019"),
        ("2 weeks ago", "2 weeks before 8 May 2024"),
        ("last Saturday", "the Saturday before 8 May 2024"),
        ("today", "8 May 2024"),
    ],
)
def test_times_are_counted_from_the_day_they_were_said(words: str, time: str) -> None:
    said = Turn("user", f"I visited my old school {words}.", name="Ana")
    (stretch,) = stretches(Conversation("c", [said], timestamp=datetime(2024, 5, 8, tzinfo=UTC)))
    assert ("fact", "When did Ana visit their old school?", time) in stretch.questions


def test_turns_that_no_question_can_be_made_of_are_in_the_record() -> None:
    odd = ["はい。", "?", "🎉🎉", "x" * 5000, "One\ntwo\nthree", "<|im_end|> <memory>", "I a b c d e f g last week ago"]
    conversation = Conversation("c", [Turn("user", text) for text in odd], timestamp=datetime(1, 1, 1, tzinfo=UTC))
    found = list(stretches(conversation))
    assert [turn for stretch in found for turn in stretch.turns] == list(range(len(odd)))
    # What looks like a template's mark is defused, as in a memory block.
    assert all("<|im_end|>" not in stretch.record for stretch in found)


def test_chat_examples_are_chats() -> None:
    found = list(chat_examples(talks(), KINDS, system="Be brief."))
    for example in found:
        assert list(example) == ["messages"]
        roles = [message["role"] for message in example["messages"]]
        assert roles[0] == "system"
        assert roles[1:] == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in example["messages"])
    with pytest.raises(InputError, match="kinds"):
        list(chat_examples(talks(), ["jokes"]))
    with pytest.raises(InputError, match="kinds"):
        list(chat_examples(talks(), []))


def test_talk_is_what_user_and_assistant_said_in_turn() -> None:
    turns = [
        *(Turn("assistant", "Welcome."), Turn("user", "Hi."), Turn("user", "Are you there?"), Turn("tool", "{}")),
        *(Turn("assistant", "Yes."), Turn("user", "Good.")),
    ]
    conversation = Conversation("c", turns, timestamp=datetime(2024, 5, 8, tzinfo=UTC))
    (example,) = chat_examples([conversation], ["talk"])
    assert [(m["role"], m["content"]) for m in example["messages"]] == [
        ("user", "Hi.\n\nAre you there?"),
        ("assistant", "Yes."),
    ]


def test_export_writes_chat_json_lines(memory: LatentMemory, store: Path, tmp_path: Path, cli: Run) -> None:
    memory.add(talks(), scope="ana")
    done = cli("export", "--format", "chat-jsonl", "--store", store, "--scope", "ana")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(list(chat_examples(memory.whole(scope="ana"))))
    assert {m["role"] for line in lines for m in line["messages"]} == {"user", "assistant"}
    out = tmp_path / "é.jsonl"
    done = cli("export", "--store", store, "--scope", "ana", "--kind", "fact", "--system", "Kürze!", "--out", out)
    assert done.returncode == 0, done.stderr
    facts = [json.loads(line) for line in out.read_bytes().decode().splitlines()]
    assert f"{len(facts)} examples written to {out}" in done.stderr
    assert {line["messages"][0]["content"] for line in facts} == {"Kürze!"}
    assert cli("export", "--store", store, "--scope", "nobody").returncode == 1


# -- with a model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from tiny_model import tiny_model

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_model()
    torch.set_num_threads(before)


def settings(**more: Any) -> Any:
    from latent_memory.inference.lora import Settings

    return Settings(**{"rank": 4, "passes": 1, "questions": 0.1, "batch": 1024, "rate": 1e-2, "validation": 0.1} | more)


def logits(model: LocalModel) -> Any:
    return model.prefill(model.encode("Ana: I went to the garden")).logits


def same(a: Any, b: Any) -> bool:
    return bool((a == b).all())


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"training.lock"}


def test_an_adapter_learns_and_can_be_switched_off(model: LocalModel, tmp_path: Path) -> None:
    import torch

    from latent_memory.inference.lora import Adapter, train

    before, known, names = logits(model), model.fingerprint, set(model.model.state_dict())
    told: list[Any] = []
    report = train(model, talks(), tmp_path, scope="ana", settings=settings(passes=3), progress=told.append)
    assert files(tmp_path) == {adapters.MANIFEST, adapters.WEIGHTS, adapters.CONFIG, "losses.jsonl"}
    assert same(logits(model), before)
    assert set(model.model.state_dict()) == names

    # The losses, as they were told, as they are reported, and as they are in the file.
    assert [step.loss for step in told if step.validation is None] == list(report.losses)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == list(report.losses)
    assert [(line["step"], line["validation"]) for line in lines if "validation" in line] == list(report.validation)
    assert sum(report.losses[-5:]) < sum(report.losses[:5])
    first, last = report.validation[0][1], report.validation[-1][1]
    assert set(first) == {"record", "questions"}
    assert last["questions"] < first["questions"]
    assert report.drift is not None
    assert report.drift > 0

    # Every turn was either seen or held out.
    manifest = adapters.Manifest.read(tmp_path)
    places = [(s.conversation_id, turn) for s in manifest.seen for turn in s.turns]
    kept = [(s.conversation_id, turn) for s in manifest.held_out for turn in s.turns]
    assert sorted(places + kept) == [(f"c{n}", turn) for n in range(3) for turn in range(32)]
    assert (report.turns, report.held_out) == (len(places), len(kept))
    assert kept
    assert (manifest.scope, manifest.model["fingerprint"]) == ("ana", known)

    adapter = Adapter.load(tmp_path, model)
    assert same(logits(model), before)
    with adapter:
        changed = logits(model)
        assert not same(changed, before)
    assert same(logits(model), before)
    prefilled = adapter.read(NOTHING, "When did Ana go to a pottery class?")
    assert adapter.is_on
    assert "".join(model.answer(prefilled, most=4))
    adapter.off()
    assert same(logits(model), before)
    assert set(model.model.state_dict()) == names

    # Others can read it, too.
    from peft import PeftModel

    from tiny_model import tiny_model

    with warnings.catch_warnings():
        # Peft asks transformers for what it will no longer be asked for.
        warnings.simplefilter("ignore")
        other = PeftModel.from_pretrained(tiny_model().model, str(tmp_path))
    ids = torch.tensor([model.encode("Ana: I went to the garden")])
    with torch.inference_mode():
        assert torch.allclose(other(input_ids=ids).logits[0, -1], changed, atol=1e-5)


def test_a_stopped_training_ends_as_one_that_was_not(model: LocalModel, tmp_path: Path) -> None:
    from latent_memory.inference.lora import train

    whole = train(model, talks(), tmp_path / "whole", settings=settings())

    def stop(at: int) -> Callable[[Any], None]:
        def step(told: Any) -> None:
            if told.step == at:
                raise KeyboardInterrupt

        return step

    # Killed: what was kept some steps before is what there is.
    place = tmp_path / "killed"

    def kill(told: Any) -> None:
        if told.step == 4:
            shutil.copy(place / "checkpoint.safetensors", tmp_path)
        if told.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, talks(), place, settings=settings(), progress=kill, every=0)
    shutil.copy(tmp_path / "checkpoint.safetensors", place)
    resumed = train(model, talks(), place, settings=settings())
    assert (resumed.resumed_at, resumed.losses) == (3, whole.losses)
    assert (place / adapters.WEIGHTS).read_bytes() == (tmp_path / "whole" / adapters.WEIGHTS).read_bytes()

    # Stopped, three times.
    place = tmp_path / "stopped"
    for at in (0, 3, whole.steps // 2):
        with pytest.raises(KeyboardInterrupt):
            train(model, talks(), place, settings=settings(), progress=stop(at))
        manifest = adapters.Manifest.read(place)
        # What was learnt so far is in the checkpoint.
        assert manifest.seen
        assert not manifest.finished
        assert "checkpoint.safetensors" in files(place)
    resumed = train(model, talks(), place, settings=settings())
    assert resumed.resumed_at == whole.steps // 2
    assert resumed.losses == whole.losses
    assert resumed.validation == whole.validation
    assert (place / adapters.WEIGHTS).read_bytes() == (tmp_path / "whole" / adapters.WEIGHTS).read_bytes()
    assert "checkpoint.safetensors" not in files(place)

    # Once more: it is there.
    began = time.monotonic()
    again = train(model, talks(), place, settings=settings())
    assert again.losses == whole.losses
    assert time.monotonic() - began < 2


def test_another_training_does_not_go_on(model: LocalModel, tmp_path: Path) -> None:
    from latent_memory.inference.lora import Adapter, train
    from tiny_model import tiny_model

    def stop(told: Any) -> None:
        if told.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, talks(), tmp_path, settings=settings(), progress=stop)
    with pytest.raises(DerivedError, match="has not come to its end"):
        Adapter.load(tmp_path, model)
    with pytest.raises(InputError, match="other settings"):
        train(model, talks(), tmp_path, settings=settings(rate=2e-2))
    # One conversation was forgotten meanwhile.
    with pytest.raises(InputError, match="other turns"):
        train(model, talks()[1:], tmp_path, settings=settings())
    with pytest.raises(InputError, match="another scope"):
        train(model, talks(), tmp_path, settings=settings(), scope="bea")
    with pytest.raises(InputError, match="another model"):
        train(tiny_model(seed=1), talks(), tmp_path, settings=settings())
    checkpoint = tmp_path / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    for damaged in (whole[:-100], whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]):
        checkpoint.write_bytes(damaged)
        with pytest.raises(DerivedError, match=r"checkpoint\.safetensors: damaged"):
            train(model, talks(), tmp_path, settings=settings())
    report = train(model, talks()[1:], tmp_path, settings=settings(own=0), fresh=True)
    assert report.resumed_at == 0
    assert report.drift is None
    assert {seen.conversation_id for seen in adapters.Manifest.read(tmp_path).seen} == {"c1", "c2"}


def test_what_does_not_fit_or_is_damaged_is_refused(model: LocalModel, tmp_path: Path) -> None:
    from latent_memory.inference.lora import Adapter, train
    from tiny_model import tiny_model

    with pytest.raises(DerivedError, match="no adapter at"):
        Adapter.load(tmp_path, model)
    train(model, talks()[:1], tmp_path, settings=settings(own=0))
    before = logits(model)
    with pytest.raises(DerivedError, match="trained for tiny-0 in fp32"):
        Adapter.load(tmp_path, tiny_model(seed=1))
    for name in (adapters.WEIGHTS, adapters.CONFIG):
        path = tmp_path / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        for damaged in (whole[:-1], b"", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(DerivedError, match=f"{name}: damaged"):
                Adapter.load(tmp_path, model)
        path.unlink()
        with pytest.raises(DerivedError, match=f"{name}: missing"):
            Adapter.load(tmp_path, model)
        path.write_bytes(whole)
    first, second = Adapter.load(tmp_path, model), Adapter.load(tmp_path, model)
    with first, pytest.raises(InputError, match="another adapter of the model is on"):
        train(model, talks(), tmp_path / "other", settings=settings())
    with first, pytest.raises(InputError, match="another adapter"):
        second.on()
    second.off()
    assert same(logits(model), before)
    with second, pytest.raises(InputError, match="another adapter"):
        Adapter.load(tmp_path, model)
    assert same(logits(model), before)


def test_a_model_in_int8_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from latent_memory.inference.local_model import LocalModel
    from latent_memory.inference.lora import train
    from tiny_model import tiny_model

    tiny = tiny_model()
    with pytest.raises(ModelError, match="int8"):
        train(LocalModel(tiny.model, tiny.tokenizer, "tiny", "int8"), talks(), tmp_path, settings=settings())


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rate": 0}, {"passes": 1.5}, {"validation": 0.9}, {"own": -1}])
def test_settings_out_of_bounds_are_refused(bad: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    with pytest.raises(InputError, match=next(iter(bad))):
        settings(**bad)


def test_nothing_to_train_on(model: LocalModel, tmp_path: Path) -> None:
    from latent_memory.inference.lora import train

    with pytest.raises(InputError, match="nothing to train on"):
        train(model, [], tmp_path / "adapter")
    with pytest.raises(InputError, match="conversation_id"):
        train(model, [*talks(), talks()[0]], tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_small_memories_and_small_windows_train(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from latent_memory.inference.lora import train
    from tiny_model import tiny_model

    one = Conversation("c", [Turn("user", "Good morning to you.")], timestamp=datetime(2024, 5, 8, tzinfo=UTC))
    report = train(tiny_model(window=64), [one], tmp_path, settings=settings(passes=2))
    assert report.held_out == 0
    assert report.validation == ()


def test_finetune_trains_and_goes_on(
    memory: LatentMemory, store: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, model: LocalModel
) -> None:
    from latent_memory.inference.local_model import LocalModel
    from latent_memory.inference.lora_training import Training

    memory.add(talks(5))
    monkeypatch.setattr(LocalModel, "load", classmethod(lambda cls, name, **_: model))
    learn, steps = Training._learn, 0

    def interrupted(self: Training) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        learn(self)

    monkeypatch.setattr(Training, "_learn", interrupted)
    options = ("--store", store, "--rank", 2, "--passes", 1, "--name", "evening")
    stopped = cli("finetune", *options)
    assert stopped.returncode == 130
    assert "the same command goes on from there" in stopped.stderr
    done = cli("finetune", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert "held out: record" in done.stderr
    told = json.loads(done.stdout)
    assert told["resumed_at"] == 3
    assert len(told["losses"]) == told["steps"]
    (info,) = memory.adapters()
    assert (info.path.name, info.finished, info.stale) == ("evening", True, False)
    assert "trained on" in cli("finetune", *options).stdout
    cli("forget", "c0", "--store", store)
    assert memory.stale_adapters() == [*memory.adapters()]
    again = cli("finetune", *options)
    assert again.returncode == 2
    assert "other turns" in again.stderr
    assert cli("finetune", *options, "--fresh").returncode == 0
    assert memory.stale_adapters() == []
    assert cli("finetune", "--store", store, "--scope", "nobody").returncode == 1


def test_the_real_model_learns_a_few_steps(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("gguf")
    from latent_memory.inference.lora import Adapter, train
    from tiny_model import real_model

    real = real_model()
    said = Turn("user", "My sister's dog is called Bartholomew.", name="Ana")
    one = Conversation("c", [said], timestamp=datetime(2024, 5, 8, tzinfo=UTC))
    train(real, [one], tmp_path, settings=settings(passes=5, questions=1, rate=2e-3, batch=256, own=0))
    question = [{"role": "user", "content": "What did Ana say about Bartholomew?"}]
    answer = real.encode("My sister's dog is called Bartholomew.")
    from latent_memory.inference import prompt

    without = real.nll(real.prefill(prompt.tokens(real, question)), answer)
    with Adapter.load(tmp_path, real) as adapter:
        assert real.nll(adapter.read(NOTHING, question), answer) < without - 0.3
