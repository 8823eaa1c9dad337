"""Memory inside a local model: how much of text's gain each way keeps, and how long until the first token.

On questions of LoCoMo's file that have an answer in words, the memory is what is recalled (not the gold turns), in a
context of 500 to 4,000 tokens, and it is the same for every way. Of each question and way:

- the negative log-likelihood of the gold answer, in nats a token;
- token F1 (as in SQuAD) of the greedy answer, at 1,000 tokens;
- the time to the first token, and how many tokens were read for it (in a pass of its own: `--time`).

"Share of the gain" is (none - way) / (none - prompt), of the means; its interval, and those of differences, are from a
paired bootstrap over questions. `--rows FILE` keeps what was measured: a second run measures what is not there yet.

    python benchmarks/in_model.py locomo.json --rows rows.jsonl
    python benchmarks/in_model.py locomo.json --rows rows.jsonl --time 10
    python benchmarks/in_model.py locomo.json --rows rows.jsonl --report --plot docs/in-the-model.svg
"""

from __future__ import annotations

import copy
import inspect
import json
import random
import re
import statistics
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

import in_model_report as reports
from common import EXAMPLES, parser
from in_model_report import Row
from latent_memory import LatentMemory
from latent_memory.bridges import embedder_of
from latent_memory.importers import jsonl
from latent_memory.inference import prompt
from latent_memory.inference.block_store import Block
from latent_memory.inference.kv_cache import BlockCache, PrefixCache
from latent_memory.inference.local_model import LocalModel, Prefilled
from latent_memory.inference.stretches import passages_of
from latent_memory.late import TokenVectors
from latent_memory.records import Context, Passage
from recall_data import Dataset, Question, halves, load

SYSTEM = (
    "You are a helpful assistant. Answer the user's question in a few words, from the memory of earlier conversations "
    "if it holds the answer."
)
SIZES = (500, 1000, 2000, 4000)
# Greedy answers are compared at one size: each costs as much as twenty first tokens.
ANSWERED = 1000
ANSWER_TOKENS = 16
UNRELATED_TOKENS = 1024
SEED = 0
# As many tokens as soft tokens may take.
EIGHTH = "prompt of an eighth"


class Way(Protocol):
    def read(self, context: Context, question: list[dict[str, str]]) -> Prefilled: ...


class NoMemory:
    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def read(self, context: Context, question: list[dict[str, str]]) -> Prefilled:  # noqa: ARG002
        return self._model.prefill(prompt.tokens(self._model, question))


class Text:
    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def read(self, context: Context, question: list[dict[str, str]]) -> Prefilled:
        return self._model.prefill(prompt.tokens(self._model, question, context))


class SameTokens:
    """Text in the very order in which blocks are joined: what blocks would be if they knew each other."""

    def __init__(self, model: LocalModel, blocks: BlockCache) -> None:
        self._model, self._blocks = model, blocks

    def read(self, context: Context, question: list[dict[str, str]]) -> Prefilled:
        layout = prompt.layout(self._model, question)
        return self._model.prefill(self._blocks.join(context, layout.head).tokens + layout.tail)


class Headless(BlockCache):
    """Blocks that are computed behind nothing; only the joined memory has a head."""

    def _of_head(self, head: Any) -> tuple[Block, int]:
        if tuple(head) != tuple(self._head):
            return super()._of_head(head)
        keys, values = super()._of_head(head)[0]
        return Block(keys[:, :, :0], values[:, :, :0]), 0

    def _compute(self, stretch: Any) -> tuple[Block, int]:
        kept, self._head = self._head, []
        self._heads[()] = Block(*(part[:, :, :0] for part in super()._of_head(kept)[0]))
        try:
            return super()._compute(stretch)
        finally:
            self._head = kept


