"""Weights fitted to one memory: found, measured on what was held out, kept only if better, and taken back."""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError
from latent_memory.ranking import Weights
from latent_memory.tuning import Asked, found_in, halves

Cli = Callable[..., CompletedProcess[str]]

CONVERSATIONS, TURNS = 12, 4
# What lends so much to what stands beside it finds the neighbours first.
BAD = Weights()._replace(neighbours=8.0, borrowing_words=1_000.0)


def topic(conversation: int, turn: int) -> str:
    return f"subject{conversation}x{turn} theme{conversation}x{turn} detail{conversation}x{turn}"


@pytest.fixture
def filled(memory: LatentMemory) -> LatentMemory:
    memory.add(
        Conversation(
            f"c{c}",
            [Turn("user", f"We spoke at length about {topic(c, t)}", name=("Ana", "Ben")[t % 2]) for t in range(TURNS)],
            title=f"Talk {c}",
        )
        for c in range(CONVERSATIONS)
    )
    return memory


def questions(count: int = 48) -> list[dict[str, Any]]:
    places = [(c, t) for t in range(TURNS) for c in range(CONVERSATIONS)][:count]
    return [
        {"question": f"what about theme{c}x{t} and detail{c}x{t}", "evidence": [[f"c{c}", t]], "note": "kept apart"}
        for c, t in places
    ]


# -- with questions of one's own --------------------------------------------------------------------------


def test_weights_that_answer_better_are_kept(filled: LatentMemory, store: Path) -> None:
    filled.weights = BAD
    tried: list[int] = []
    report = filled.tune(questions(), progress=tried.append)
    assert report.kept, report
    assert report.source == "questions"
    assert report.questions == 48
    assert tried == list(range(1, report.tried + 1))
    assert report.fitted is not None
    assert report.held_out is not None
    assert report.fitted.questions + report.held_out.questions == 48
    for half in (report.fitted, report.held_out):
        assert half.after.reciprocal_rank > half.before.reciprocal_rank
        assert half.after.found >= half.before.found
    assert report.before == BAD._asdict()
    assert report.after["meaning"] == BAD.meaning
    assert report.after["neighbours"] < BAD.neighbours
    # In use at once, and at every later opening.
    assert filled.weights._asdict() == report.after
    assert filled.tuned
    with LatentMemory.open(store) as again:
        assert again.weights._asdict() == report.after
        assert again.tuned
        again.weights = Weights()
        assert not again.tuned


def test_the_numbers_are_those_of_recall(filled: LatentMemory) -> None:
    filled.weights = BAD
    report = filled.tune(questions())
    filled.weights = BAD
    # It is the same each time.
    assert filled.tune(questions()) == report
    assert report.fitted is not None
    assert report.held_out is not None
    for weights, told in ((report.before, "before"), (report.after, "after")):
        filled.weights = Weights(**weights)
        ranks: list[float] = []
        found: list[bool] = []
        for question in questions():
            hits = filled.recall(question["question"], k=20)
            places = [[hit.passage.conversation_id, hit.passage.turn] for hit in hits]
            (evidence,) = question["evidence"]
            ranks.append(1 / (1 + places.index(evidence)) if evidence in places else 0)
            found.append(evidence in places[:10])
        whole = [
            sum(half.questions * getattr(half, told)[i] for half in (report.fitted, report.held_out)) / 48
            for i in range(2)
        ]
        assert whole == pytest.approx([sum(ranks) / 48, sum(found) / 48])


def test_without_a_gain_nothing_is_changed(filled: LatentMemory, store: Path) -> None:
    # Whatever the weights, nothing is found by what nobody said; the last turn stands where it stands.
    asked = [{"question": "zzz", "evidence": [["c0", 0]]} for _ in range(30)]
    asked += [{"question": "zzz", "evidence": [["c1", 0]]} for _ in range(30)]
    before = filled.weights
    report = filled.tune(asked)
    assert not report.kept
    assert report.reason == "no other weights answer better"
    assert report.before == report.after
    assert filled.weights == before
    assert not filled.tuned
    with LatentMemory.open(store) as again:
        assert again.weights == Weights()


def test_in_no_time_nothing_is_found(filled: LatentMemory) -> None:
    filled.weights = BAD
    report = filled.tune(questions(), seconds=1e-9)
    assert (report.kept, report.tried) == (False, 0)
    assert "in the time given" in report.reason
    assert filled.weights == BAD


@pytest.mark.parametrize("count", [0, 1, 47])
def test_too_few_questions(filled: LatentMemory, count: int) -> None:
    report = filled.tune(questions(count))
    assert not report.kept
    assert report.questions == count
    assert report.reason.startswith(f"{count} question")
    assert "48 in several conversations are needed" in report.reason
    assert (report.fitted, report.held_out, report.tried) == (None, None, 0)


