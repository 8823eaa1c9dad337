"""Several processes on one store, and processes that are killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latent_memory import Conversation, LatentMemory, Turn

KILLS = 20

ADDER = """
import sys
from latent_memory import Conversation, LatentMemory, Turn
store, prefix, count, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
with LatentMemory.open(store, embedder="hashing") as memory:
    for start in range(0, count, batch):
        ids = [f"{prefix}-{i}" for i in range(start, min(start + batch, count))]
        memory.add(
            Conversation(i, [Turn("user", f"{word} begins"), Turn("assistant", f"{word} ends")])
            for i, word in ((i, i.replace("-", "x")) for i in ids)
        )
        print("\\n".join(ids), flush=True)
"""


def start(store: Path, prefix: str, count: int, batch: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", ADDER, str(store), prefix, str(count), str(batch)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(conversation: Conversation | None) -> list[str]:
    assert conversation is not None
    return [turn.text for turn in conversation.turns]


def test_what_was_reported_survives_kill_9(store: Path) -> None:
    """Twenty processes add until they are killed at a random moment; nothing they reported may be missing."""
    chance = random.Random(0)
    reported: list[str] = []
    for round_ in range(KILLS):
        process = start(store, f"r{round_}", 100_000, chance.choice((1, 7, 60, 400)))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.05, 0.9))
        process.kill()
        out, err = process.communicate()
        assert err == ""
        # A line that was cut off by the kill was not reported.
        reported += [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
    reported = [line.strip() for line in reported]
    assert len(reported) > 200
    with LatentMemory.open(store) as memory:
        for identifier in reported:
            word = identifier.replace("-", "x")
            assert said(memory.get(identifier)) == [f"{word} begins", f"{word} ends"]
        for identifier in chance.sample(reported, min(len(reported), 200)):
            hits = memory.recall(f"{identifier.replace('-', 'x')} begins", k=1)
            assert hits[0].passage.conversation_id == identifier
        # A conversation is there whole or not at all, also those whose report was lost.
        stats = memory.stats()
        assert stats.turns == stats.passages == 2 * stats.conversations >= 2 * len(reported)
        check = memory._store.database.row("PRAGMA integrity_check")
        assert check[0] == "ok"


def test_what_one_process_adds_or_forgets_the_next_recall_of_another_sees(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as here:
        here.add(Conversation("mine", [Turn("user", "the lighthouse keeper")]))
        assert len(here.recall("lighthouse")) == 1
        process = start(store, "theirs", 3, 1)
        _, err = process.communicate(timeout=60)
        assert err == ""
        assert [h.passage.conversation_id for h in here.recall("theirsx1 begins", k=1)] == ["theirs-1"]
        told = subprocess.run(
            [Path(sys.executable).with_name("latent-memory"), "forget", "theirs-1", "--store", store],
            check=True,
            capture_output=True,
            text=True,
        )
        assert told.stdout == "1 conversation forgotten\n"
        hits = here.recall("theirsx1 begins", k=10)
        assert "theirs-1" not in {hit.passage.conversation_id for hit in hits}


def test_forgetting_reaches_indexes_on_disk_that_another_process_has_open(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as writer:
        writer.add(Conversation(f"c{i}", [Turn("user", f"topic{i} discussed at length")]) for i in range(1_500))
    with (
        LatentMemory.open(store) as here,
        LatentMemory.open(store) as there,
    ):
        for memory in (here, there):
            assert memory.recall("topic700", k=1)[0].passage.conversation_id == "c700"
        there.forget(["c700", "c701"])
        for memory in (here, there):
            found = {hit.passage.conversation_id for hit in memory.recall("topic700 discussed", k=1_500)}
            assert "c700" not in found
            assert len(found) > 150


@pytest.mark.parametrize("batch", [1, 25])
def test_processes_that_write_at_once_wait_for_each_other(store: Path, batch: int) -> None:
    processes = [start(store, f"p{number}", 150, batch) for number in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    with LatentMemory.open(store) as memory:
        assert memory.stats().conversations == 600
        for number in range(4):
            assert memory.recall(f"p{number}x149 ends", k=1)[0].passage.conversation_id == f"p{number}-149"


def test_two_processes_add_the_same_conversations(store: Path) -> None:
    processes = [start(store, "same", 200, 5) for _ in range(3)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    with LatentMemory.open(store) as memory:
        stats = memory.stats()
        assert (stats.conversations, stats.turns, stats.passages) == (200, 400, 400)


def test_many_processes_create_the_store_at_once(store: Path) -> None:
    processes = [start(store, f"p{number}", 1, 1) for number in range(8)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    with LatentMemory.open(store) as memory:
        assert memory.stats().conversations == 8
