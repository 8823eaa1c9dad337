"""The command line: `latent-memory`. A thin door to `LatentMemory`.

Exit codes: 0 found or done, 1 nothing found, 2 bad use, bad input, or a store that cannot be used.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from latent_memory.errors import InputError, LatentMemoryError

if TYPE_CHECKING:
    from latent_memory.memory import LatentMemory
    from latent_memory.records import AddReport, Context, Conversation, Hit, Passage

STORE_VARIABLE = "LATENT_MEMORY_STORE"

app = typer.Typer(
    name="latent-memory",
    help="A conversation memory for language models: add conversations, recall the turns that matter.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        envvar=STORE_VARIABLE,
        help="The memory's directory. Default: a directory of your own in the system's place for application data.",
        show_default=False,
    ),
]
Scope = Annotated[
    str, typer.Option("--scope", envvar="LATENT_MEMORY_SCOPE", help="Whose memory: a user, a tenant, a project.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as docs/cli.md describes it.")]
EmbedderName = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        help="minilm, hashing, sentence-transformers:MODEL or openai:MODEL. "
        "Default: what the memory was made with; minilm for a new one.",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("-k", "--limit", min=1, help="How many turns at most.")]
Since = Annotated[str | None, typer.Option(help="Only turns said then or later (ISO 8601).", show_default=False)]
Until = Annotated[str | None, typer.Option(help="Only turns said before then (ISO 8601).", show_default=False)]
Roles = Annotated[
    list[str] | None, typer.Option("--role", help="Only turns of this role; may be repeated.", show_default=False)
]
Conversations = Annotated[
    list[str] | None,
    typer.Option("--conversation", metavar="ID", help="Only this conversation; may be repeated.", show_default=False),
]
QueryText = Annotated[str, typer.Argument(metavar="QUERY", help="What to ask; - reads it from standard input.")]


def main() -> None:
    """Run the command line; errors become one line on standard error and exit code 2."""
    try:
        app()
    except LatentMemoryError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("stopped; what was reported as added is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


# -- commands ---------------------------------------------------------------------------------------------


@app.command()
def add(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="JSONL files of conversations; - reads standard input.")
    ],
    store: Store = None,
    scope: Scope = "default",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out lines that cannot be used, and report each of them.")
    ] = False,
    embedder: EmbedderName = None,
    summariser: Annotated[
        str | None, typer.Option(help="openai:MODEL writes the summaries that are missing.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add conversations. Adding a file again adds only what is new in it.

    Every file is checked from end to end first: if one line cannot be used, nothing is added (see --skip-bad).
    """
    from latent_memory.importers import jsonl

    with _sources(files) as paths:
        bad: list[str] = []

        def on_bad(error: InputError) -> None:
            bad.append(str(error))

        def read(on_bad: Callable[[InputError], None] | None) -> Iterator[Conversation]:
            for path, name in paths:
                yield from jsonl.read(path, name=name, on_bad=on_bad)

        turns = sum(len(conversation.turns) for conversation in read(on_bad if skip_bad else None))
        for error in bad:
            print(f"left out: {error}", file=sys.stderr)
        skip = (lambda _: None) if skip_bad else None
        with _open(store, embedder, create=True, summariser=summariser) as memory, _progress("adding", turns) as at:

            def done(report: AddReport) -> None:
                at(report.turns_added + report.turns_changed + report.turns_unchanged)

            report = memory.add(read(skip), scope, progress=done)
    if as_json:
        _print_json({**asdict(report), "left_out": len(bad)})
    else:
        print(
            f"{_many(report.added, 'conversation')} added, {report.changed} changed, {report.unchanged} unchanged "
            f"({_many(report.turns_added, 'turn')} added, {report.turns_changed} changed)"
        )


@app.command()
def recall(
    query: QueryText,
    limit: Limit = 10,
    store: Store = None,
    scope: Scope = "default",
    since: Since = None,
    until: Until = None,
    role: Roles = None,
    conversation: Conversations = None,
    embedder: EmbedderName = None,
    as_json: AsJson = False,
) -> None:
    """Find the turns that matter to a question, best first, with the signals that made each score."""
    with _open(store, embedder, warm=True) as memory:
        hits = memory.recall(
            _query(query), limit, scope=scope, since=since, until=until, roles=role, conversation_ids=conversation
        )
    if as_json:
        _print_json([_hit(hit) for hit in hits])
    else:
        _print_hits(hits)
        if not hits:
            print(f"nothing found in scope {scope!r}", file=sys.stderr)
    _leave(found=bool(hits))