def test_all_in_one_conversation(filled: LatentMemory) -> None:
    report = filled.tune([{"question": f"subject0x{i % TURNS}", "evidence": [["c0", i % TURNS]]} for i in range(60)])
    assert not report.kept
    assert "nearly all in one conversation" in report.reason


def test_an_interrupt_keeps_everything_as_it_was(filled: LatentMemory, store: Path) -> None:
    def stop(tried: int) -> None:
        if tried == 3:
            raise KeyboardInterrupt

    filled.weights = BAD
    with pytest.raises(KeyboardInterrupt):
        filled.tune(questions(), progress=stop)
    assert filled.weights == BAD
    with LatentMemory.open(store) as again:
        assert again.weights == Weights()


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("who?", 'question 2: an object with "question" and "evidence" was expected'),
        ({}, "question 2: question: text was expected, not NoneType"),
        ({"question": " ", "evidence": [["c0", 0]]}, "question 2: question: empty"),
        ({"question": "who?"}, "question 2: evidence: a list"),
        ({"question": "who?", "evidence": []}, "question 2: evidence: empty"),
        ({"question": "who?", "evidence": "c0"}, "question 2: evidence: a list"),
        ({"question": "who?", "evidence": ["c0"]}, r"question 2: evidence: c0 is no \[conversation_id, turn\]"),
        ({"question": "who?", "evidence": [["c0", "0"]]}, r"is no \[conversation_id, turn\]"),
        ({"question": "who?", "evidence": [["c0", True]]}, r"is no \[conversation_id, turn\]"),
        ({"question": "who?", "evidence": [["c0", -1]]}, r"is no \[conversation_id, turn\]"),
        ({"question": "who?", "evidence": [["c0", 99]]}, "question 2: evidence: no turn 99 in 'c0' of scope 'default'"),
        ({"question": "who?", "evidence": [["no", 0]]}, "no turn 0 in 'no'"),
        ({"question": "who?", "evidence": [["c0", 0]], "scope": "ana"}, "of scope 'ana'"),
        ({"question": "who?", "evidence": [["c0", 0]], "scope": 7}, "scope: text was expected"),
    ],
)
def test_questions_that_cannot_be_used(filled: LatentMemory, question: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        filled.tune([questions(1)[0], question])


def test_each_question_in_its_scope(filled: LatentMemory) -> None:
    filled.add(Conversation("ana", [Turn("user", "My parrot is called Bilbo.")]), "ana")
    own = {"question": "parrot", "evidence": [["ana", 0]]}
    with pytest.raises(InputError, match="of scope 'default'"):
        filled.tune([own])
    assert filled.tune([own], scope="ana").questions == 1
    assert filled.tune([own | {"scope": "ana"}, *questions(2)]).questions == 3


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "60"])
def test_how_long(filled: LatentMemory, seconds: Any) -> None:
    with pytest.raises(InputError, match="seconds"):
        filled.tune(questions(), seconds=seconds)


# -- with what was asked in the memory --------------------------------------------------------------------


def asking(scope: str = "default", conversations: int = 20, answer: str = "{}") -> list[Conversation]:
    """Return conversations of 16 turns in which two questions are asked and answered at once."""
    made: list[Conversation] = []
    for c in range(conversations):
        turns = [Turn("user", f"Something was said about {topic(c, t)}.", name="Ana") for t in range(16)]
        for t in (3, 10):
            turns[t] = Turn("user", f"What do you know about theme{c}x{t}?", name="Ana")
            told = answer.format(topic(c, t))
            turns[t + 1] = Turn("assistant", f"A long story number {c}x{t}, namely: {told}", name="Bot")
        made.append(Conversation(f"{scope}{c}", turns))
    return made


def test_questions_asked_in_the_memory(memory: LatentMemory, store: Path) -> None:
    memory.add(asking(conversations=15))
    memory.add(asking("ana", 15), "ana")
    memory.weights = start = Weights()._replace(conversation=9.0, words=0.1)
    before = memory.stats(), memory.recall("theme3x10", k=50)
    report = memory.tune(seconds=20)
    assert report.source == "asked in the memory"
    assert report.questions == 60
    assert report.kept, report
    memory.weights = start
    after = memory.stats(), memory.recall("theme3x10", k=50)
    # The database has grown by the weights alone.
    assert before[1] == after[1]
    assert before[0].passages == after[0].passages
    # What reads the turn before, which was taken out, is not judged by it; nothing else moves far.
    for name, value in report.before.items():
        times = 1 if name in ("meaning", "exchange", "neighbours") else 2.02
        assert value / times <= report.after[name] <= value * times


