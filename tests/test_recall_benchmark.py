"""The evaluation of recall: what is read, the metrics by hand, and what two runs are told apart by."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_memory import embedders
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.errors import InputError
from latent_memory.ranking import Weights
from latent_memory.vectors import Vectors

# The benchmarks are scripts, and import each other as such.
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import recall_quality
from recall_data import LOCOMO, Question, halves, load, load_all, numbers_in, only, unnamed
from recall_live import follow_ups, with_pronoun
from recall_metrics import Ranks, Run, by_reciprocal_ranks, differences, metrics_of, ranks_of, read_runs, write_runs


def _said(speaker: str, dia_id: str, text: str, **more: str) -> dict[str, str]:
    return {"speaker": speaker, "dia_id": dia_id, "text": text, **more}


def _sample(name: str) -> dict[str, Any]:
    return {
        "sample_id": name,
        "conversation": {
            "speaker_a": "Maria",
            "speaker_b": "Tom",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                _said("Maria", "D1:1", "I adopted a dog, she is called Luna."),
                _said("Tom", "D1:2", "Lovely! I bought a canoe.", blip_caption="a red canoe"),
                _said("Maria", "D1:3", "And on Friday I start as a baker."),
            ],
            "session_2_date_time": "10:00 am on 1 June, 2023",
            "session_2": [_said("Tom", "D2:1", "My canoe sank in the river.")],
        },
        "qa": [
            {"question": "Which pet did Maria adopt?", "answer": "a dog", "evidence": ["D1:1"], "category": 4},
            {"question": "When does Maria start her job?", "answer": 2023, "evidence": ["D1:3"], "category": 2},
            {
                "question": "What happened to Tom's canoe?",
                "answer": "it sank",
                "evidence": ["D1:2; D2:1"],
                "category": 1,
            },
            {"question": "Why did Tom adopt a dog?", "evidence": ["D1:1", "D9:9"], "category": 5},
            {"question": "Who is nobody?", "answer": "nobody", "evidence": ["D9:9"], "category": 3},
        ],
    }


@pytest.fixture
def locomo(tmp_path: Path) -> Path:
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([_sample(name) for name in ("one", "two", "three")]))
    return file


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    file = tmp_path / "conversations.jsonl"
    messages = [{"role": "user", "content": "My bike is green."}, {"role": "assistant", "content": "Nice."}]
    file.write_text(json.dumps({"conversation_id": "bike", "timestamp": "2025-01-01", "messages": messages}) + "\n")
    return file


class TestLoading:
    def test_locomo(self, locomo: Path) -> None:
        dataset = load(locomo)
        assert (dataset.name, dataset.kind, list(dataset.scopes)) == (LOCOMO, LOCOMO, ["one", "two", "three"])
        first, second = dataset.scopes["one"]
        assert first.turns[1].text == "Lovely! I bought a canoe. [shared a photo: a red canoe]"
        assert (first.turns[1].name, second.conversation_id) == ("Tom", "session_2")
        assert [(q.key, q.category, q.answer, sorted(q.evidence)) for q in dataset.questions[:4]] == [
            ("one/0", "single-hop", "a dog", [("session_1", 0)]),
            ("one/1", "temporal", "2023", [("session_1", 2)]),
            ("one/2", "multi-hop", "it sank", [("session_1", 1), ("session_2", 0)]),
            ("one/3", "adversarial", "", [("session_1", 0)]),
        ]
        assert len(dataset.questions) == 12

    def test_beam(self, tmp_path: Path) -> None:
        chat = tmp_path / "chats" / "7"
        chat.mkdir(parents=True)
        told = [
            {"id": 0, "role": "user", "content": "My sprint ends in May. ->-> 1,1", "time_anchor": "March-15-2024"},
            {"id": 1, "role": "assistant", "content": "Write a ->-> b, then."},
            {"id": 2, "role": "user", "content": " ->-> 1,2"},
            {"id": 3, "role": "user", "content": "Thanks!"},
        ]
        batches = [{"turns": [told[:2], told[2:]]}, {"turns": [[{"id": 4, "role": "user", "content": "Hello again."}]]}]
        (chat / "chat.json").write_text(json.dumps(batches))
        questions = {
            "knowledge_update": [{"question": "When?", "answer": "May", "source_chat_ids": {"a": [0], "b": [[3], 4]}}],
            "summarization": [{"question": "All?", "source_chat_ids": [0]}],
            "abstention": [{"question": "What else?"}],
        }
        (chat / "q.json").write_text(json.dumps(questions))
        dataset = load(tmp_path / "chats")
        first, second = dataset.scopes["7"]
        assert [turn.text for turn in first.turns] == ["My sprint ends in May.", "Write a ->-> b, then.", "Thanks!"]
        assert [str(c.timestamp) for c in (first, second)] == ["2024-03-15 00:00:00", "2024-03-16 00:00:00"]
        assert dataset.questions == [
            Question(
                "7/knowledge_update/0",
                "7",
                "When?",
                frozenset({("batch-1", 0), ("batch-1", 2), ("batch-2", 0)}),
                "knowledge update",
                "May",
            )
        ]

    def test_lines(self, tmp_path: Path, conversations: Path) -> None:
        live = [{"role": "user", "content": "Which colour has it?"}]
        asked = [
            {"scope": "ana", "question": "Which colour?", "evidence": [["bike", 0]], "category": "c", "messages": live},
            {"scope": "ana", "question": "Nothing?", "evidence": []},
        ]
        file = tmp_path / "asked.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in asked))
        dataset = load(file, conversations)
        (question,) = dataset.questions
        assert (dataset.name, question.key, question.asked) == ("asked", "ana/1", live)
        assert [c.conversation_id for c in dataset.scopes["ana"]] == ["bike"]

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ('{"question": "?"}', "line 1: not a question"),
            ("not JSON", "line 1: not a question"),
            ('{"question": "?", "evidence": [["bike", 2]]}', "line 1: evidence .* is no turn"),
        ],
    )
    def test_what_is_no_question_is_told(self, tmp_path: Path, conversations: Path, line: str, told: str) -> None:
        file = tmp_path / "asked.jsonl"
        file.write_text(line)
        with pytest.raises(InputError, match=told):
            load(file, conversations)

    def test_lines_need_their_conversations_and_each_its_scope(self, tmp_path: Path, conversations: Path) -> None:
        file = tmp_path / "asked.jsonl"
        file.write_text("".join(f'{{"scope": "{s}", "question": "?", "evidence": [["bike", 0]]}}\n' for s in "ab"))
        with pytest.raises(InputError, match="--conversations"):
            load(file)
        with pytest.raises(InputError, match="'bike' has no \"scope\""):
            load(file, conversations)
        with pytest.raises(InputError, match="no chats in it"):
            load(tmp_path)

    def test_halves(self, locomo: Path) -> None:
        dataset = load(locomo)
        assert halves(dataset) == (["one", "two"], ["three"])
        kept = only(dataset, ["three"])
        assert ({q.scope for q in kept.questions}, list(kept.scopes)) == ({"three"}, ["three"])

    def test_two_of_a_name_get_their_files(self, locomo: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.json"
        other.write_bytes(locomo.read_bytes())
        assert [dataset.name for dataset in load_all([locomo, other])] == ["LoCoMo talks", "LoCoMo other"]

    def test_numbers_nested_anyhow(self) -> None:
        assert list(numbers_in({"a": [1, [2, {"b": 3}]], "c": 4, "d": None, "e": True})) == [1, 2, 3, 4]

    def test_without_names(self, locomo: Path) -> None:
        talks = unnamed(load(locomo).scopes)["one"]
        assert [turn.name for talk in talks for turn in talk.turns] == [None] * 4
        assert talks[0].turns[0].text == "I adopted a dog, she is called Luna."


class TestLive:
    def test_follow_ups(self, locomo: Path) -> None:
        # Tom's only question with an answer has evidence in two sessions, so it pairs with none.
        made = follow_ups(only(load(locomo), ["one"]))
        assert [(item.written, item.question.key) for item in made] == [
            ("When does Maria start her job?", "one/1 after one/0")
        ]
        assert made[0].question.asked == [
            {"role": "user", "content": "Which pet did Maria adopt?"},
            {"role": "assistant", "content": "a dog"},
            {"role": "user", "content": "When does she start her job?"},
        ]
        assert made[0].question.evidence == {("session_1", 2)}

    @pytest.mark.parametrize(
        ("text", "name", "expected"),
        [
            ("When did Maria move?", "Maria", "When did she move?"),
            ("What is Maria's dog called?", "Maria", "What is her dog called?"),
            ("What is Maria’s dog called?", "Maria", "What is her dog called?"),
            ("What did Ana give to Tom in May?", "Tom", "What did Ana give to him in May?"),
            ("Who called Tom?", "Tom", "Who called him?"),
            ("Tom's dog is whose, says Tom?", "Tom", "His dog is whose, says him?"),
            ("Where is James' bike?", "James", "Where is his bike?"),
            ("Did Xu see Xu's tomatoes, Xuan?", "Xu", "Did they see their tomatoes, Xuan?"),
        ],
    )
    def test_pronouns(self, text: str, name: str, expected: str) -> None:
        assert with_pronoun(text, name) == expected


class TestMetrics:
    RANKED = (("a", 0), ("b", 0), ("a", 1), ("c", 0), ("b", 1), ("d", 0), ("e", 0), ("f", 0))

    def test_ranks(self) -> None:
        # Sessions in their order of appearance: a b c d e f.
        ranks = ranks_of({("b", 1), ("f", 0), ("x", 3)}, self.RANKED)
        assert ranks == Ranks((5, 8, None), (2, 6, None))

    def test_ranks_end_at_50(self) -> None:
        ranked = [("a", turn) for turn in range(60)]
        assert ranks_of({("a", 49), ("a", 50)}, ranked) == Ranks((50, None), (1,))

    def test_by_hand(self) -> None:
        assert metrics_of(Ranks((5, 8, None, 30), (2, 6))) == {
            "turn recall@5": 25.0,
            "turn recall@10": 50.0,
            "turn recall@20": 50.0,
            "turn recall@50": 75.0,
            "all evidence found@10": 0.0,
            "session recall@5": 50.0,
            "session recall@10": 100.0,
            "MRR": 0.2,
        }

    def test_all_or_nothing(self) -> None:
        found, missed = metrics_of(Ranks((1, 10), (1,))), metrics_of(Ranks((None,), (None,)))
        assert (found["all evidence found@10"], found["MRR"]) == (100.0, 1.0)
        assert set(missed.values()) == {0.0}

    def test_reciprocal_ranks(self) -> None:
        a, b, c = ("a", 0), ("b", 0), ("c", 0)
        # 1/61 + 1/63 for a, 2/62 for b, 1/61 for c.
        assert by_reciprocal_ranks([[a, b], [c, b, a]]) == [a, b, c]


class TestComparing:
    def test_a_known_difference(self) -> None:
        chance = np.random.default_rng(1)
        pairs = np.stack([chance.normal(2.0, 10.0, 400), chance.normal(0.0, 10.0, 400), np.full(400, 3.0)], axis=1)
        pairs[:, 1] -= pairs[:, 1].mean()
        clear, none, exact = differences(pairs)
        # The interval of a mean is the mean and 1.96 standard errors on both sides.
        error = 1.96 * pairs[:, 0].std() / 20
        assert clear.low == pytest.approx(clear.mean - error, abs=0.1)
        assert clear.high == pytest.approx(clear.mean + error, abs=0.1)
        assert clear.told_from_noise
        assert not none.told_from_noise
        assert exact == pytest.approx((3.0, 3.0, 3.0))

    def test_seeded(self) -> None:
        pairs = np.arange(20.0).reshape(-1, 1)
        assert differences(pairs, 700) == differences(pairs, 700)
        assert differences(pairs, 700) != differences(pairs, 700, seed=1)

    def test_runs_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        run = Run("LoCoMo", "one/0", "one", "temporal", "When\u2028?", {"whole": Ranks((1, None), (1,))}, {"ms": 2.5})
        write_runs(tmp_path / "runs", [run])
        assert read_runs(tmp_path / "runs") == {("LoCoMo", "one/0"): run}
        (tmp_path / "other").write_text('{"name": 1}\n')
        with pytest.raises(InputError, match="not a file that --runs wrote"):
            read_runs(tmp_path / "other")


class Counting(HashingEmbedder):
    """Counts what it is asked, and can do what the seam leaves open."""

    fingerprint = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def embed(self, texts: Any, *, query: bool = False) -> Vectors:
        self.asked += 1
        return super().embed(texts, query=query)

    def embed_tokens(self, texts: Any, *, query: bool = False) -> list[str]:
        self.asked += 1
        return [text.upper() for text in texts]


class TestScript:
    def test_queries_are_embedded_once(self) -> None:
        counting = Counting()
        remembering = recall_quality.Remembering(counting)
        assert embedders.identity(remembering) == embedders.identity(counting)
        for _ in range(3):
            assert remembering.embed(["a"], query=True).shape == (1, 256)
            assert remembering.embed_tokens(["a"], query=True) == ["A"]
        assert counting.asked == 2
        remembering.embed(["a"])
        remembering.embed(["a"])
        assert counting.asked == 4
        assert not hasattr(remembering, "warm")

    def test_every_signal_is_alone_once_and_missing_once(self) -> None:
        # Also of signals that come later: what is no signal stays as it is.
        signals = tuple(name for name in Weights._fields if name != "borrowing_words")
        whole = Weights(words=1.5)
        rows = recall_quality.weightings(whole, signals)
        for name in signals:
            alone, without = rows[f"{name} alone"], rows.get(f"without {name}", whole)
            assert [n for n in signals if getattr(alone, n)] == [name]
            assert without == whole._replace(**{name: 0.0})
        assert {row.borrowing_words for row in rows.values()} == {whole.borrowing_words}
        assert list(rows.values())[-1] == whole

    def test_from_end_to_end(
        self, locomo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run(*arguments: object) -> str:
            monkeypatch.setattr(sys, "argv", ["recall_quality.py", *map(str, arguments)])
            recall_quality.main()
            return capsys.readouterr().out

        first, second, report = tmp_path / "first", tmp_path / "second", tmp_path / "report.json"
        printed = run(locomo, "--tune", "--misses", "1", "--runs", first, "--json", report)
        assert "LoCoMo: 8 turns, 2 scopes" in printed
        results = {result["name"]: result for result in json.loads(report.read_text())}
        # Of eight turns, ten find all.
        whole = results["LoCoMo: whole: turn recall@10"]
        assert whole == {"name": whole["name"], "value": 100.0, "unit": "%", "better": "higher", "bar": 82.0}
        assert results["LoCoMo: context of 1024 tokens: evidence"]["value"] == 100.0
        assert {"LoCoMo: without words: MRR", "LoCoMo, live: live messages: turn recall@5"} <= results.keys()
        run(locomo, "--tune", "--whole", "--weights", "meaning=0,words=0", "--runs", second)
        told = run("--compare", first, second)
        assert "10 questions in both, 0 in one only" in told
        assert "whole: turn recall@10" in told
        for arguments, message in ((["--weights", "speed=1", locomo], "'speed'"), ([tmp_path / "none"], "cannot read")):
            with pytest.raises(SystemExit, match=message):
                run(*arguments)