class Ways:
    """Makes a way by its name, for the memory of one scope."""

    def __init__(self, model: LocalModel, memory: LatentMemory, work: Path, bridge: Path | None, adapters: Path | None):
        self._model, self._memory, self._work = model, memory, work
        self._bridge, self._adapters = bridge, adapters
        self._made: dict[tuple[str, str], Way | None] = {}

    def get(self, name: str, scope: str) -> Way | None:
        """Return the way, or None if there is none for this scope (an adapter is of one memory)."""
        if (name, scope) not in self._made:
            self._made[name, scope] = self._make(name, scope)
        return self._made[name, scope]

    def blocks(self, scope: str, kind: type[BlockCache] = BlockCache, **options: Any) -> BlockCache:
        directory = self._work / f"blocks-{kind.__name__}-{options.get('size', 'default')}"
        return kind(self._model, directory, lambda each: self._memory.get(each, scope=scope), scope=scope, **options)

    def _make(self, name: str, scope: str) -> Way | None:
        kind, _, more = name.partition(" ")
        if name == "none":
            return NoMemory(self._model)
        if name in ("prompt", "random", EIGHTH):
            return Text(self._model)
        if name == "prompt nearest":
            return SameTokens(self._model, self.blocks(scope))
        if name == "kv exact":
            return PrefixCache(self._model, self._work / "prefixes", scope=scope)
        if kind == "kv":
            if more == "headless":
                return self.blocks(scope, Headless)
            number = re.match(r"\d*", more)
            count = int(number.group() or 0) if number else 0
            known: dict[str, dict[str, Any]] = {
                "%": {"recompute": count / 100},
                "-bit": {"bits": count},
                "-token stretches": {"size": count},
                "oldest first": {"nearest": False},
                "whole stretches": {"whole": True},
                "turns": {"size": 1},
            }
            return self.blocks(scope, **known[more[len(str(count)) if count or more[:1] == "0" else 0 :]])
        if kind == "soft":
            return self._soft(scope, more)
        if kind == "lora":
            return self._lora(scope, of_another=more == "random")
        raise SystemExit(f"{name}: no such way")

    def _soft(self, scope: str, which: str) -> Way | None:
        if self._bridge is None:
            return None
        from latent_memory.inference.soft_tokens import Bridge

        class KeywordsAlone(Bridge):
            def embeddings(self, passages: Sequence[Passage]) -> list[torch.Tensor]:
                return [torch.zeros(0, self.shape.hidden, device=self.model.device) for _ in passages]

        def of_others(passages: Sequence[Passage]) -> TokenVectors:
            chance = random.Random(f"{SEED} {passages[0].text}")
            everything = [p for c in self._memory.whole(scope=scope) for p in passages_of(c, scope)]
            return self._memory.vectors_of(chance.sample(everything, len(passages)), scope=scope)

        vectors = of_others if which == "of others" else partial(self._memory.vectors_of, scope=scope)
        kind = KeywordsAlone if which == "keywords" else Bridge
        return kind.load(self._bridge, self._model, embedder_of(self._memory), vectors)

    def _lora(self, scope: str, *, of_another: bool) -> Way | None:
        there = sorted(path.name for path in self._adapters.iterdir()) if self._adapters else []
        if scope not in there or (of_another and len(there) < 2):
            return None
        from latent_memory.inference.lora import Adapter

        name = there[there.index(scope) - 1] if of_another else scope
        assert self._adapters is not None
        return Adapter.load(self._adapters / name, self._model)


def unrelated() -> dict[str, str]:
    """Return texts that have nothing to do with any memory."""
    root = Path(__file__).parent.parent
    talks = [turn.text for conversation in jsonl.read(EXAMPLES) for turn in conversation.turns]
    return {
        "the example conversations": "\n\n".join(talks),
        "our documentation": (root / "docs" / "recall.md").read_text(encoding="utf-8"),
        "Python's source": inspect.getsource(statistics),
        "a licence": (root / "LICENSE").read_text(encoding="utf-8"),
    }


def measure_unrelated(model: LocalModel, ways: Ways, scopes: Iterable[str], keep: Callable[[Row], None]) -> None:
    """Measure texts that have nothing to do with any memory, without and with each adapter."""
    for name, text in unrelated().items():
        tokens = model.encode(text)[:UNRELATED_TOKENS]
        keep(Row(name, "", "unrelated none", 0, model.nll(model.prefill(tokens[:1]), tokens[1:])))
        for scope in scopes:
            way = ways.get("lora", scope)
            if way is not None:
                with switched(way):
                    nll = model.nll(model.prefill(tokens[:1]), tokens[1:])
                keep(Row(name, scope, "unrelated lora", 0, nll))


def chosen(dataset: Dataset, count: int) -> list[Question]:
    """Return questions with an answer in words, the same ones in each run, in turn from each scope."""
    by_scope: dict[str, list[Question]] = {}
    for question in dataset.questions:
        if question.category != "adversarial" and str(question.answer).strip():
            by_scope.setdefault(question.scope, []).append(question)
    chance = random.Random(SEED)
    for questions in by_scope.values():
        chance.shuffle(questions)
    longest = max(map(len, by_scope.values()))
    taken = [questions[at] for at in range(longest) for questions in by_scope.values() if at < len(questions)]
    return taken[:count]