def test_a_question_does_not_give_its_answer_away(memory: LatentMemory) -> None:
    # These answers share no word with their questions: only the question beside them could lead there.
    memory.add(asking(conversations=30, answer="nothing of the kind"))
    report = memory.tune(seconds=0.001)
    assert report.questions == 60
    assert report.fitted is not None
    assert report.fitted.before.reciprocal_rank < 0.2
    hits = [memory.recall(f"What do you know about theme{c}x3?", k=20) for c in range(30)]
    ranks = [
        [hit.passage.turn for hit in found if hit.passage.conversation_id == f"default{c}"]
        for c, found in enumerate(hits)
    ]
    assert all(turns[0] == 3 and 4 in turns[:4] for turns in ranks)


def test_what_is_no_pair() -> None:
    def pairs(*turns: Turn) -> list[Asked]:
        return found_in([("s", Conversation("c", turns))])

    question = Turn("user", "Where did we leave the car yesterday?", name="Ana")
    answer = Turn("user", "Behind the old station, under the tree.", name="Ben")
    (pair,) = pairs(question, answer)
    assert pair == Asked("s", question.text, frozenset({("c", 1)}), ("c", 0))
    # Nobody else answers; too short; said twice; not asked.
    assert pairs(question, Turn("user", answer.text, name="Ana")) == []
    assert pairs(question, Turn("user", "Behind it.", name="Ben")) == []
    assert pairs(Turn("user", "Where is it?", name="Ana"), answer) == []
    assert pairs(question, answer, Turn("user", "where did we leave the car, yesterday", name="Ana")) == []
    assert pairs(question, answer, Turn("user", answer.text, name="Ana")) == []
    assert pairs(answer, question) == []
    assert pairs(question) == []


def test_an_eighth_of_a_conversation_at_most() -> None:
    turns = [
        Turn(
            "user",
            f"What did you say about {topic(0, t)}?" if t % 2 else f"That was about {topic(0, t)}.",
            name=str(t % 2),
        )
        for t in range(40)
    ]
    pairs = found_in([("s", Conversation("c", turns))])
    assert len(pairs) == 5
    taken = {pair.taken_from for pair in pairs}
    assert not any(pair.evidence & taken for pair in pairs)


def test_rare_words_where_few_ask() -> None:
    def told(c: int) -> Conversation:
        turns = [
            Turn(
                "user",
                f"Yesterday we went to place {c % 7} with people {c % 5} for number {c} by train {c % 3}.",
                name="Ana",
            ),
            Turn("user", f"Yes, and it was as lovely as number {c} can be.", name="Ben"),
        ]
        return Conversation(f"c{c}", turns)

    pairs = found_in([("s", told(c)) for c in range(60)])
    assert len(pairs) >= 48
    for pair in pairs:
        ((conversation_id, turn),) = pair.evidence
        assert turn == 1
        assert pair.taken_from == (conversation_id, 0)
        said = told(int(conversation_id[1:])).turns[0].text.casefold()
        assert len(pair.text.split()) == 6
        assert all(word in said for word in pair.text.split())


def test_halves_share_no_conversation() -> None:
    asked = [Asked("s", f"q{i}", frozenset({(f"c{i % 9}", i)})) for i in range(90)]
    fitted, held_out = halves(asked)
    assert sorted([*fitted, *held_out]) == sorted(asked)
    sides = [{conversation_id for pair in half for conversation_id, _ in pair.evidence} for half in (fitted, held_out)]
    assert not sides[0] & sides[1]
    assert abs(len(fitted) - len(held_out)) <= 10
    assert halves(asked[::-1])[0] != []
    assert {pair.text for pair in halves(asked[::-1])[0]} == {pair.text for pair in fitted}