@app.command()
def context(
    query: QueryText,
    budget: Annotated[int, typer.Option(min=1, help="The most tokens that the block may have (estimated).")] = 1024,
    store: Store = None,
    scope: Scope = "default",
    since: Since = None,
    until: Until = None,
    role: Roles = None,
    conversation: Conversations = None,
    embedder: EmbedderName = None,
    as_json: AsJson = False,
) -> None:
    """Print the block of text that a prompt gets for a question."""
    with _open(store, embedder, warm=True) as memory:
        block = memory.context(
            _query(query), budget, scope=scope, since=since, until=until, roles=role, conversation_ids=conversation
        )
    if as_json:
        _print_json(_context(block))
    elif block:
        print(block.text)
    else:
        print(f"nothing found in scope {scope!r}", file=sys.stderr)
    _leave(found=bool(block))


@app.command()
def show(
    conversation: Annotated[str, typer.Argument(metavar="CONVERSATION", help="The conversation's id.")],
    turn: Annotated[
        int | None, typer.Option(min=0, help="Only this turn, with the one before and after.", show_default=False)
    ] = None,
    store: Store = None,
    scope: Scope = "default",
    as_json: AsJson = False,
) -> None:
    """Print a whole conversation, word for word."""
    with _open(store) as memory:
        found = memory.get(conversation, scope=scope)
    if found is None:
        print(f"no conversation {conversation!r} in scope {scope!r}", file=sys.stderr)
        _leave(found=False)
        return
    shown = range(len(found.turns)) if turn is None else range(max(0, turn - 1), min(turn + 2, len(found.turns)))
    if turn is not None and turn >= len(found.turns):
        print(f"conversation {conversation!r} has {_many(len(found.turns), 'turn')}, from 0", file=sys.stderr)
        _leave(found=False)
        return
    if as_json:
        _print_json(_conversation(found, shown))
        return
    print(f"{found.title}\n{found.conversation_id} · {found.type} · {_time(found.timestamp)}")
    print(f"{found.summary}\n")
    for i in shown:
        said = found.turns[i]
        print(f"{i:>3}  {said.name or said.role}: {said.text}")


