"""What applications send with each request -> conversations: nothing twice, nothing lost, nothing changed."""

from __future__ import annotations

import difflib
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.recording import Recorder, unsaid


@pytest.fixture
def memory(tmp_path: Path) -> LatentMemory:
    return LatentMemory.open(tmp_path / "memory", embedder="hashing")


def user(text: str) -> Turn:
    return Turn("user", text)


def model(text: str) -> Turn:
    return Turn("assistant", text)


def told(memory: LatentMemory, scope: str = "default") -> dict[str, list[str]]:
    return {c.conversation_id or "": [turn.text for turn in c.turns] for c in memory.whole(scope=scope)}


def asked(
    recorder: Recorder,
    history: list[Turn],
    question: str,
    answer: str,
    *,
    sent: int | None = None,
    conversation_id: str | None = None,
) -> str | None:
    """Do what an application does: send the history and a question, and keep the answer in its history."""
    history.append(user(question))
    live = history if sent is None else history[-sent:]
    kept = recorder.keep(list(live), [model(answer)], conversation_id=conversation_id)
    history.append(model(answer))
    return kept


def test_a_conversation_grows_by_what_is_new(memory: LatentMemory) -> None:
    recorder, history = Recorder(memory), list[Turn]()
    ids = {asked(recorder, history, f"question {i}", f"answer {i}") for i in range(4)}
    assert len(ids) == 1
    assert list(told(memory).values()) == [[turn.text for turn in history]]
    times = [turn.timestamp for turn in next(memory.whole()).turns]
    assert None not in times


def test_a_conversation_with_an_id(memory: LatentMemory) -> None:
    recorder, history = Recorder(memory), list[Turn]()
    for i in range(3):
        assert asked(recorder, history, f"question {i}", f"answer {i}", sent=1, conversation_id="mine") == "mine"
    assert told(memory) == {"mine": [turn.text for turn in history]}


def test_after_a_restart_it_goes_on(memory: LatentMemory) -> None:
    history: list[Turn] = []
    for i in range(3):
        asked(Recorder(memory), history, f"question {i}", f"answer {i}")
    assert list(told(memory).values()) == [[turn.text for turn in history]]


def test_two_that_begin_alike_stay_two(memory: LatentMemory) -> None:
    recorder, one, other = Recorder(memory), list[Turn](), list[Turn]()
    for history in (one, other):
        asked(recorder, history, "Hi!", "Hello! How can I help?")
    for i in range(3):
        asked(recorder, one, f"about boats {i}", f"boats are {i}")
        asked(recorder, other, f"about trains {i}", f"trains are {i}")
    found = list(told(memory).values())
    assert sorted(found) == sorted([[turn.text for turn in one], [turn.text for turn in other]])


def test_an_application_that_sends_only_the_end(memory: LatentMemory) -> None:
    recorder, history = Recorder(memory), list[Turn]()
    for i in range(12):
        asked(recorder, history, f"Can you tell me all of part {i}, please?", f"Part {i} is a long story.", sent=5)
    assert list(told(memory).values()) == [[turn.text for turn in history]]


@pytest.mark.parametrize("sent", [3, 4, 5, 7])
def test_short_exchanges_of_which_only_the_end_is_sent(memory: LatentMemory, sent: int) -> None:
    recorder, history = Recorder(memory), list[Turn]()
    for i in range(12):
        asked(recorder, history, f"and number {i}?", f"it is {i * i}.", sent=sent)
    assert list(told(memory).values()) == [[turn.text for turn in history]]