def test_the_copy_is_gone(memory: LatentMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    memory.add(asking(conversations=30))
    memory.tune(seconds=0.001)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_memory_in_a_file(tmp_path: Path) -> None:
    with LatentMemory.open(tmp_path / "memory.pkl", embedder="hashing") as memory:
        memory.add(asking())
        with pytest.raises(InputError, match="kept in a store, not in a file; make one with: latent-memory convert"):
            memory.tune()


# -- what is kept -----------------------------------------------------------------------------------------


def keep(store: Path, value: object) -> None:
    connection = sqlite3.connect(store / "memory.sqlite")
    with connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('weights', ?)", (value,))
    connection.close()


@pytest.mark.parametrize(
    "value",
    [
        "nonsense",
        "[]",
        "{}",
        b"\x00\xff",
        json.dumps({"version": 2, "weights": {"words": 2}}),
        json.dumps({"version": 1, "weights": [1, 2]}),
        json.dumps({"version": 1, "weights": {"telepathy": 1}}),
        json.dumps({"version": 1, "weights": {"words": "2"}}),
        json.dumps({"version": 1, "weights": {"words": True}}),
        json.dumps({"version": 1, "weights": {"words": float("nan")}}),
        json.dumps({"version": 1, "weights": {"words": 1e300}}),
        "[" * 100_000,
    ],
)
def test_what_cannot_be_understood_is_ignored(
    filled: LatentMemory, store: Path, value: object, caplog: pytest.LogCaptureFixture, cli: Cli
) -> None:
    keep(store, value)
    with caplog.at_level(logging.WARNING), LatentMemory.open(store) as again:
        assert again.weights == Weights()
        assert not again.tuned
        assert again.recall("subject3x3")
    (record,) = caplog.records
    assert str(store) in record.getMessage()
    assert "tuned weights cannot be used" in record.getMessage()
    assert json.loads(cli("stats", "--store", store, "--json").stdout)["tuned"] is None
    assert cli("tune", "--reset", "--store", store).returncode == 0
    caplog.clear()
    with LatentMemory.open(store) as again:
        assert again.weights == Weights()
    assert caplog.records == []


def test_a_weight_that_was_not_there_yet_has_its_default(filled: LatentMemory, store: Path) -> None:
    keep(store, json.dumps({"version": 1, "weights": {"meaning": 1, "words": 0.25}}))
    with LatentMemory.open(store) as again:
        assert again.weights == Weights(words=0.25)
        assert again.tuned


# -- the command line -------------------------------------------------------------------------------------


def test_tune_on_the_command_line(filled: LatentMemory, store: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in questions()), encoding="utf-8")
    keep(store, json.dumps({"version": 1, "weights": BAD._asdict()}))
    result = cli("tune", "--questions", file, "--store", store)
    assert (result.returncode, result.stderr) == (0, "")
    head, fitted, held_out, *rows, _, last = result.stdout.splitlines()
    assert head.split() == ["questions", "reciprocal", "rank", "found", "in", "10"]
    assert fitted.startswith("fitted to")
    assert held_out.startswith("held out")
    assert len({len(line) for line in (head, fitted, held_out)}) == 1
    assert [row.split()[0] for row in rows if row] == list(Weights._fields)
    assert any(row.startswith("neighbours") and " -> " in row for row in rows)
    assert last.startswith("kept: better in ")
    assert max(map(len, result.stdout.splitlines())) <= 100
    told = json.loads(cli("stats", "--store", store, "--json").stdout)["tuned"]
    assert set(told) == set(Weights._fields)
    assert f"neighbours {told['neighbours']:.4g}" in cli("stats", "--store", store).stdout
    assert cli("tune", "--reset", "--store", store).stdout == "the default weights are in use again\n"
    assert cli("tune", "--reset", "--store", store).stdout == "the default weights were in use\n"
    assert json.loads(cli("tune", "--reset", "--json", "--store", store).stdout) == {"reset": False}
    assert cli("stats", "--store", store).stdout.splitlines()[-1].split() == ["tuned", "no"]


def test_tune_json(filled: LatentMemory, store: Path, cli: Cli) -> None:
    stdin = "".join(json.dumps(question) + "\n\n" for question in questions()).encode()
    result = cli("tune", "--questions", "-", "--seconds", 0.001, "--json", "--store", store, stdin=stdin)
    told = json.loads(result.stdout)
    assert sorted(told) == sorted(
        ["kept", "reason", "source", "questions", "tried", "fitted", "held_out", "before", "after"]
    )
    assert sorted(told["held_out"]) == ["after", "before", "questions"]
    assert sorted(told["held_out"]["before"]) == ["found", "reciprocal_rank"]


def test_too_few_on_the_command_line(filled: LatentMemory, store: Path, cli: Cli) -> None:
    result = cli("tune", "--store", store)
    assert result.returncode == 1
    assert result.stdout.startswith("not kept; the weights stay as they were: ")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"question": "a"\n', "questions.jsonl, line 1: not JSON"),
        (b'{"question": "a", "evidence": [["no", 0]]}\n', "question 1: evidence: no turn 0 in 'no'"),
        (b"\n\xff\n", "questions.jsonl: not UTF-8 (byte 1)"),
        (b"[" * 100_000, "line 1: not JSON"),
        (None, "questions.jsonl: No such file"),
    ],
)
def test_files_that_cannot_be_used(
    filled: LatentMemory, store: Path, cli: Cli, tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "questions.jsonl"
    if content is not None:
        file.write_bytes(content)
    result = cli("tune", "--questions", file, "--store", store)
    assert (result.returncode, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_interrupt_on_the_command_line(
    filled: LatentMemory, store: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LatentMemory, "tune", interrupted)
    result = cli("tune", "--store", store)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "stopped; the weights are as they were\n"


def test_reset_goes_alone(store: Path, cli: Cli) -> None:
    assert cli("tune", "--reset", "--questions", "x", "--store", store).returncode == 2
    assert cli("tune", "--store", store).returncode == 2
    assert not store.exists()
