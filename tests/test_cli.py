"""The command line: what it prints and with which exit code, through `main` and through the console script."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import platformdirs
import pytest

from latent_memory import Conversation, LatentMemory, Turn, output
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.errors import EmbedderUnavailableError

Cli = Callable[..., CompletedProcess[str]]

EXAMPLES = Path(__file__).parents[1] / "examples" / "conversations.jsonl"

PASSAGE_KEYS = ["conversation_id", "end", "name", "role", "scope", "start", "text", "timestamp", "title", "turn"]
# Of a query that tells no time, and without a reranker.
SIGNALS = sorted({*output.SIGNALS} - {"time", "reranker"})

TRIP = {
    "conversation_id": "trip",
    "title": "A trip to Osaka",
    "timestamp": "2025-03-01T09:00:00+01:00",
    "type": "planning",
    "summary": "Ana plans a trip to Osaka.",
    "messages": [
        {
            "role": "user",
            "content": "When does our flight to Osaka leave?",
            "timestamp": "2025-03-01T09:00:00+01:00",
            "name": "Ana",
        },
        {"role": "assistant", "content": "The flight to Osaka leaves on 3 May at noon.", "name": "Bot"},
        {"role": "user", "content": "Book the hotel by the river.", "timestamp": "2025-03-05T09:00:00+01:00"},
    ],
    "source": "phone",
}
CAT = {
    "conversation_id": "cat",
    "title": "The cat",
    "timestamp": "2025-04-01T10:00:00",
    "messages": [
        {"role": "user", "content": "My cat Biscoito refuses the new food."},
        {"role": "assistant", "content": "Mix the new food with the old for a week."},
    ],
}
PLAIN = {"messages": [{"role": "user", "content": "A plain line about volcanoes and their ash"}]}


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def parsed(result: CompletedProcess[str], code: int = 0) -> Any:
    assert result.returncode == code, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def one_line(result: CompletedProcess[str], code: int) -> str:
    assert result.returncode == code
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.endswith("\n")
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "talk.jsonl"
    path.write_bytes(lines(TRIP, CAT))
    return path


@pytest.fixture
def filled(cli: Cli, store: Path, file: Path) -> Path:
    assert cli("add", file, "--store", store, "--embedder", "hashing").returncode == 0
    return store


# -- add ----------------------------------------------------------------------------------------------------


def test_add_tells_what_it_did(cli: Cli, store: Path, file: Path) -> None:
    first = cli("add", file, "--store", store, "--embedder", "hashing")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == "2 conversations added, 0 changed, 0 unchanged (5 turns added, 0 changed)\n"


def test_adding_a_file_again_adds_nothing(cli: Cli, filled: Path, file: Path) -> None:
    again = cli("add", file, "--store", filled)
    assert again.stdout == "0 conversations added, 0 changed, 2 unchanged (0 turns added, 0 changed)\n"
    assert parsed(cli("stats", "--store", filled, "--json"))["turns"] == 5


def test_add_json(cli: Cli, store: Path, file: Path) -> None:
    told = parsed(cli("add", file, "--store", store, "--embedder", "hashing", "--json"))
    assert told == {
        "added": 2,
        "changed": 0,
        "unchanged": 0,
        "turns_added": 5,
        "turns_changed": 0,
        "turns_unchanged": 0,
        "left_out": 0,
        "files": [{"name": str(file), "format": "jsonl", "conversations": 2, "turns": 5}],
        "skipped": {},
    }


def test_a_conversation_that_grew_gets_its_new_turns_only(cli: Cli, filled: Path, file: Path) -> None:
    grown = {**CAT, "messages": [*CAT["messages"], {"role": "user", "content": "It worked!"}]}
    file.write_bytes(lines(TRIP, grown))
    told = parsed(cli("add", file, "--store", filled, "--json"))
    assert (told["added"], told["changed"], told["unchanged"]) == (0, 1, 1)
    assert (told["turns_added"], told["turns_changed"], told["turns_unchanged"]) == (1, 0, 5)


def test_several_files_and_standard_input(cli: Cli, store: Path, file: Path) -> None:
    told = parsed(cli("add", file, "-", "--store", store, "--embedder", "hashing", "--json", stdin=lines(PLAIN)))
    assert told["added"] == 3


def test_the_same_conversation_in_two_files_is_one(cli: Cli, store: Path, file: Path) -> None:
    told = parsed(cli("add", file, file, "--store", store, "--embedder", "hashing", "--json"))
    assert (told["added"], told["unchanged"]) == (2, 2)


def test_a_plain_line_gets_an_id_that_stays(cli: Cli, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_bytes(lines(PLAIN))
    assert parsed(cli("add", file, "--store", store, "--embedder", "hashing", "--json"))["added"] == 1
    (listed,) = parsed(cli("list", "--store", store, "--json"))
    assert listed["conversation_id"].startswith("gen-")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    copy = shutil.copy(file, tmp_path / "copy.jsonl")
    for args, stdin in (((file,), b""), ((copy,), b""), (("-",), lines(PLAIN)), (("-",), b"\n" + lines(PLAIN))):
        told = parsed(cli("add", *args, "--store", store, "--json", stdin=stdin))
        assert (told["added"], told["changed"], told["unchanged"]) == (0, 0, 1)
    assert parsed(cli("list", "--store", store, "--json")) == [listed]
    other = store.with_name("other")
    assert cli("add", file, "--store", other, "--embedder", "hashing").returncode == 0
    assert parsed(cli("list", "--store", other, "--json"))[0]["conversation_id"] == listed["conversation_id"]


def test_the_same_line_twice_is_one_conversation(cli: Cli, store: Path) -> None:
    told = parsed(cli("add", "-", "--store", store, "--embedder", "hashing", "--json", stdin=lines(PLAIN, PLAIN)))
    assert (told["added"], told["unchanged"]) == (1, 1)


def test_bom_blank_lines_and_windows_line_ends(cli: Cli, store: Path) -> None:
    content = b"\xef\xbb\xbf" + lines(TRIP, CAT).replace(b"\n", b"\r\n\r\n")
    told = parsed(cli("add", "-", "--store", store, "--embedder", "hashing", "--json", stdin=content))
    assert told["added"] == 2
    assert parsed(cli("show", "trip", "--store", store, "--json"))["title"] == TRIP["title"]


def test_standard_input_is_read_once(cli: Cli, store: Path) -> None:
    told = one_line(cli("add", "-", "-", "--store", store, stdin=lines(PLAIN)), 2)
    assert told == "latent-memory: - is named twice; standard input can be read once\n"


def test_a_bad_line_keeps_everything_out(cli: Cli, filled: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_bytes(lines(PLAIN))
    bad.write_bytes(lines(PLAIN) + b"\n{oops\n" + lines(PLAIN))
    before = parsed(cli("list", "--store", filled, "--json"))
    told = one_line(cli("add", good, bad, "--store", filled), 2)
    assert told.startswith(f"latent-memory: {bad}, line 3: not JSON (")
    assert parsed(cli("list", "--store", filled, "--json")) == before


def test_skip_bad_adds_the_rest_and_reports_each(cli: Cli, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(lines(TRIP) + b"{oops\n" + lines(CAT, {"messages": []}, PLAIN))
    result = cli("add", file, "--skip-bad", "--store", store, "--embedder", "hashing", "--json")
    assert result.returncode == 0
    first, second = result.stderr.splitlines()
    assert first.startswith(f"left out: {file}, line 2: not JSON (")
    assert second == f'left out: {file}, line 4: "messages": a list of messages was expected, not empty'
    told = json.loads(result.stdout)
    assert (told["added"], told["left_out"]) == (3, 2)
    assert len(parsed(cli("list", "--store", store, "--json"))) == 3


def test_skip_bad_does_not_hide_a_missing_file(cli: Cli, store: Path, file: Path) -> None:
    told = one_line(cli("add", file, file.with_name("no.jsonl"), "--skip-bad", "--store", store), 2)
    assert "no.jsonl" in told
    assert not store.exists()


# -- recall and context -------------------------------------------------------------------------------------


def test_recall_prints_hits_best_first(cli: Cli, filled: Path) -> None:
    result = cli("recall", "flight Osaka leave", "--store", filled)
    assert (result.returncode, result.stderr) == (0, "")
    first, where, signals, *_ = result.stdout.splitlines()
    assert first.startswith(" 1  ")
    # What answers, before what asks.
    assert "Bot: The flight to Osaka leaves on 3 May at noon." in first
    assert "A trip to Osaka · trip · turn 1 · 2025-03-01 09:00" in where
    assert "meaning" in signals
    assert "words" in signals


def test_recall_json(cli: Cli, filled: Path) -> None:
    hits = parsed(cli("recall", "flight Osaka leave", "--store", filled, "--json"))
    assert [sorted(hit) for hit in hits] == [sorted([*PASSAGE_KEYS, "score", "signals"])] * len(hits)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    best = hits[0]
    assert sorted(best["signals"]) == SIGNALS
    assert best["score"] == pytest.approx(sum(best["signals"].values()), abs=1e-3)
    del best["score"], best["signals"]
    assert best == {
        "scope": "default",
        "conversation_id": "trip",
        "turn": 1,
        "role": "assistant",
        "name": "Bot",
        "text": "The flight to Osaka leaves on 3 May at noon.",
        "timestamp": "2025-03-01T09:00:00+01:00",
        "title": "A trip to Osaka",
        "start": 0,
        "end": 44,
    }


def test_recall_explains_each_score(cli: Cli, filled: Path) -> None:
    query = "what was said in March 2025 about the flight to Osaka?"
    hits = parsed(cli("recall", query, "--json", "--store", filled))
    result = cli("recall", query, "--explain", "--store", filled)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    # The text and its place, a row a signal, and the score.
    starts = [i for i, line in enumerate(lines) if not line.startswith(" " * 10)]
    assert len(starts) == len(hits)
    help_told = cli("recall", "--help").stdout
    for hit, start in zip(hits, starts, strict=True):
        rows = [line.split() for line in lines[start + 2 : start + 3 + len(hit["signals"])]]
        assert [row[0] for row in rows] == [*hit["signals"], "score"]
        told = [*hit["signals"].values(), hit["score"]]
        assert [float(row[1]) for row in rows] == pytest.approx(told, abs=0.006)
        assert not any(row[1].startswith("-0.00") for row in rows)
        assert [int(row[2].rstrip("%")) for row in rows] == pytest.approx([100 * x / hit["score"] for x in told], abs=1)
        assert len({len(line) for line in lines[start + 2 : start + 3 + len(hit["signals"])]}) == 1
        # Each is explained, where whoever asks for the table looks next.
        for name in hit["signals"]:
            assert f"\n    {name} " in help_told
    assert "time" in hits[0]["signals"]
    assert max(map(len, (line for line in lines if line.startswith(" " * 10) and "·" not in line))) < 40


@pytest.mark.parametrize("option", ["-k", "--limit"])
def test_the_number_of_hits_is_limited(cli: Cli, filled: Path, option: str) -> None:
    assert len(parsed(cli("recall", "food flight", option, "2", "--store", filled, "--json"))) == 2


def test_context_prints_the_block(cli: Cli, filled: Path) -> None:
    result = cli("context", "flight Osaka leave", "--store", filled)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("<memory>\n")
    assert result.stdout.endswith("</memory>\n")
    assert "Ana: When does our flight to Osaka leave?" in result.stdout


def test_context_json(cli: Cli, filled: Path) -> None:
    told = parsed(cli("context", "flight Osaka leave", "--budget", "200", "--store", filled, "--json"))
    assert sorted(told) == ["budget", "passages", "text", "tokens"]
    assert told["budget"] == 200
    assert 0 < told["tokens"] <= 200
    assert told["text"].startswith("<memory>\n")
    assert told["passages"]
    assert all(sorted(passage) == PASSAGE_KEYS for passage in told["passages"])


def test_a_budget_that_nothing_fits_into(cli: Cli, filled: Path) -> None:
    told = parsed(cli("context", "flight Osaka", "--budget", "1", "--store", filled, "--json"), 1)
    assert told == {"text": "", "tokens": 0, "budget": 1, "passages": []}


def test_a_budget_that_is_too_small_is_not_told_as_nothing_found(cli: Cli, filled: Path) -> None:
    told = one_line(cli("context", "flight Osaka", "--budget", "1", "--store", filled), 1)
    assert "nothing found" not in told


@pytest.mark.parametrize("command", ["recall", "context"])
def test_a_query_from_standard_input(cli: Cli, filled: Path, command: str) -> None:
    typed = parsed(cli(command, "flight Osaka leave", "--store", filled, "--json"))
    assert parsed(cli(command, "-", "--store", filled, "--json", stdin=b"flight Osaka leave\n")) == typed


@pytest.mark.parametrize("command", ["recall", "context"])
@pytest.mark.parametrize(
    ("filters", "turns"),
    [
        ([], {("trip", 0), ("trip", 1), ("trip", 2), ("cat", 0), ("cat", 1)}),
        (["--since", "2025-03-15"], {("cat", 0), ("cat", 1)}),
        (["--until", "2025-03-15"], {("trip", 0), ("trip", 1), ("trip", 2)}),
        (["--since", "2025-03-01T08:00:00Z", "--until", "2025-03-05T08:00:00Z"], {("trip", 0), ("trip", 1)}),
        (["--since", "2025-03-05T09:00:00+01:00", "--until", "2025-03-06"], {("trip", 2)}),
        (["--during", "the week of 3 March 2025"], {("trip", 2)}),
        (["--role", "assistant"], {("trip", 1), ("cat", 1)}),
        (["--role", "assistant", "--role", "user", "--conversation", "cat"], {("cat", 0), ("cat", 1)}),
        (["--conversation", "cat"], {("cat", 0), ("cat", 1)}),
        (["--conversation", "cat", "--conversation", "trip", "--role", "assistant"], {("trip", 1), ("cat", 1)}),
        (["--conversation", "trip", "--role", "user", "--since", "2025-03-02"], {("trip", 2)}),
    ],
)
def test_filters(cli: Cli, filled: Path, command: str, filters: list[str], turns: set[tuple[str, int]]) -> None:
    query = "flight Osaka hotel river cat new food mix week"
    told = parsed(cli(command, query, *filters, "--store", filled, "--json"))
    found = told if command == "recall" else told["passages"]
    places = {(passage["conversation_id"], passage["turn"]) for passage in found}
    assert places >= turns if command == "context" else places == turns


@pytest.mark.parametrize(
    "filters",
    [
        ["--since", "2030-01-01"],
        ["--until", "2020-01-01"],
        ["--role", "tool"],
        ["--conversation", "no such"],
        ["--scope", "ben"],
    ],
)
def test_nothing_found(cli: Cli, filled: Path, filters: list[str]) -> None:
    scope = "ben" if "ben" in filters else "default"
    for command in ("recall", "context"):
        result = cli(command, "flight", *filters, "--store", filled)
        assert result.stdout == ""
        assert one_line(result, 1) == f"nothing found in scope '{scope}'\n"
    assert parsed(cli("recall", "flight", *filters, "--store", filled, "--json"), 1) == []
    assert parsed(cli("context", "flight", *filters, "--store", filled, "--json"), 1)["text"] == ""


# -- show, list, scopes, stats ------------------------------------------------------------------------------


def test_show_prints_every_turn(cli: Cli, filled: Path) -> None:
    result = cli("show", "trip", "--store", filled)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "A trip to Osaka",
        "trip · planning · 2025-03-01 09:00",
        "Ana plans a trip to Osaka.",
        "",
        "  0  Ana: When does our flight to Osaka leave?",
        "  1  Bot: The flight to Osaka leaves on 3 May at noon.",
        "  2  user: Book the hotel by the river.",
    ]


def test_show_leaves_out_a_summary_that_repeats_the_turns(cli: Cli, filled: Path) -> None:
    assert cli("show", "cat", "--store", filled).stdout.splitlines() == [
        "The cat",
        "cat · conversation · 2025-04-01 10:00",
        "",
        "  0  user: My cat Biscoito refuses the new food.",
        "  1  assistant: Mix the new food with the old for a week.",
    ]


def test_a_summary_alone_is_shown_and_recalled(cli: Cli, filled: Path) -> None:
    memory = {
        "conversation_id": "tea",
        "title": "Tea",
        "timestamp": "2025-03-28T11:00:00",
        "summary": "Green tea only.",
    }
    added = cli("add", "-", "--from", "summaries", "--store", filled, stdin=json.dumps(memory).encode())
    assert added.returncode == 0
    shown = cli("show", "tea", "--store", filled).stdout
    assert shown == "Tea\ntea · conversation · 2025-03-28 11:00\nGreen tea only.\n"
    assert "summary: Green tea only." in cli("recall", "green tea", "--store", filled).stdout.splitlines()[0]


def test_show_json(cli: Cli, filled: Path) -> None:
    given: Any = TRIP
    assert parsed(cli("show", "trip", "--store", filled, "--json")) == {
        "conversation_id": "trip",
        "title": "A trip to Osaka",
        "timestamp": "2025-03-01T09:00:00+01:00",
        "type": "planning",
        "summary": "Ana plans a trip to Osaka.",
        "metadata": {"source": "phone"},
        "generated": [],
        "messages": [
            {
                "turn": i,
                "role": message["role"],
                "content": message["content"],
                "timestamp": message.get("timestamp"),
                "name": message.get("name"),
            }
            for i, message in enumerate(given["messages"])
        ],
    }


def test_show_tells_what_was_generated(cli: Cli, filled: Path) -> None:
    told = parsed(cli("show", "cat", "--store", filled, "--json"))
    assert told["generated"] == ["summary", "type"]
    assert cli("add", "-", "--store", filled, stdin=lines(PLAIN)).returncode == 0
    listed = parsed(cli("list", "--store", filled, "--json"))
    plain = next(item["conversation_id"] for item in listed if item["conversation_id"].startswith("gen-"))
    told = parsed(cli("show", plain, "--store", filled, "--json"))
    assert told["generated"] == ["conversation_id", "summary", "timestamp:file", "title", "type"]


def test_what_show_prints_can_be_added_again(cli: Cli, filled: Path, tmp_path: Path) -> None:
    note = {"conversation_id": "tea", "timestamp": "2025-03-28T11:00:00", "summary": "Green tea only.", "messages": []}
    other = {"generated": "by hand", "conversation_id": "other", "messages": [{"role": "user", "content": "Hello."}]}
    assert cli("add", "-", "--store", filled, stdin=lines(PLAIN, note, other)).returncode == 0
    copy = tmp_path / "copy"
    listed = [item["conversation_id"] for item in parsed(cli("list", "--store", filled, "--json"))]
    for conversation in listed:
        printed = cli("show", conversation, "--store", filled, "--json").stdout
        assert cli("add", "-", "--store", copy, "--embedder", "hashing", stdin=printed.encode()).returncode == 0
        assert cli("show", conversation, "--store", copy, "--json").stdout == printed
    # What somebody else calls generated is theirs.
    assert parsed(cli("show", "other", "--store", copy, "--json"))["metadata"] == {"generated": "by hand"}
    assert len(listed) == 5


@pytest.mark.parametrize(("turn", "shown"), [(0, [0, 1]), (1, [0, 1, 2]), (2, [1, 2])])
def test_show_one_turn_with_its_neighbours(cli: Cli, filled: Path, turn: int, shown: list[int]) -> None:
    told = parsed(cli("show", "trip", "--turn", turn, "--store", filled, "--json"))
    assert [message["turn"] for message in told["messages"]] == shown


@pytest.mark.parametrize(
    "arguments", [["no such"], ["trip", "--turn", "3"], ["trip", "--scope", "ben"], [""], ["TRIP"], ["%"], ["\0"]]
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_show_what_is_not_there(cli: Cli, filled: Path, arguments: list[str], as_json: list[str]) -> None:
    result = cli("show", *arguments, *as_json, "--store", filled)
    one_line(result, 1)
    assert result.stdout == ""


def test_list_newest_first(cli: Cli, filled: Path) -> None:
    result = cli("list", "--store", filled)
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first.split() == ["2025-04-01", "10:00", "cat", "2", "The", "cat"]
    assert second.split() == ["2025-03-01", "09:00", "trip", "3", "A", "trip", "to", "Osaka"]


def test_the_columns_of_a_list_stand_under_each_other(cli: Cli, filled: Path) -> None:
    long = {**CAT, "conversation_id": "x" * 73, "title": "A\ntitle", "timestamp": "2024-01-01"}
    assert cli("add", "-", "--store", filled, stdin=lines(long)).returncode == 0
    rows = cli("list", "--store", filled).stdout.splitlines()
    assert len(rows) == 3
    titles = ("The cat", "A trip to Osaka", "A title")
    assert len({row.index(title) for row, title in zip(rows, titles, strict=True)}) == 1


def test_a_list_of_nothing_says_so(cli: Cli, filled: Path) -> None:
    result = cli("list", "--store", filled, "--scope", "nope")
    assert (result.stdout, one_line(result, 1)) == ("", "no conversations in scope 'nope'\n")
    result = cli("list", "--store", filled, "--offset", 2)
    assert (result.stdout, one_line(result, 1)) == ("", "no more conversations in scope 'default'\n")


def test_list_json(cli: Cli, filled: Path) -> None:
    _, trip = parsed(cli("list", "--store", filled, "--json"))
    assert trip == {
        "conversation_id": "trip",
        "title": "A trip to Osaka",
        "timestamp": "2025-03-01T09:00:00+01:00",
        "type": "planning",
        "summary": "Ana plans a trip to Osaka.",
        "turns": 3,
    }


def test_list_by_pages(cli: Cli, filled: Path) -> None:
    def ids(*arguments: object, code: int = 0) -> list[str]:
        return [item["conversation_id"] for item in parsed(cli("list", *arguments, "--store", filled, "--json"), code)]

    assert ids("-n", 1) == ["cat"]
    assert ids("--limit", 1, "--offset", 1) == ["trip"]
    assert ids("--offset", 2, code=1) == []


def test_scopes(cli: Cli, filled: Path) -> None:
    assert cli("add", "-", "--store", filled, "--scope", "ben", stdin=lines(PLAIN)).returncode == 0
    assert parsed(cli("scopes", "--store", filled, "--json")) == {"ben": 1, "default": 2}
    assert [line.split() for line in cli("scopes", "--store", filled).stdout.splitlines()] == [
        ["1", "ben"],
        ["2", "default"],
    ]


def test_stats_json(cli: Cli, filled: Path) -> None:
    told = parsed(cli("stats", "--store", filled, "--json"))
    assert told.pop("bytes") > 0
    assert told == {
        "store": str(filled),
        "scopes": 1,
        "conversations": 2,
        "turns": 5,
        "passages": 5,
        "first": "2025-03-01T09:00:00+01:00",
        "last": "2025-04-01T10:00:00",
        "embedder": "hashing",
        "dimension": 256,
        "tuned": None,
    }


def test_stats_of_one_scope(cli: Cli, filled: Path) -> None:
    assert cli("add", "-", "--store", filled, "--scope", "ben", stdin=lines(PLAIN)).returncode == 0
    told = parsed(cli("stats", "--scope", "ben", "--store", filled, "--json"))
    assert (told["scopes"], told["conversations"], told["turns"]) == (1, 1, 1)
    told = parsed(cli("stats", "--scope", "nobody", "--store", filled, "--json"))
    assert (told["scopes"], told["conversations"], told["first"], told["last"]) == (0, 0, None, None)


def test_stats_of_the_scope_of_the_environment(cli: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_MEMORY_SCOPE", "ben")
    assert parsed(cli("stats", "--store", filled, "--json"))["conversations"] == 0
    assert parsed(cli("stats", "--store", filled, "--scope", "default", "--json"))["conversations"] == 2


def test_stats_in_words(cli: Cli, filled: Path) -> None:
    result = cli("stats", "--store", filled)
    assert (result.returncode, result.stderr) == (0, "")
    told = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (told["conversations"], told["turns"], told["embedder"]) == ("2", "5", "hashing")
    assert told["store"] == str(filled)
    assert cli("forget", "--all", "--store", filled).returncode == 0
    assert "None" not in cli("stats", "--store", filled).stdout


def test_an_emptied_memory_has_nothing_to_list(cli: Cli, filled: Path) -> None:
    assert cli("forget", "--all", "--store", filled).returncode == 0
    assert parsed(cli("list", "--store", filled, "--json"), 1) == []
    assert parsed(cli("scopes", "--store", filled, "--json"), 1) == {}
    assert parsed(cli("recall", "flight", "--store", filled, "--json"), 1) == []


# -- forget and reembed -------------------------------------------------------------------------------------


def test_forget_conversations(cli: Cli, filled: Path) -> None:
    result = cli("forget", "trip", "no such", "--store", filled)
    assert (result.returncode, result.stdout) == (0, "1 conversation forgotten\n")
    assert result.stderr == "no conversation 'no such' in scope 'default'\n"
    assert [item["conversation_id"] for item in parsed(cli("list", "--store", filled, "--json"))] == ["cat"]
    hits = parsed(cli("recall", "flight Osaka leave", "--store", filled, "--json"))
    assert {hit["conversation_id"] for hit in hits} == {"cat"}


def test_forget_json(cli: Cli, filled: Path) -> None:
    def told(*arguments: str, code: int = 0) -> tuple[int, list[str]]:
        found = parsed(cli("forget", *arguments, "--store", filled, "--json"), code)
        assert sorted(found) == ["forgotten", "not_found"]
        return found["forgotten"], found["not_found"]

    assert told("trip", "77", "trip") == (1, ["77"])
    assert told("trip", "77", code=1) == (0, ["trip", "77"])
    assert told("cat", "--scope", "ben", code=1) == (0, ["cat"])
    assert told("--all") == (1, [])
    assert told("--all", code=1) == (0, [])


@pytest.mark.parametrize("arguments", [[], ["trip", "--all"]])
def test_forget_needs_either_ids_or_all(cli: Cli, filled: Path, arguments: list[str]) -> None:
    told = one_line(cli("forget", *arguments, "--store", filled), 2)
    assert "--all" in told
    assert len(parsed(cli("list", "--store", filled, "--json"))) == 2


def test_forgotten_conversations_can_be_added_again(cli: Cli, filled: Path, file: Path) -> None:
    assert cli("forget", "--all", "--store", filled).returncode == 0
    assert parsed(cli("add", file, "--store", filled, "--json"))["added"] == 2
    assert parsed(cli("recall", "flight Osaka leave", "--store", filled, "--json"))[0]["conversation_id"] == "trip"


def test_reembed_with_the_real_embedder_and_back(cli: Cli, filled: Path) -> None:
    result = cli("reembed", "--embedder", "minilm", "--store", filled)
    assert (result.returncode, result.stdout, result.stderr) == (0, "5 passages embedded with minilm\n", "")
    told = parsed(cli("stats", "--store", filled, "--json"))
    assert (told["embedder"], told["dimension"]) == ("all-MiniLM-L6-v2-int8", 384)
    hits = parsed(cli("recall", "what does my pet eat?", "-k", 1, "--store", filled, "--json"))
    assert hits[0]["conversation_id"] == "cat"
    told = parsed(cli("reembed", "--embedder", "hashing", "--store", filled, "--json"))
    assert told == {"passages": 5, "embedder": "hashing"}
    assert parsed(cli("recall", "flight Osaka leave", "--store", filled, "--json"))[0]["turn"] == 1


# -- scopes are walls ---------------------------------------------------------------------------------------


def test_scopes_are_walls(cli: Cli, filled: Path) -> None:
    other = {**TRIP, "title": "Not Osaka", "messages": [{"role": "user", "content": "My secret is a flight."}]}
    assert cli("add", "-", "--store", filled, "--scope", "ben", stdin=lines(other)).returncode == 0
    for scope, title in (("default", "A trip to Osaka"), ("ben", "Not Osaka")):
        at = ("--scope", scope, "--store", filled)
        assert {hit["scope"] for hit in parsed(cli("recall", "secret flight", *at, "--json"))} == {scope}
        block = parsed(cli("context", "secret flight", *at, "--json"))
        assert {passage["scope"] for passage in block["passages"]} == {scope}
        assert ("secret" in block["text"]) == (scope == "ben")
        assert parsed(cli("show", "trip", *at, "--json"))["title"] == title
    assert parsed(cli("forget", "--all", "--scope", "ben", "--store", filled, "--json"))["forgotten"] == 1
    assert len(parsed(cli("list", "--store", filled, "--json"))) == 2


def test_the_scope_from_the_environment(cli: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_MEMORY_SCOPE", "ben")
    assert parsed(cli("list", "--store", filled, "--json"), 1) == []
    assert len(parsed(cli("list", "--scope", "default", "--store", filled, "--json"))) == 2


@pytest.mark.parametrize("scope", ["Größe 你好 🦊", "a/b/../c", "'; DROP TABLE scopes; --", "x" * 10_000])
def test_any_text_names_a_scope(cli: Cli, store: Path, file: Path, scope: str) -> None:
    assert cli("add", file, "--scope", scope, "--store", store, "--embedder", "hashing").returncode == 0
    assert parsed(cli("scopes", "--store", store, "--json")) == {scope: 2}
    assert parsed(cli("recall", "flight", "--scope", scope, "--store", store, "--json"))[0]["scope"] == scope
    assert sorted(path.name for path in store.parent.iterdir()) == ["store", "talk.jsonl"]


# -- where the store is -------------------------------------------------------------------------------------


def test_the_store_from_the_environment(cli: Cli, store: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_MEMORY_STORE", str(store))
    assert cli("add", file, "--embedder", "hashing").returncode == 0
    assert (store / "memory.sqlite").is_file()
    assert len(parsed(cli("list", "--json"))) == 2
    other = store.with_name("other")
    assert str(other) in one_line(cli("list", "--store", other), 2)


def test_the_store_by_default(cli: Cli, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda name, **_: str(tmp_path / name))
    assert cli("add", file, "--embedder", "hashing").returncode == 0
    assert (tmp_path / "latent-memory" / "memory" / "memory.sqlite").is_file()


def test_a_store_in_directories_that_are_not_there_yet(cli: Cli, store: Path, file: Path) -> None:
    deep = store / "a b" / "größe"
    assert cli("add", file, "--store", deep, "--embedder", "hashing").returncode == 0
    assert len(parsed(cli("list", "--store", deep, "--json"))) == 2


# -- the real embedder --------------------------------------------------------------------------------------


def test_the_default_embedder(cli: Cli, store: Path, file: Path) -> None:
    assert cli("add", file, "--store", store).returncode == 0
    assert parsed(cli("stats", "--store", store, "--json"))["embedder"] == "all-MiniLM-L6-v2-int8"
    (hit,) = parsed(cli("recall", "what do we feed the kitten?", "-k", 1, "--store", store, "--json"))
    assert hit["conversation_id"] == "cat"


def test_demo(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda *_, **__: str(tmp_path / "never"))
    keep = tmp_path / "kept"
    result = cli("demo", "--keep", keep)
    assert (result.returncode, result.stderr) == (0, "")
    count = len(EXAMPLES.read_bytes().splitlines())
    assert result.stdout.startswith(f"Adding {count} example conversations (")
    assert result.stdout.count("\n? ") == 5
    assert "<memory>\n" in result.stdout
    assert "latent-memory recall" in result.stdout
    assert not (tmp_path / "never").exists()
    assert parsed(cli("stats", "--store", keep, "--json"))["conversations"] == count
    next_ = [shlex.split(line) for line in result.stdout.partition("Try next:\n")[2].splitlines()]
    assert [command[1] for command in next_] == ["recall", "context", "show"]
    for _, *arguments in next_:
        assert cli(*arguments).returncode == 0


def test_a_demo_that_cannot_be_kept(cli: Cli, file: Path) -> None:
    result = cli("demo", "--keep", file)
    assert result.stdout == ""
    assert str(file) in one_line(result, 2)


# -- use ----------------------------------------------------------------------------------------------------


def test_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert result.returncode == 0
    for command in ("add", "recall", "context", "show", "list", "scopes", "stats", "forget", "reembed", "tune", "demo"):
        assert f" {command} " in result.stdout
        told = cli(command, "--help")
        assert told.returncode == 0
        assert "https://github.com/latent-memory/latent-memory/tree/main/docs\n" in told.stdout
        assert ".md" not in told.stdout
    assert "..." not in result.stdout.partition("Commands:")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["remember"],
        ["add"],
        ["recall"],
        ["show"],
        ["reembed"],
        ["recall", "a", "--nonsense"],
        ["recall", "a", "b"],
        ["recall", "a", "-k", "many"],
        ["context", "a", "--budget", "0"],
        ["list", "-n", "0"],
        ["list", "--offset", "-1"],
        ["show", "a", "--turn", "-1"],
        ["recall", "a", "--rerank-among", "0"],
        ["tune", "--seconds", "0"],
        ["tune", "a"],
    ],
    ids=" ".join,
)
def test_bad_use_has_exit_code_2(cli: Cli, store: Path, arguments: list[str]) -> None:
    result = cli(*arguments, *(("--store", store) if arguments[1:] else ()))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not store.exists()


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_is_told_in_one_line(cli: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentMemory, "recall", interrupted)
    told = one_line(cli("recall", "flight", "--store", filled), 130)
    assert told == "stopped\n"


def test_an_interrupted_reembed_keeps_the_old_vectors(cli: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentMemory, "reembed", interrupted)
    told = one_line(cli("reembed", "--embedder", "minilm", "--store", filled), 130)
    assert told == "stopped; the memory still has its old vectors; run it again to finish\n"


# -- convert ------------------------------------------------------------------------------------------------


def test_convert_tells_how_much_it_has_written(cli: Cli, filled: Path, tmp_path: Path) -> None:
    whole, summaries = tmp_path / "x.pkl", tmp_path / "x.json"
    result = cli("convert", filled, whole)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"5 passages written to {whole}\n", "")
    result = cli("convert", filled, summaries)
    assert result.stdout == f"2 summaries written to {summaries} (without turns and vectors)\n"
    told = parsed(cli("convert", filled, whole, "--overwrite", "--json"))
    assert told == {"passages": 5, "left_out": 0, "destination": str(whole)}
    told = parsed(cli("convert", filled, summaries, "--overwrite", "--json"))
    assert told == {"summaries": 2, "left_out": 0, "destination": str(summaries)}


def test_convert_tells_that_it_writes_all_scopes(cli: Cli, filled: Path, tmp_path: Path) -> None:
    assert cli("add", "-", "--store", filled, "--scope", "ben", stdin=lines(PLAIN)).returncode == 0
    assert cli("convert", filled, tmp_path / "x.pkl").stdout.startswith("6 passages of 2 scopes written to ")


def test_convert_of_a_scope_that_holds_nothing(
    cli: Cli, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    told = one_line(cli("convert", filled, path, "--scope", "ben"), 1)
    assert told == "no conversations in scope 'ben'; nothing was written\n"
    told = parsed(cli("convert", filled, path, "--scope", "ben", "--json"), 1)
    assert told == {"summaries": 0, "left_out": 0, "destination": None}
    monkeypatch.setenv("LATENT_MEMORY_SCOPE", "ben")
    one_line(cli("convert", filled, path), 1)
    assert not path.exists()
    assert cli("convert", filled, path, "--scope", "default").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x.json", "--reembed"], "--reembed: a file that ends in .json gets summaries, without vectors"),
        (["x.pkl", "--scope", "ben"], "--scope: goes with summaries alone"),
        (["x.pkl", "--embedder", "hashing"], "--embedder: goes with --reembed alone"),
        (["x.pkl", "--reembed", "--embedder", "nonsense"], "embedder 'nonsense' is unknown"),
        (["store", "--overwrite", "--format", "csv_json"], "store: is the memory that is to be converted"),
        (["talk.jsonl"], "talk.jsonl: already exists; name another place, or give --overwrite"),
        (["~/there.pkl"], "there.pkl: already exists"),
        (["x" * 300 + ".pkl"], "File name too long"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_convert_refuses(
    cli: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(filled.parent)
    monkeypatch.setenv("HOME", str(filled.parent))
    monkeypatch.setenv("USERPROFILE", str(filled.parent))
    there = filled.with_name("there.pkl")
    there.write_bytes(b"")
    before = sorted(filled.parent.iterdir())
    assert told in one_line(cli("convert", filled, *arguments), 2)
    assert sorted(filled.parent.iterdir()) == before
    assert there.read_bytes() == b""


def test_convert_of_what_is_no_memory(cli: Cli, tmp_path: Path, file: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("nosuch", "empty"):
        told = one_line(cli("convert", tmp_path / source, tmp_path / "x.pkl"), 2)
        assert told == f"latent-memory: no memory at {tmp_path / source}\n"
    told = one_line(cli("convert", file, tmp_path / "x.pkl"), 2)
    assert told.endswith(f"is a file, and no memory; add it to one with: latent-memory add {file}\n")


def test_convert_with_another_embedder(cli: Cli, filled: Path, tmp_path: Path) -> None:
    for place in (("x.h5",), ("copy", "--format", "sqlite")):
        path = tmp_path / place[0]
        result = cli("convert", filled, path, *place[1:], "--reembed")
        assert (result.returncode, result.stdout) == (0, f"5 passages written to {path}\n")
        assert parsed(cli("stats", "--store", path, "--json"))["embedder"] == "all-MiniLM-L6-v2-int8"
    assert parsed(cli("stats", "--store", filled, "--json"))["embedder"] == "hashing"


def test_convert_that_fails_or_is_stopped_while_it_embeds_changes_nothing(
    cli: Cli, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pkl"
    assert cli("convert", filled, path).returncode == 0
    before, there = path.read_bytes(), sorted(tmp_path.iterdir())

    def fails(*_: object, **__: object) -> None:
        raise EmbedderUnavailableError("the server does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(LatentMemory, "reembed", fails)
        assert "does not answer" in one_line(cli("convert", filled, path, "--overwrite", "--reembed"), 2)
        patched.setattr(LatentMemory, "reembed", interrupted)
        told = one_line(cli("convert", filled, path, "--overwrite", "--reembed"), 130)
    assert told == f"stopped; nothing was written to {path}; run it again\n"
    assert (path.read_bytes(), sorted(tmp_path.iterdir())) == (before, there)


@pytest.mark.parametrize("name", ["x.pkl", "x.h5", "x.json", "x.yaml"])
def test_convert_shows_how_far_it_is_to_the_end(
    cli: Cli, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ways: list[tuple[str, int, list[int]]] = []

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        ways.append((what, total, []))
        yield ways[-1][2].append

    monkeypatch.setattr("latent_memory.cli.converting.progress", progress)
    assert cli("convert", filled, tmp_path / name).returncode == 0
    ((what, total, at),) = ways
    assert (what, total) == ("writing", 5 if name in ("x.pkl", "x.h5") else 2)
    assert at == sorted(at)
    assert at[-1] == total


# -- the console script -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> str:
    found = shutil.which("latent-memory", path=str(Path(sys.executable).parent))
    assert found is not None
    return found


def test_the_console_script(script: str, filled: Path) -> None:
    def run(*arguments: str, stdin: bytes = b"") -> CompletedProcess[bytes]:
        return subprocess.run([script, *arguments, "--store", str(filled)], input=stdin, capture_output=True)

    found = run("recall", "-", "--json", stdin=b"flight Osaka leave")
    assert (found.returncode, found.stderr) == (0, b"")
    assert json.loads(found.stdout)[0]["turn"] == 1
    assert run("recall", "flight", "--scope", "ben").returncode == 1
    bad = run("add", "-", stdin=b"{oops")
    assert (bad.returncode, bad.stdout) == (2, b"")
    assert bad.stderr.startswith(b"latent-memory: standard input, line 1: not JSON (")
    assert bad.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_text_can_be_printed_on_any_terminal(script: str, store: Path, encoding: str) -> None:
    said = "Osaka 大阪 🦊 größe"
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(Conversation("c", [Turn("user", said)], timestamp=datetime(2025, 3, 1, tzinfo=UTC)))
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    for command in (["recall", "Osaka"], ["show", "c"], ["context", "Osaka"], ["show", "c", "--json"]):
        result = subprocess.run([script, *command, "--store", str(store)], capture_output=True, env=env)
        assert result.returncode == 0, result.stderr.decode(errors="replace")
        assert result.stderr == b""
        assert b"Osaka" in result.stdout
        if "--json" in command:
            assert json.loads(result.stdout.decode(encoding))["messages"][0]["content"] == said


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way on Windows")
@pytest.mark.parametrize("count", [1, 3_000])
def test_a_reader_that_leaves_early_is_no_error(script: str, store: Path, count: int) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(Conversation(f"c{i}", [Turn("user", f"number {i}")], title="t" * 60) for i in range(count))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [script, "list", "-n", "5000", "--store", str(store)]
        result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert result.stderr == b""
    assert result.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["--help"], ["recall", "flight"], ["show", "nope"]]
)
def test_output_that_cannot_be_written_is_one_line(
    script: str, filled: Path, arguments: list[str], stream: str
) -> None:
    import resource

    # A file that has reached the most that a process may write to one.
    most = 1 << 26
    full = filled.with_name("full")
    with full.open("wb") as output:
        output.truncate(most)
        output.seek(most)
        result = subprocess.run(
            [script, *arguments],
            env={**os.environ, "LATENT_MEMORY_STORE": str(filled)},
            stdout=output if stream == "stdout" else subprocess.PIPE,
            stderr=output if stream == "stderr" else subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        )
    if stream == "stdout" and arguments[0] != "show":
        assert result.stderr == "latent-memory: cannot write to standard output: File too large\n"
        assert result.returncode == 2
    else:
        # Nothing is said twice, or in another place.
        assert "latent-memory:" not in (result.stdout or "")
        assert result.returncode == (0 if arguments[0] != "show" else 1 if stream == "stdout" else 2)


@pytest.mark.skipif(os.name == "nt", reason="there is no such shell")
@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("list >&-", 0, ""),
        ("show nope 2>&-", 1, ""),
        ("add no.jsonl 2>&-", 2, ""),
        ("add - <&-", 2, "latent-memory: standard input: closed; there is nothing to read\n"),
        ("recall - <&-", 2, "latent-memory: standard input: closed; there is nothing to read\n"),
        ("add talk.jsonl <&- >&- 2>&-", 0, ""),
    ],
)
def test_closed_streams(script: str, filled: Path, command: str, code: int, told: str) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", f"{shlex.quote(script)} {command}"],
        cwd=filled.parent,
        env={**os.environ, "LATENT_MEMORY_STORE": str(filled)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (code, "", told)
    with LatentMemory.open(filled) as memory:
        assert memory.stats().conversations == 2


def test_what_one_process_adds_the_next_finds(script: str, filled: Path) -> None:
    with LatentMemory.open(filled) as memory:
        assert not any("volcanoes" in hit.passage.text for hit in memory.recall("volcanoes"))
        command = [script, "add", "-", "--store", str(filled)]
        subprocess.run(command, input=lines(PLAIN), check=True, capture_output=True)
        assert "volcanoes" in memory.recall("volcanoes")[0].passage.text


# -- a store whose embedder has no name to load it by -------------------------------------------------------


@pytest.fixture
def homemade(store: Path) -> Path:
    class Homemade(HashingEmbedder):
        name = "my own"

    with LatentMemory.open(store, embedder=Homemade()) as memory:
        memory.add(Conversation("c", [Turn("user", "I fly to Osaka in May.")]))
    return store


@pytest.mark.parametrize("command", [["list"], ["show", "c"], ["scopes"], ["stats"], ["forget", "c"]], ids=" ".join)
def test_what_needs_no_embedder_works_with_any_store(cli: Cli, homemade: Path, command: list[str]) -> None:
    result = cli(*command, "--store", homemade)
    assert (result.returncode, result.stderr) == (0, "")


def test_any_store_can_be_given_another_embedder(cli: Cli, homemade: Path) -> None:
    assert parsed(cli("reembed", "--embedder", "hashing", "--store", homemade, "--json"))["passages"] == 1
    assert parsed(cli("recall", "Osaka", "--store", homemade, "--json"))[0]["conversation_id"] == "c"