def test_many_that_begin_alike_cost_no_more_and_stay_apart(
    memory: LatentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, calls = Recorder(memory), list[str]()
    extend = LatentMemory.extend

    def counted(self: LatentMemory, conversation_id: str, *more: object) -> object:
        calls.append(conversation_id)
        return extend(self, conversation_id, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(LatentMemory, "extend", counted)
    histories: list[list[Turn]] = [[] for _ in range(30)]
    for history in histories:
        asked(recorder, history, "Hi!", "Hello! How can I help?")
    for number, history in enumerate(histories):
        for i in range(2):
            asked(recorder, history, f"{number} asks {i}", f"{number} hears {i}")
    assert sorted(told(memory).values()) == sorted([turn.text for turn in history] for history in histories)
    assert len(calls) <= 30 + 30 * 2 * 3


def test_of_a_long_conversation_that_was_changed_the_end_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn by turn, all of it would take minutes."""
    stored = [turn for i in range(2_000) for turn in (user(f"asks {i % 50}"), model(f"hears {i % 40}"))]
    live = [turn for i in range(2_000) for turn in (user(f"asks {i % 49}"), model(f"hears {i % 41}"))]
    sizes: list[int] = []

    class Watched(difflib.SequenceMatcher[Any]):
        def __init__(self, isjunk: None, a: list[Any], b: list[Any], autojunk: bool) -> None:
            sizes.extend((len(a), len(b)))
            super().__init__(isjunk, a, b, autojunk)

    monkeypatch.setattr(difflib, "SequenceMatcher", Watched)
    assert unsaid(stored, [*live, user("the last")], [model("word")])[-2:] == [user("the last"), model("word")]
    assert 0 < max(sizes) <= 300


def test_texts_are_not_held_in_memory(memory: LatentMemory) -> None:
    recorder = Recorder(memory)
    recorder.keep([user("a secret " * 20)], [model("hush " * 20)])
    assert "secret" not in repr([vars(recorder), vars(recorder._links), vars(recorder._kept)])
    for i in range(20):
        recorder.keep([user("x" * 900_000)], [], answer_id=f"resp_{i}")
    # Those that wait for what a tool returns are, and not all of them.
    waiting = [recorder.continued("default", {"previous_response_id": f"resp_{i}"}, [])[1] for i in (0, 19)]
    assert [len(live) for live in waiting] == [0, 1]


def test_all_who_add_to_a_memory_have_one_recorder(memory: LatentMemory) -> None:
    assert Recorder.of(memory) is Recorder.of(memory)
    gone = weakref.ref(Recorder.of(LatentMemory.open(memory.path)))
    gc.collect()
    assert gone() is None


def test_a_request_sent_again_adds_nothing(memory: LatentMemory) -> None:
    recorder = Recorder(memory)
    for _ in range(3):
        recorder.keep([user("What is it?")], [model("A boat.")])
    recorder.keep([user("What is it?"), model("A boat."), user("And that?")], [model("A train.")])
    recorder.keep([user("What is it?")], [model("A boat.")])
    assert list(told(memory).values()) == [["What is it?", "A boat.", "And that?", "A train."]]


def test_another_answer_to_the_same_request_is_kept_beside_the_first(memory: LatentMemory) -> None:
    recorder = Recorder(memory)
    recorder.keep([user("Hi")], [model("Hello")], conversation_id="c")
    for answer in ("one", "two"):
        recorder.keep([user("Hi"), model("Hello"), user("Tell me")], [model(answer)], conversation_id="c")
    assert told(memory) == {"c": ["Hi", "Hello", "Tell me", "one", "two"]}


def test_what_is_said_twice_is_kept_twice_where_only_the_last_message_is_sent(memory: LatentMemory) -> None:
    recorder = Recorder(memory)
    for answer in ("one", "two", "three"):
        recorder.keep([user("next")], [model(answer)], conversation_id="c")
    assert told(memory) == {"c": ["next", "one", "next", "two", "next", "three"]}
    recorder.keep([user("next")], [model("three")], conversation_id="c")
    assert len(told(memory)["c"]) == 6
    # Where the server has what went before, the same may be answered to it.
    for _ in range(2):
        recorder.keep([user("and?")], [model("Yes.")], conversation_id="d", continues=True)
    recorder.keep([user("more")], [model("Yes.")], conversation_id="d", continues=True)
    assert told(memory)["d"] == ["and?", "Yes.", "more", "Yes."]


def test_an_answer_that_was_interrupted_and_asked_for_again(memory: LatentMemory) -> None:
    recorder = Recorder(memory)
    recorder.keep([user("Tell me")], [model("Once upon")], conversation_id="c")
    recorder.keep([user("Tell me")], [model("Once upon a time.")], conversation_id="c")
    assert told(memory) == {"c": ["Tell me", "Once upon", "Once upon a time."]}


def test_nothing_that_is_stored_is_changed(memory: LatentMemory) -> None:
    recorder = Recorder(memory)
    memory.add(Conversation("c", [user("the first"), model("answer"), user("the second"), model("more")], title="T"))
    # The application has put the beginning into a few words of its own.
    live = [user("In short: the first."), user("the second"), model("more"), user("the third")]
    recorder.keep(live, [model("the last")], conversation_id="c")
    assert told(memory) == {"c": ["the first", "answer", "the second", "more", "the third", "the last"]}
    assert next(memory.whole()).title == "T"


def test_what_was_forgotten_does_not_come_back(memory: LatentMemory) -> None:
    for named in (None, "mine"):
        recorder, history = Recorder(memory), list[Turn]()
        for i in range(3):
            kept = asked(recorder, history, f"secret {i}", f"answer {i}", conversation_id=named)
        assert kept is not None
        assert memory.forget(kept) == 1
        for i in range(3):
            asked(recorder, history, f"later {i}", f"said {i}", conversation_id=named)
        texts = [f"{word} {i}" for i in range(3) for word in ("later", "said")]
        assert list(told(memory).values()) == [texts]
        memory.forget(everything=True)


def test_scopes_are_walls(memory: LatentMemory) -> None:
    recorder = Recorder(memory)
    long = "Where did the three of us go on the last day of the holiday in May?"
    for scope in ("ana", "ben"):
        recorder.keep([user(long)], [model("To the sea.")], scope=scope)
        recorder.keep([user(long), model("To the sea."), user(scope)], [model("Yes.")], scope=scope)
    for scope in ("ana", "ben"):
        assert list(told(memory, scope).values()) == [[long, "To the sea.", scope, "Yes."]]


def test_without_an_answer_only_a_named_one_is_kept(memory: LatentMemory) -> None:
    recorder = Recorder(memory)
    assert recorder.keep([user("Hello?")], []) is None
    assert recorder.keep([], [], conversation_id="c") is None
    assert recorder.keep([user("Hello?")], [], conversation_id="c") == "c"
    assert recorder.keep([user("Hello?")], [model("Yes?")], conversation_id="c") == "c"
    assert told(memory) == {"c": ["Hello?", "Yes?"]}


def test_many_at_once_in_one_conversation_lose_nothing(memory: LatentMemory) -> None:
    recorder = Recorder(memory)

    def talk(who: int) -> None:
        for i in range(5):
            recorder.keep([user(f"{who} asks {i}")], [model(f"{who} hears {i}")], conversation_id="shared")

    threads = [threading.Thread(target=talk, args=[who]) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (texts,) = told(memory).values()
    assert len(texts) == 40
    for who in range(4):
        mine = [text for text in texts if text.startswith(f"{who} ")]
        assert mine == [f"{who} {does} {i}" for i in range(5) for does in ("asks", "hears")]


WORDS = st.sampled_from(["yes", "no", "Hi", "why", "the boat", "more"])


@st.composite
def exchanges(draw: st.DrawFn) -> list[Turn]:
    """Return questions with their answers, and one more question; none is asked twice."""
    questions = draw(st.lists(WORDS, min_size=1, max_size=5, unique=True))
    told = [turn for question in questions[:-1] for turn in (user(question), model(draw(WORDS)))]
    return [*told, user(questions[-1])]


@given(stored=st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), WORDS)), live=exchanges(), answer=WORDS)
def test_what_is_new_is_the_end_of_what_was_said(stored: list[Turn], live: list[Turn], answer: str) -> None:
    said = [*live, model(answer)]
    new = unsaid(stored, live, [model(answer)])
    assert new == said[len(said) - len(new) :]
    # Once it is added, the same request adds nothing.
    assert unsaid([*stored, *new], live, [model(answer)]) == []


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.lists(st.tuples(st.integers(0, 2), WORDS, WORDS), max_size=12),
    restarts=st.sets(st.integers(0, 11)),
)
def test_applications_that_send_all_of_it(
    said: list[tuple[int, str, str]], restarts: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of each conversation, all is stored in order, in one place or where it went another way."""
    with LatentMemory.open(tmp_path_factory.mktemp("memory"), embedder="hashing") as memory:
        recorder = Recorder(memory)
        histories: list[list[Turn]] = [[], [], []]
        for i, (which, question, answer) in enumerate(said):
            recorder = Recorder(memory) if i in restarts else recorder
            asked(recorder, histories[which], question, answer)
        stored = list(told(memory).values())
        for history in histories:
            texts = [turn.text for turn in history]
            assert not texts or any(kept[: len(texts)] == texts for kept in stored)
        longest = {tuple(turn.text for turn in history) for history in histories if history}
        assert sum(map(len, stored)) <= sum(map(len, longest))