def measure(
    model: LocalModel,
    ways: Ways,
    names: list[str],
    question: Question,
    size: int,
    memory: LatentMemory,
    other: Question,
) -> Iterator[Row]:
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.text}]
    answer = model.encode(str(question.answer))
    known: dict[bool, Context] = {}
    for name in names:
        way = ways.get(name, question.scope)
        if way is None:
            continue
        strange = name.endswith("random") and not name.startswith("lora")
        if strange not in known:
            of = other if strange else question
            known[strange] = memory.context(of.text, size, scope=of.scope, tokenizer=model.count_tokens)
        if strange and name != "random":
            # What a bridge has learnt of answers in general, without what this memory says.
            way = ways.get(name, other.scope)
            assert way is not None
        context = known[strange]
        if name == EIGHTH:
            context = memory.context(question.text, size // 8, scope=question.scope, tokenizer=model.count_tokens)
        with switched(way):
            yield measured(model, way, name, context, question, asked, answer, size)


def measured(
    model: LocalModel,
    way: Way,
    name: str,
    context: Context,
    question: Question,
    asked: list[dict[str, str]],
    answer: list[int],
    size: int,
) -> Row:
    prefilled = way.read(context, asked)
    # Each use grows the cache.
    again = copy.deepcopy(prefilled) if size == ANSWERED else prefilled
    row = Row(question.key, question.scope, name, size, model.nll(prefilled, answer), memory_tokens=context.tokens)
    if size == ANSWERED:
        said = "".join(model.answer(again, most=ANSWER_TOKENS, stop=("\n",)))
        row = replace(row, f1=token_f1(said, str(question.answer)), said=said)
    return row


@contextmanager
def switched(way: Way) -> Iterator[None]:
    """Switch an adapter on, and off again: no other way may compute with it."""
    if isinstance(way, AbstractContextManager):
        with way:
            yield
    else:
        yield


def timed(way: Way, context: Context, question: Question, times: int = 3) -> tuple[float, int, int]:
    """Return the fastest of several times to the first token, in seconds, and the tokens read and in the prompt."""
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.text}]
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        prefilled = way.read(context, asked)
        int(prefilled.logits.argmax())
        best = min(best, time.perf_counter() - began)
    return best, prefilled.read, prefilled.length


def token_f1(said: str, gold: str) -> float:
    """Return the F1 of the words that two answers share, as SQuAD counts them."""

    def words(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    ours, theirs = words(said), words(gold)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if not shared:
        return float(ours == theirs)
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def exactness(model: LocalModel, ways: Ways, context: Context, question: Question) -> tuple[float, bool]:
    """Return the largest difference of a logit after a stored prefix, and whether the greedy tokens are the same."""
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.text}]
    way = ways.get("kv exact", question.scope)
    assert isinstance(way, PrefixCache)
    layout = prompt.layout(model, asked)
    tokens = layout.head + model.encode(prompt.body(context))
    whole = model.prefill(tokens + layout.tail)
    way.read(context, asked)
    stored = way.read(context, asked)
    apart = float((whole.logits - stored.logits).abs().max())
    same = list(model.tokens(whole, most=ANSWER_TOKENS)) == list(model.tokens(stored, most=ANSWER_TOKENS))
    return apart, same


TRAINED = ["soft", "soft random", "soft of others", "soft keywords", EIGHTH, "lora", "lora random"]
MAIN = ["none", "prompt", "random", "kv exact", "kv 0%", "kv 5%", "kv 15%", "kv 30%"]
ABLATION = [
    "prompt nearest",
    "kv headless",
    "kv oldest first",
    "kv whole stretches",
    "kv turns",
    "kv 128-token stretches",
    "kv 32-bit",
    "kv 4-bit",
]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path, help="LoCoMo's file")
    options.add_argument("--model", default="smollm2")
    options.add_argument("--device")
    options.add_argument("--work", type=Path, help="keep memory and blocks here, for the next run")
    options.add_argument("--rows", type=Path, help="keep what was measured here, and measure what is missing")
    options.add_argument("--questions", type=int, default=60, help="how many, at 1,000 tokens")
    options.add_argument("--others", type=int, default=20, help="how many at the other sizes")
    options.add_argument("--scopes", help="comma-separated; ask only about these")
    options.add_argument("--ways", help="comma-separated; by default all")
    options.add_argument("--sizes", default=",".join(map(str, SIZES)))
    options.add_argument("--ablation", type=int, default=0, metavar="N", help="the table of what each part buys, too")
    options.add_argument(
        "--bridge", type=Path, help="of soft tokens; only the half of scopes that trained none is asked"
    )
    options.add_argument("--adapters", type=Path, help="a directory with an adapter for each scope, by its name")
    options.add_argument("--time", type=int, default=0, metavar="N", help="measure times, of N questions, instead")
    options.add_argument("--unrelated", action="store_true", help="measure adapters on unrelated texts, instead")
    options.add_argument("--threads", type=int)
    options.add_argument("--report", action="store_true", help="report what was measured before, and measure nothing")
    options.add_argument("--plot", type=Path, help="draw the shares by size (needs matplotlib)")
    told = options.parse_args()
    if told.threads:
        torch.set_num_threads(told.threads)
    if told.quick:
        told.questions, told.others, told.sizes, told.time = 2, 0, "500", 0
    rows = reports.read(told.rows)
    if not told.report:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            told.work = told.work or Path(temporary)
            run(told, rows)
    reports.report(rows, told.json)
    if told.plot:
        reports.plot(rows, told.plot)


