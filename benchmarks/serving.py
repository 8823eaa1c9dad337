"""What the server adds to the memory: recalls a second over HTTP, adds that survive, and what a chat waits longer.

The server, the load and the upstream are processes of their own, on the loopback; they share the cores, so that what a
client costs is taken from what is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from common import QUESTIONS, Report, chat, parser
from latent_memory import LatentMemory

PASSAGES = 10_000
SCOPE = "default"
JSON = {"Content-Type": "application/json"}


# -- the server -----------------------------------------------------------------------------------------------


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]


@contextmanager
def served(store: Path, *more: str) -> Iterator[Server]:
    """Run `latent-memory serve` on a free port until the block ends."""
    # No limit of rates: the load is one caller.
    command = [
        sys.executable,
        "-c",
        "from latent_memory.cli import main; main()",
        "serve",
        "--port",
        "0",
        "--rate",
        "0",
    ]
    process = subprocess.Popen([*command, "--store", str(store), *more], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if " at http://" in line:
            break
    else:
        raise SystemExit(f"the server did not start:\n{''.join(lines)}")
    url = line.split(" at ")[1].split()[0]
    # Somebody has to read its log, or the pipe fills.
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        while ask(url, "GET", "/readyz")[0] != 200:
            time.sleep(0.05)
        yield Server(url, process)
    finally:
        process.terminate()
        process.wait(60)


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)


def ask(url: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    connection = connect(url)
    try:
        return told(connection, method, path, body)
    finally:
        connection.close()


def told(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, Any]:
    connection.request(method, path, None if body is None else json.dumps(body).encode(), JSON)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read() or b"null")


# -- the load, in a process of its own ------------------------------------------------------------------------


@dataclass
class Load:
    """What clients saw: seconds of each request, and what was acknowledged."""

    recalls: list[float] = field(default_factory=list)
    adds: list[float] = field(default_factory=list)
    acknowledged: dict[str, str] = field(default_factory=dict)
    busy: int = 0


def run_load(url: str, *, recalling: int, adding: int, seconds: float, prefix: str) -> Load:
    """Let so many clients recall, and so many add, as fast as each is answered."""
    load, end = Load(), time.monotonic() + seconds

    def recall(number: int, connection: http.client.HTTPConnection) -> None:
        question = random.Random(f"{number} {len(load.recalls)}").choice(QUESTIONS)
        began = time.perf_counter()
        status, hits = told(connection, "POST", "/v1/memory/recall", {"query": question, "k": 10})
        if status == 503:
            load.busy += 1
        elif status != 200:
            raise SystemExit(f"recall: {status} {hits}")
        else:
            load.recalls.append(time.perf_counter() - began)

    def add(number: int, connection: http.client.HTTPConnection) -> None:
        name = f"{prefix}-{number}-{len(load.adds)}-{time.monotonic_ns()}"
        text = f"Note {name}: the {random.choice(_THINGS)} stands beside the {random.choice(_THINGS)}."
        body = {"conversation_id": name, "messages": [{"role": "user", "content": text}]}
        began = time.perf_counter()
        status, report = told(connection, "POST", "/v1/memory/add", body)
        if status != 200:
            raise SystemExit(f"add: {status} {report}")
        load.adds.append(time.perf_counter() - began)
        load.acknowledged[name] = text

    def client(number: int, work: Callable[[int, http.client.HTTPConnection], None]) -> None:
        connection = connect(url)
        try:
            while time.monotonic() < end:
                work(number, connection)
        except (OSError, http.client.HTTPException):
            # The server was killed; what it had acknowledged is known.
            pass
        finally:
            connection.close()

    jobs = [(number, recall) for number in range(recalling)] + [(number, add) for number in range(adding)]
    with ThreadPoolExecutor(len(jobs)) as clients:
        for done in [clients.submit(client, *job) for job in jobs]:
            done.result()
    return load


_THINGS = ("boat", "piano", "ladder", "oven", "lamp", "mirror", "bicycle", "clock", "garden chair", "telescope")


@contextmanager
def loading(url: str, **how: Any) -> Iterator[Callable[[], Load]]:
    """Run a load in another process; call what is yielded to wait for what became of it."""
    command = [sys.executable, __file__, "--load", json.dumps({"url": url} | how)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def result() -> Load:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit("the load failed")
        return Load(**json.loads(out))

    try:
        yield result
    finally:
        process.kill()
        process.wait()


def load(url: str, **how: Any) -> Load:
    with loading(url, **how) as result:
        return result()


# -- recalls --------------------------------------------------------------------------------------------------


def in_process(store: Path, seconds: float) -> tuple[float, float]:
    """Return recalls a second from as many threads as there are cores, and the median of one alone, in seconds."""
    with LatentMemory.open(store) as memory:
        for question in QUESTIONS:
            memory.recall(question)
        alone = [clock(partial(memory.recall, question)) for question in QUESTIONS * 5]
        end, count = time.monotonic() + seconds, 0

        def work(number: int) -> int:
            chance, done = random.Random(number), 0
            while time.monotonic() < end:
                memory.recall(chance.choice(QUESTIONS))
                done += 1
            return done

        threads = os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:
            count = sum(pool.map(work, range(threads)))
        return count / seconds, median(alone)


def clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def recalling(report: Report, store: Path, seconds: float, rounds: int) -> None:
    """Compare recalls through the server with recalls in a process, in turns: the machine may be busy at times."""
    rates: list[float] = []
    ratios: list[float] = []
    eights: list[Load] = []
    singles: list[Load] = []
    crowds: list[Load] = []
    for _ in range(rounds):
        inside, _ = in_process(store, seconds)
        with served(store) as server:
            load(server.url, recalling=2, adding=0, seconds=1, prefix="warm")
            singles.append(load(server.url, recalling=1, adding=0, seconds=seconds, prefix="a"))
            eights.append(load(server.url, recalling=8, adding=0, seconds=seconds, prefix="b"))
            crowds.append(load(server.url, recalling=64, adding=0, seconds=seconds, prefix="c"))
        rates.append(inside)
        ratios.append(len(eights[-1].recalls) / seconds / inside)
    report.add("recalls/s in a process, a thread a core", median(rates), "/s", "higher")
    for name, loads in (("1 client", singles), ("8 clients", eights), ("64 clients", crowds)):
        bar = name == "8 clients"
        rate = median(len(each.recalls) / seconds for each in loads)
        report.add(f"recalls/s through the server, {name}", rate, "/s", "higher", 120 if bar else None)
        times = [1000 * time for each in loads for time in each.recalls]
        report.add(f"recall through the server, {name}, p50", float(np.percentile(times, 50)), "ms", "lower")
        p99 = float(np.percentile(times, 99))
        report.add(f"recall through the server, {name}, p99", p99, "ms", "lower", 250 if bar else None)
    report.add("recalls/s: the server with 8 clients / in a process", median(ratios), "x", "higher", 0.6)
    report.add("requests refused as too many at once", sum(each.busy for each in crowds), "", "lower", 0)


# -- nothing lost ---------------------------------------------------------------------------------------------


def missing(url: str, acknowledged: dict[str, str]) -> int:
    """Return how many acknowledged adds are not there, word for word."""
    connection = connect(url)
    lost = 0
    for name, text in acknowledged.items():
        status, found = told(connection, "GET", f"/v1/memory/conversations/{quote(name, safe='')}")
        lost += not (status == 200 and [turn["content"] for turn in found["messages"]] == [text])
    return lost


def not_recalled(url: str, acknowledged: dict[str, str], sample: int) -> int:
    """Return how many of a sample of acknowledged adds are not the first hit for what they say."""
    connection = connect(url)
    names = random.Random(0).sample(sorted(acknowledged), min(sample, len(acknowledged)))
    lost = 0
    for name in names:
        _, found = told(connection, "POST", "/v1/memory/recall", {"query": acknowledged[name], "k": 1})
        lost += not (found["hits"] and found["hits"][0]["conversation_id"] == name)
    return lost


def mixed(report: Report, store: Path, seconds: float) -> None:
    with served(store) as server:
        both = load(server.url, recalling=4, adding=4, seconds=seconds, prefix="mixed")
        report.add("mixed: adds/s, 4 clients beside 4 that recall", len(both.adds) / seconds, "/s", "higher")
        report.add("mixed: recalls/s", len(both.recalls) / seconds, "/s", "higher")
        report.add("mixed: add, p99", 1000 * float(np.percentile(both.adds, 99)), "ms", "lower")
        report.add("mixed: recall, p99", 1000 * float(np.percentile(both.recalls, 99)), "ms", "lower")
        report.add(
            f"mixed: of {len(both.adds):,} acknowledged adds, lost",
            missing(server.url, both.acknowledged),
            "",
            "lower",
            0,
        )
        lost = not_recalled(server.url, both.acknowledged, 500)
        report.add("mixed: of 500 of them, not recalled first", lost, "", "lower", 0)


def killed(report: Report, store: Path, rounds: int, seconds: float) -> None:
    """Kill the server while it works, `rounds` times; look for what it had acknowledged after each restart."""
    acknowledged: dict[str, str] = {}
    for number in range(rounds):
        with (
            served(store) as server,
            loading(server.url, recalling=2, adding=6, seconds=60, prefix=f"k{number}") as result,
        ):
            time.sleep(1 + seconds * random.Random(number).random())
            server.process.kill()
            acknowledged |= result().acknowledged
    with served(store) as server:
        lost = missing(server.url, acknowledged)
    report.add(f"killed {rounds} times: of {len(acknowledged):,} acknowledged adds, lost", lost, "", "lower", 0)


# -- what a chat waits longer ---------------------------------------------------------------------------------

_UPSTREAM = """
import json, socket, uvicorn

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for i, word in enumerate(("It", " is", " a", " boat", ".")):
        delta = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
        event = f"data: {json.dumps(delta)}\\n\\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\\n\\n"})

listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).run([listening])
"""


@contextmanager
def upstream() -> Iterator[str]:
    """Run a server that answers every chat at once."""
    process = subprocess.Popen([sys.executable, "-c", _UPSTREAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()


def first_byte(connection: http.client.HTTPConnection, path: str, question: str, number: int) -> float:
    """Return the seconds to the first byte of a streamed answer; the whole is read."""
    # Each is a new conversation, so that what is asked is not stored yet.
    asked = f"{question} (I ask for the {number}th time.)"
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": asked}]}
    began = time.perf_counter()
    connection.request("POST", path, json.dumps(body).encode(), JSON)
    answer = connection.getresponse()
    answer.read(1)
    seconds = time.perf_counter() - began
    answer.read()
    if answer.status != 200:
        raise SystemExit(f"chat: {answer.status}")
    return seconds


def chatting(report: Report, store: Path, count: int) -> None:
    """Compare the time to the first byte with and without the proxy before the same upstream, one after the other."""
    alone: list[float] = []
    remembered: list[float] = []
    with upstream() as base, served(store, "--upstream", base) as server:
        direct, through = connect(base), connect(server.url)
        for number in range(-5, count):
            question = QUESTIONS[number % len(QUESTIONS)]
            a = first_byte(direct, "/v1/chat/completions", question, number)
            b = first_byte(through, "/v1/chat/completions", question, number)
            if number >= 0:
                alone.append(1000 * a)
                remembered.append(1000 * b)
    more = [b - a for a, b in zip(alone, remembered, strict=True)]
    report.add("chat: first byte from the upstream alone, p50", median(alone), "ms", "lower")
    report.add("chat: first byte through the proxy, p50", median(remembered), "ms", "lower")
    report.add("chat: what the proxy adds, p50", median(more), "ms", "lower", 30)
    report.add("chat: what the proxy adds, p99", float(np.percentile(more, 99)), "ms", "lower")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--load", help=argparse.SUPPRESS)
    options.add_argument("--only", choices=("recall", "mixed", "kill", "chat"), help="one part of it")
    given = options.parse_args(arguments)
    if given.load:
        json.dump(run_load(**json.loads(given.load)).__dict__, sys.stdout)
        return
    quick, report = given.quick, Report(given.json)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        store = Path(temporary) / "memory"
        with LatentMemory.open(store) as memory:
            # A quick run has fewer: adding them takes longer than all that is measured.
            memory.add(chat(1_000 if quick else PASSAGES, seed=2), SCOPE)
            report.add("passages", memory.stats().passages, "", "higher")
        if given.only in (None, "recall"):
            recalling(report, store, 2 if quick else 10, 1 if quick else 3)
        if given.only in (None, "chat"):
            chatting(report, store, 40 if quick else 400)
        if given.only in (None, "mixed"):
            mixed(report, store, 5 if quick else 180)
        if given.only in (None, "kill"):
            killed(report, store, 1 if quick else 10, 1 if quick else 6)
    report.write()


if __name__ == "__main__":
    main()
