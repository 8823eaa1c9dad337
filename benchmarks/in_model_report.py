"""What `in_model.py` has measured -> means, shares of the gain with intervals, tables and the plot.

Pure functions; knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import Report

RESAMPLES = 5_000


@dataclass(frozen=True)
class Row:
    """What was measured of one question, one way, and one size of memory.

    Attributes:
        nll: of the gold answer, nats a token; None in a row of times.
        memory_tokens: how many tokens the context has as text.
        seconds: to the first token; read: tokens run through the model for it; length: positions of the whole prompt.
        apart, same: of an exact prefix, the largest difference of a logit, and whether the greedy tokens are the same.
    """

    key: str
    scope: str
    way: str
    size: int
    nll: float | None
    f1: float | None = None
    said: str | None = None
    memory_tokens: int | None = None
    seconds: float | None = None
    read: int | None = None
    length: int | None = None
    apart: float | None = None
    same: bool | None = None
    bytes_per_token: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def read(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [Row(**{"nll": None} | json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def report(rows: Sequence[Row], file: Path | None) -> None:
    out = Report(file)
    for row in rows:
        if row.way == "unrelated lora":
            before = next(r.nll for r in rows if r.way == "unrelated none" and r.key == row.key)
            assert before is not None
            assert row.nll is not None
            out.add(f"lora of {row.scope}, {row.key}: NLL more than without", row.nll - before, "nats", "lower", 0)
    for size in sorted({row.size for row in rows if row.size}):
        at = [row for row in rows if row.size == size]
        print(f"\n{size:,} tokens of memory")
        print(
            f"{'way':<26}{'questions':>10}{'NLL':>8}{'against none':>24}{'share':>7} {'interval':<16}"
            f"{'F1':>6}{'seconds':>9}{'faster':>8}{'read':>7}"
        )
        for way in dict.fromkeys(row.way for row in at if not row.way.startswith("restart")):
            line(at, way, out, size)
    exact = [row for row in rows if row.apart is not None]
    if exact:
        out.add("kv exact: largest difference of a logit", max(row.apart or 0 for row in exact), "", "lower", 1e-4)
        share = 100 * sum(bool(row.same) for row in exact) / len(exact)
        out.add("kv exact: greedy answers that are the same", share, "%", "higher", 100)
    for row in rows:
        if row.way.startswith("restart"):
            bar = 0.2 if "8-bit" in row.way else None
            out.add(f"{row.way}: loading {row.length:,} tokens", row.seconds or 0, "s", "lower", bar)
            out.add(f"{row.way}: stored", (row.bytes_per_token or 0) / 1000, "kB a token", "lower")
    out.write()


def line(rows: Sequence[Row], way: str, out: Report, size: int) -> None:
    nll = paired(rows, way)
    times = [row for row in rows if row.way == way and row.seconds is not None]
    text = {row.key: row.seconds for row in rows if row.way == "prompt" and row.seconds is not None}
    told = f"{way:<26}{len(nll):>10}"
    if len(nll):
        share, low, high = share_of(nll)
        gain = nll[:, 0] - nll[:, 2]
        lowest, highest = interval(gain, lambda sample: sample.mean(0))
        told += f"{nll[:, 2].mean():>8.3f}{gain.mean():>+10.3f} [{lowest:+.2f}, {highest:+.2f}]{share:>7.2f} "
        told += f"{f'[{low:.2f}, {high:.2f}]':<16}"
        out_name = f"{way} at {size:,}: share of the gain"
        f1 = [row.f1 for row in rows if row.way == way and row.f1 is not None]
        told += f"{100 * sum(f1) / len(f1):>6.1f}" if f1 else f"{'':>6}"
    else:
        told += " " * 55 + " " * 6
    if times:
        seconds = float(np.median([row.seconds for row in times if row.seconds]))
        faster = float(np.median([text[row.key] / row.seconds for row in times if row.key in text]))  # type: ignore[operator]
        told += f"{seconds:>9.2f}{faster:>8.1f}{float(np.median([row.read or 0 for row in times])):>7.0f}"
        out_times = f"{way} at {size:,}: times faster than prompt"
    print(told, flush=True)
    # Into the JSON alone.
    with_bars: list[tuple[str, float, float | None]] = []
    if len(nll):
        with_bars.append((out_name, share, BARS.get(way)))
    if times:
        with_bars.append((out_times, faster, FASTER.get(way)))
    for name, value, bar in with_bars:
        out.keep(name, value, "", "higher", bar)


BARS = {"kv exact": 1.0, "kv 0%": 0.9, "soft": 0.35, "lora": 0.35}
FASTER = {"kv exact": 8.0, "kv 0%": 4.0}


def paired(rows: Sequence[Row], way: str) -> Any:
    """Return (questions, 3): the NLL of none, prompt and the way, of the questions that have all three."""
    by_way: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.nll is not None:
            by_way.setdefault(row.way, {})[row.key] = row.nll
    three = [by_way.get(name, {}) for name in ("none", "prompt", way)]
    keys = [key for key in three[2] if key in three[0] and key in three[1]]
    return np.array([[each[key] for each in three] for key in keys]).reshape(-1, 3)


def share_of(nll: Any) -> tuple[float, float, float]:
    """Return a way's share of the gain, with its 95% interval."""

    def share(sample: Any) -> Any:
        none, text, way = sample.mean(0)
        return (none - way) / (none - text)

    return (float(share(nll)), *interval(nll, share))


def interval(sample: Any, of: Any) -> tuple[float, float]:
    """Return the 95% interval of a statistic by resampling questions."""
    chance = np.random.default_rng(0)
    made = [of(sample[chance.integers(0, len(sample), len(sample))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(made, [2.5, 97.5])
    return float(low), float(high)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the share of the gain, and the time to the first token, by the memory's size."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "latent-memory"
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    shown = ["prompt", "kv exact", "kv 0%", "kv 15%", "soft", "lora", "random"]
    colours = dict(
        zip(shown, ("black", "tab:blue", "tab:green", "tab:olive", "tab:orange", "tab:red", "grey"), strict=True)
    )
    sizes = sorted({row.size for row in rows if row.nll is not None and row.size})
    for way in shown:
        points = []
        for size in sizes:
            nll = paired([row for row in rows if row.size == size], way)
            if len(nll):
                points.append((size, *share_of(nll)))
        if points:
            at, share, low, high = (np.array(column) for column in zip(*points, strict=True))
            errors = np.abs(np.stack((share - low, high - share)))
            left.errorbar(at, share, errors, label=way, color=colours[way], marker="o", capsize=3)
        times = [
            (size, float(np.median(found)))
            for size in sizes
            if (found := [r.seconds for r in rows if r.way == way and r.size == size and r.seconds and r.nll is None])
        ]
        if times:
            right.plot(*zip(*times, strict=True), label=way, color=colours[way], marker="o")
    left.set(title="Share of text's gain", xlabel="tokens of memory", xscale="log", ylim=(-0.6, 3.2))
    right.set(title="Seconds to the first token", xlabel="tokens of memory", xscale="log", yscale="log")
    for axes in (left, right):
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