def run(told: Any, rows: list[Row]) -> None:
    dataset = load(told.data)
    if told.quick:
        dataset = dataset._replace(scopes=dict(list(dataset.scopes.items())[:2]))
        dataset = dataset._replace(questions=[q for q in dataset.questions if q.scope in dataset.scopes])
    everything = dataset.questions
    if told.scopes:
        of = told.scopes.split(",")
        dataset = dataset._replace(questions=[q for q in dataset.questions if q.scope in of])
    model = LocalModel.load(told.model, device=told.device)
    questions = chosen(dataset, max(told.questions, told.others, told.ablation, told.time))
    untrained = set(halves(dataset)[1])
    have = {(row.key, row.way, row.size) for row in rows if row.nll is not None}
    told.work.mkdir(parents=True, exist_ok=True)

    def keep(row: Row) -> None:
        rows.append(row)
        if told.rows:
            with told.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row.as_json()) + "\n")

    with LatentMemory.open(told.work / "memory") as memory:
        for scope, conversations in dataset.scopes.items():
            memory.add(conversations, scope)
        ways = Ways(model, memory, told.work, told.bridge, told.adapters)
        names = told.ways.split(",") if told.ways else MAIN + TRAINED
        sizes = [int(size) for size in told.sizes.split(",")]
        plan = [
            (q, size, names) for size in sizes for q in questions[: told.questions if size == ANSWERED else told.others]
        ]
        if told.ablation:
            plan += [(question, ANSWERED, ABLATION) for question in questions[: told.ablation]]
        if told.unrelated:
            return measure_unrelated(model, ways, dataset.scopes, keep)
        if told.time:
            return measure_times(model, ways, memory, questions[: told.time], names, sizes, keep)
        for done, (question, size, wanted) in enumerate(plan, start=1):
            missing = [
                name
                for name in wanted
                if (question.key, name, size) not in have
                and not (name.startswith("soft") and question.scope not in untrained and not told.quick)
            ]
            others = [q for q in everything if q.scope != question.scope]
            other = random.Random(f"{SEED} {question.key}").choice(others)
            for row in measure(model, ways, missing, question, size, memory, other):
                keep(row)
            print(f"{done} of {len(plan)}", end="\r", file=sys.stderr, flush=True)
    return None


def measure_times(
    model: LocalModel,
    ways: Ways,
    memory: LatentMemory,
    questions: list[Question],
    names: list[str],
    sizes: list[int],
    keep: Callable[[Row], None],
) -> None:
    for size in sizes:
        for question in questions:
            context = memory.context(question.text, size, scope=question.scope, tokenizer=model.count_tokens)
            apart, same = exactness(model, ways, context, question)
            keep(Row(question.key, question.scope, "kv exact", size, None, apart=apart, same=same))
            for name in names:
                way = ways.get(name, question.scope)
                if way is None or name.endswith("random"):
                    continue
                # Blocks are computed, and files read, before the clock starts.
                with switched(way):
                    way.read(context, [{"role": "user", "content": "?"}])
                    seconds, read, length = timed(way, context, question)
                keep(
                    Row(
                        question.key,
                        question.scope,
                        name,
                        size,
                        None,
                        seconds=seconds,
                        read=read,
                        length=length,
                        memory_tokens=context.tokens,
                    )
                )
    for bits in (4, 8, 16, 32):
        keep(reports.Row("", "", f"restart {bits}-bit", 2000, None, **restart(ways, memory, questions[0], model, bits)))


def restart(ways: Ways, memory: LatentMemory, question: Question, model: LocalModel, bits: int) -> dict[str, Any]:
    """Return what a memory of 2,000 tokens takes on disk, and how long a new process takes to load and join it."""
    # Of a size of its own, so that they have a directory of their own, and nothing is there yet.
    blocks = ways.blocks(question.scope, bits=bits, size=257)
    context = memory.context(question.text, 2000, scope=question.scope, tokenizer=model.count_tokens)
    head = prompt.layout(model, "?").head
    blocks.join(context, head)
    fresh = ways.blocks(question.scope, bits=bits, size=257)
    fresh._heads = blocks._heads
    for passage in context.passages:
        fresh._of(passage.conversation_id)
    began = time.perf_counter()
    joined = fresh.join(context, head)
    seconds = time.perf_counter() - began
    paths = {fresh._path(stretch) for stretch, _ in fresh._picked(context)}
    tokens = sum(len(stretch.tokens) for stretch, _ in fresh._picked(context))
    return {
        "seconds": seconds,
        "length": len(joined.tokens),
        "bytes_per_token": sum(path.stat().st_size for path in paths) / tokens,
    }


if __name__ == "__main__":
    main()