@app.command("list")
def list_(
    store: Store = None,
    scope: Scope = "default",
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="How many conversations.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="How many to pass over.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List a scope's conversations, newest first."""
    with _open(store) as memory:
        page = memory.conversations(scope=scope, limit=limit, offset=offset)
    if as_json:
        _print_json([{**asdict(item), "timestamp": item.timestamp.isoformat()} for item in page])
    else:
        for item in page:
            print(f"{_time(item.timestamp):<16}  {item.conversation_id:<24} {item.turns:>4}  {item.title}")
    _leave(found=bool(page))


@app.command()
def scopes(store: Store = None, as_json: AsJson = False) -> None:
    """List the scopes with the number of their conversations."""
    with _open(store) as memory:
        found = memory.scopes()
    if as_json:
        _print_json(found)
    else:
        for name, count in found.items():
            print(f"{count:>8}  {name}")
    _leave(found=bool(found))


@app.command()
def stats(
    store: Store = None,
    scope: Annotated[str | None, typer.Option(help="Only this scope. Default: all.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Tell how much the memory holds."""
    with _open(store) as memory:
        found = memory.stats(scope=scope)
    told = asdict(found)
    told |= {name: told[name].isoformat() if told[name] else None for name in ("first", "last")}
    if as_json:
        _print_json(told)
        return
    for name, value in told.items():
        print(f"{name:<14} {value:,}" if isinstance(value, int) else f"{name:<14} {value}")


@app.command()
def forget(
    conversations: Annotated[
        list[str] | None, typer.Argument(metavar="[CONVERSATION]...", help="The conversations' ids.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Forget the whole scope.")] = False,
    store: Store = None,
    scope: Scope = "default",
    as_json: AsJson = False,
) -> None:
    """Remove conversations with all that was kept of them, at once and for good."""
    with _open(store) as memory:
        gone = memory.forget(conversations or None, scope=scope, everything=everything)
    if as_json:
        _print_json({"forgotten": gone})
    else:
        print(f"{_many(gone, 'conversation')} forgotten")
    _leave(found=bool(gone))


@app.command()
def reembed(
    embedder: Annotated[str, typer.Option("--embedder", help="The new embedder's name.")],
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Make all vectors again with another embedder. May be interrupted and run again; switches over at the end."""
    with _open(store) as memory, _progress("embedding", memory.stats().passages) as at:
        count = memory.reembed(embedder, progress=lambda done, _: at(done))
    if as_json:
        _print_json({"passages": count, "embedder": embedder})
    else:
        print(f"{_many(count, 'passage')} embedded with {embedder}")


@app.command()
def demo(
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the demonstration's memory here.", show_default=False)
    ] = None,
) -> None:
    """Add the example conversations to a memory of their own, ask it a few questions, and show what it finds."""
    from latent_memory.importers import jsonl
    from latent_memory.memory import LatentMemory

    examples = _examples()
    conversations = list(jsonl.read(examples))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        place = keep or Path(temporary) / "memory"
        turns = sum(len(conversation.turns) for conversation in conversations)
        print(f"Adding {len(conversations)} example conversations ({turns} turns) to {place}\n")
        with LatentMemory.open(place) as memory:
            with _progress("adding", turns) as at:
                memory.add(conversations, progress=lambda r: at(r.turns_added + r.turns_unchanged))
            for question in _QUESTIONS:
                print(f"? {question}")
                _print_hits(memory.recall(question, k=3))
                print()
            question = _QUESTIONS[0]
            print(f"What a prompt would get for {question!r}, in at most 300 tokens:\n")
            print(memory.context(question, budget=300).text)
    print("\nTry next:")
    print(f"  latent-memory add {examples}")
    print('  latent-memory recall "what went wrong in the server outage?"')
    print('  latent-memory context "plan my next race" --budget 512')
    print("  latent-memory show 0328711")


_QUESTIONS = (
    "what did I ask about feedback loops?",
    "How fast can I run 10 km now?",
    "On what day is my brother getting married after the change of plan?",
    "Which foods could send me to hospital, according to the tests?",
    "Why did my pet stop being called Biscoito?",
)


# -- opening and reading ----------------------------------------------------------------------------------


@contextmanager
def _open(
    store: Path | None,
    embedder: str | None = None,
    *,
    create: bool = False,
    summariser: str | None = None,
    warm: bool = False,
) -> Iterator[LatentMemory]:
    from latent_memory.memory import LatentMemory

    if store is None:
        import platformdirs

        store = Path(platformdirs.user_data_dir("latent-memory", appauthor=False)) / "memory"
    with LatentMemory.open(store, embedder=embedder, create=create, summariser=summariser) as memory:
        if warm:
            memory.warm()
        yield memory


@contextmanager
def _sources(files: Sequence[str]) -> Iterator[list[tuple[Path, str]]]:
    """Return the files to read, with their names; standard input becomes a file, since it is read twice."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        paths: list[tuple[Path, str]] = []
        for file in files:
            if file != "-":
                paths.append((Path(file), file))
                continue
            spooled = Path(temporary) / "standard-input"
            with spooled.open("wb") as copy:
                while block := sys.stdin.buffer.read(1 << 20):
                    copy.write(block)
            paths.append((spooled, "standard input"))
        yield paths


def _query(query: str) -> str:
    if query != "-":
        return query
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 (byte {error.start})") from None


def _examples() -> Path:
    # In an installed package beside this file, in a checkout beside src/.
    here = Path(__file__).parent
    places = [base / "examples" / "conversations.jsonl" for base in (here, here.parent.parent)]
    return next((place for place in places if place.is_file()), places[0])


# -- printing ---------------------------------------------------------------------------------------------


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while something long runs; nothing if that is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _print_hits(hits: Iterable[Hit]) -> None:
    for rank, hit in enumerate(hits, start=1):
        passage = hit.passage
        where = "summary" if passage.turn is None else f"turn {passage.turn}"
        speaker = passage.name or passage.role
        told = " ".join(passage.text.split())
        print(f"{rank:>2}  {hit.score:.2f}  {speaker}: {told if len(told) <= 300 else told[:299] + '…'}")
        signals = "  ".join(f"{name} {value:.2f}" for name, value in hit.signals.items() if value >= 0.005)
        title = passage.title if len(passage.title) <= 60 else passage.title[:59] + "…"
        print(f"          {title} · {passage.conversation_id} · {where} · {_time(passage.timestamp)}")
        print(f"          {signals}")


def _hit(hit: Hit) -> dict[str, Any]:
    return {"score": hit.score, "signals": dict(hit.signals), **_passage(hit.passage)}


def _passage(passage: Passage) -> dict[str, Any]:
    told = {field.name: getattr(passage, field.name) for field in fields(passage)}
    return told | {"timestamp": passage.timestamp.isoformat()}


def _context(block: Context) -> dict[str, Any]:
    return {
        "text": block.text,
        "tokens": block.tokens,
        "budget": block.budget,
        "passages": [_passage(passage) for passage in block.passages],
    }


def _conversation(found: Conversation, shown: Iterable[int]) -> dict[str, Any]:
    return {
        "conversation_id": found.conversation_id,
        "title": found.title,
        "timestamp": found.timestamp and found.timestamp.isoformat(),
        "type": found.type,
        "summary": found.summary,
        "metadata": dict(found.metadata),
        "generated": sorted(found.generated),
        "messages": [
            {
                "turn": i,
                "role": found.turns[i].role,
                "content": found.turns[i].text,
                "timestamp": _iso(found.turns[i].timestamp),
                "name": found.turns[i].name,
            }
            for i in shown
        ],
    }


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def _time(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M}" if time else ""


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _leave(*, found: bool) -> None:
    if not found:
        raise typer.Exit(1)


def _fail(message: str) -> NoReturn:
    print(f"latent-memory: {message}", file=sys.stderr)
    sys.exit(2)
