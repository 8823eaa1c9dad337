"""The command line: `latent-memory`. A thin door to `LatentMemory`.

Exit codes: 0 found or done, 1 nothing found, 2 bad use, bad input, or a store that cannot be used, 130 interrupted.

More than 500 lines: all commands with the help of their options, one after the other, and no work of their own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from latent_memory import __version__
from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.output import (
    SIGNALS,
    context_json,
    conversation_json,
    counter,
    handled,
    harmless,
    hit_json,
    iso,
    many,
    many_of,
    minute,
    progress,
    say,
    say_hits,
    say_json,
    say_list,
    say_tuning,
    tuning_json,
)
from latent_memory.records import AddReport

if TYPE_CHECKING:
    from latent_memory.memory import LatentMemory

PROGRAM = "latent-memory"
# An installed package has no docs/ beside it. The mark before it keeps the line from being broken.
_MORE = "\b\nDocumentation: https://github.com/latent-memory/latent-memory/tree/main/docs"
STORE_VARIABLE = "LATENT_MEMORY_STORE"
SCOPE_VARIABLE = "LATENT_MEMORY_SCOPE"

Command = TypeVar("Command", bound=Callable[..., Any])


class _StoppedError(Exception):
    """The user has interrupted a command; the message says what became of its work."""


def main() -> None:
    """Run the command line; whatever goes wrong becomes one line on standard error and an exit code."""
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a character shows another one, instead of ending the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = _run()
        # Here, and not as the interpreter ends: that would tell of a full disk with a traceback.
        sys.stdout.flush()
    except OSError as error:
        code = _unwritable(error)
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
        code = 2
    sys.exit(code)


def _run() -> int:
    try:
        # Not app(): that has its own ideas of a broken pipe, and of how an error looks.
        with app.make_context(PROGRAM, sys.argv[1:]) as context:
            app.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else PROGRAM
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            print(error.format_message(), file=sys.stderr)
            return 2
        return _failed(f"{' '.join(error.format_message().split()).removesuffix('.')} (see {asked} --help)")
    except LatentMemoryError as error:
        return _failed(str(error))
    except (_StoppedError, KeyboardInterrupt, click.Abort) as stop:
        _note(f"stopped; {stop}" if isinstance(stop, _StoppedError) else "stopped")
        return 130
    return 0


def _fill_closed_streams() -> None:
    """Open what the caller has closed of the three standard streams, so that no file takes its number, or its place."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # As long as the process lives; print(file=None) would print to the other one.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def _discard(stream: TextIO) -> None:
    """Let what is still waiting to be written go nowhere: it would fail once more at the very end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unwritable(error: OSError) -> int:
    """Tell that what is printed cannot be written, unless its reader (head, less) has gone; return the exit code."""
    if error.filename is not None:
        return _failed(f"{error.filename}: {error.strerror or error}")
    _discard(sys.stdout)
    # There is nobody to tell, and nothing went wrong. Windows says EINVAL.
    if error.errno == errno.EPIPE or (error.errno == errno.EINVAL and os.name == "nt"):
        return 0
    return _failed(f"cannot write to standard output: {error.strerror or error}")


# -- options ----------------------------------------------------------------------------------------------

_STORE = click.option(
    "--store",
    metavar="PATH",
    envvar=STORE_VARIABLE,
    type=click.Path(path_type=Path),
    help="The memory: a store's directory, or a file of another format. "
    f"Default: ${STORE_VARIABLE}, else a store of your own where the system keeps such data.",
)
_SCOPE = click.option(
    "--scope",
    envvar=SCOPE_VARIABLE,
    default="default",
    show_default=True,
    help="Whose memory: a user, a tenant, a project.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_EMBEDDER = click.option(
    "--embedder",
    metavar="NAME",
    help="minilm, hashing, sentence-transformers:MODEL or openai:MODEL. Default: what the memory was made with; minilm "
    "for a new one.",
)
_FORMAT = click.option(
    "--format",
    "layout",
    metavar="NAME",
    help="What to make where the path does not say it: csv_json, npy_json, hdf5, pickle or sqlite (a store).",
)
_RERANK = (
    click.option(
        "--rerank",
        metavar="NAME",
        help="Let a model look at the first turns again: sentence-transformers:MODEL, onnx:DIRECTORY or openai:MODEL "
        "(which sends them to OPENAI_BASE_URL).",
    ),
    click.option(
        "--rerank-among",
        "among",
        metavar="N",
        type=click.IntRange(min=1),
        default=50,
        show_default=True,
        help="How many turns it looks at.",
    ),
)
_FILTERS = (
    click.option("--since", metavar="TIME", help="Only turns said then or later (ISO 8601)."),
    click.option("--until", metavar="TIME", help="Only turns said before then (ISO 8601)."),
    click.option("--during", metavar="TIME", help='Only turns said in this time, in words: "last March", "May 2023".'),
    click.option("--role", "roles", multiple=True, help="Only turns of this role; repeatable."),
    click.option("--conversation", "conversations", metavar="ID", multiple=True, help="Only this one; repeatable."),
)


class _From(click.Option):
    """Names the importers in its help, and loads them only for that."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help; see click.Option."""
        from latent_memory.importers import NAMES

        self.help = f"What the files are, instead of looking: {', '.join(NAMES)}."
        return super().get_help_record(ctx)


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class _Command(click.Command):
    """A command whose help ends with where to read more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"epilog": _MORE} | kwargs))


class _App(click.Group):
    command_class = _Command


@click.group(cls=_App, epilog=_MORE, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=PROGRAM)
def app() -> None:
    """A conversation memory for language models: add conversations, recall the turns that matter."""


# -- commands ---------------------------------------------------------------------------------------------


@app.command(short_help="Add conversations from chat exports and other files.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@_options(_STORE, _SCOPE)
@click.option("--from", "source", cls=_From, metavar="NAME")
@click.option("--branches", is_flag=True, help="Keep what was said in other branches of an edited conversation.")
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be used, and report each of it.")
@click.option("--table", metavar="NAME", help="Of summaries in SQLite: the table. Default: conversation_summaries.")
@click.option(
    "--column",
    "columns",
    metavar="FIELD=NAME",
    multiple=True,
    help="Of summaries: conversation_id, title, timestamp, type or summary has this name in the file; repeatable.",
)
@_EMBEDDER
@_FORMAT
@click.option("--summariser", metavar="NAME", help="openai:MODEL writes the summaries that are missing.")
@_JSON
def add(
    files: Sequence[str],
    store: Path | None,
    scope: str,
    source: str | None,
    branches: bool,
    skip_bad: bool,
    table: str | None,
    columns: Sequence[str],
    embedder: str | None,
    layout: str | None,
    summariser: str | None,
    as_json: bool,
) -> None:
    """Add conversations from files: chat exports, sessions, JSON Lines; - reads standard input.

    The format of a file is detected from its content (see --from). Adding a file again adds only what is new in it.
    Every file is checked from end to end first: if one entry cannot be used, nothing is added (see --skip-bad).
    """
    from latent_memory import inputs

    mapping = _columns(columns)
    report = AddReport()

    def so_far() -> str:
        changed = f", {report.changed:,} changed" if report.changed else ""
        return f"{many(report.added, 'conversation')} {'was' if report.added == 1 else 'were'} added{changed}; " + (
            "run it again to finish"
        )

    with (
        _telling_if_stopped(so_far),
        inputs.opened(files, source, branches=branches, table=table, columns=mapping) as given,
    ):
        given.check(skip_bad=skip_bad)
        found, turns = (sum(counts) for counts in zip(*given.counts, strict=True))
        with contextlib.ExitStack() as stack:
            # Of nothing, no memory is made.
            memory = (
                stack.enter_context(_open(store, embedder, create=True, summariser=summariser, layout=layout))
                if found
                else None
            )
            if not as_json:
                for file in given.sources:
                    # Of our own format, that is news to nobody but whoever looks on.
                    if file.format != "jsonl" or sys.stderr.isatty():
                        _note(f"{file.name}: {file.description}")
            for told in given.bad:
                _note(f"left out: {told}")
            if memory is not None:
                with progress("adding", turns) as at:

                    def done(batch: AddReport) -> None:
                        nonlocal report
                        report = batch
                        at(handled(batch))

                    report = memory.add(given.conversations(skip_bad=skip_bad), scope, progress=done)
    if as_json:
        say_json(
            {**asdict(report), "left_out": len(given.bad), "files": given.files_json(), "skipped": given.skipped_json()}
        )
    else:
        say(
            f"{many(report.added, 'conversation')} added, {report.changed} changed, {report.unchanged} unchanged "
            f"({many(report.turns_added, 'turn')} added, {report.turns_changed} changed)"
        )
        if given.skipped:
            say(f"left out: {', '.join(many_of(count, what) for what, count in given.skipped.most_common())}")
    _leave(found=bool(found))


def _signals() -> str:
    """Return what the signals are, for a help; the mark before it keeps its lines from being joined."""
    wide = max(map(len, SIGNALS))
    return "\n".join(
        ["\b", "Signals, of which a score is the sum:", *(f"  {n:<{wide}}  {SIGNALS[n]}" for n in SIGNALS)]
    )


@app.command(short_help="Find the turns that matter to a question.", epilog=f"{_signals()}\n\n{_MORE}")
@click.argument("query")
@click.option(
    "-k", "--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many turns at most."
)
@click.option("--explain", is_flag=True, help="Print a table of each turn's signals.")
@_options(_STORE, _SCOPE, *_FILTERS, *_RERANK, _EMBEDDER, _JSON)
def recall(
    query: str,
    limit: int,
    explain: bool,
    store: Path | None,
    scope: str,
    embedder: str | None,
    rerank: str | None,
    among: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the turns that matter to QUERY, best first, with the signals that made each score.

    QUERY - is read from standard input.
    """
    with _open(store, embedder, warm=True) as memory:
        hits = memory.recall(_query(query), limit, scope=scope, **_filters(**given), rerank=rerank, rerank_among=among)
    if as_json:
        say_json([hit_json(hit) for hit in hits])
    else:
        say_hits(hits, explain=explain)
        if not hits:
            print(f"nothing found in scope {scope!r}", file=sys.stderr)
    _leave(found=bool(hits))


@app.command(short_help="Print the block of text for a prompt.")
@click.argument("query")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="The most tokens that the block may have (estimated).",
)
@_options(_STORE, _SCOPE, *_FILTERS, _RERANK[0], _EMBEDDER, _JSON)
def context(
    query: str,
    budget: int,
    store: Path | None,
    scope: str,
    embedder: str | None,
    rerank: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Print the block of text that a prompt gets for QUERY; - reads it from standard input."""
    with _open(store, embedder, warm=True, reranker=rerank) as memory:
        block = memory.context(_query(query), budget, scope=scope, **_filters(**given))
    if as_json:
        say_json(context_json(block))
    elif block:
        say(block.text)
    elif block.left_out:
        print(f"nothing fits into {many(budget, 'token')}; give a larger --budget", file=sys.stderr)
    else:
        print(f"nothing found in scope {scope!r}", file=sys.stderr)
    _leave(found=bool(block))


@app.command(short_help="Print a conversation, word for word.")
@click.argument("conversation")
@click.option("--turn", type=click.IntRange(min=0), help="Only this turn, with the one before and after.")
@_options(_STORE, _SCOPE, _JSON)
def show(conversation: str, turn: int | None, store: Path | None, scope: str, as_json: bool) -> None:
    """Print a whole conversation, word for word."""
    with _open(store) as memory:
        found = memory.get(conversation, scope=scope)
    if found is None:
        print(f"no conversation {conversation!r} in scope {scope!r}", file=sys.stderr)
        return _leave(found=False)
    if turn is not None and turn >= len(found.turns):
        print(f"conversation {conversation!r} has {many(len(found.turns), 'turn')}, from 0", file=sys.stderr)
        return _leave(found=False)
    shown = range(len(found.turns)) if turn is None else range(max(0, turn - 1), min(turn + 2, len(found.turns)))
    if as_json:
        return say_json(conversation_json(found, shown))
    say(f"{found.title}\n{found.conversation_id} · {found.type} · {minute(found.timestamp)}")
    if "summary" not in found.generated:
        # One that was generated repeats what follows.
        say(found.summary or "")
    if shown:
        say("")
    for i in shown:
        said = found.turns[i]
        say(f"{i:>3}  {said.name or said.role}: {said.text}")
    return None


@app.command("list", short_help="List a scope's conversations, newest first.")
@_options(_STORE, _SCOPE)
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many conversations."
)
@click.option("--offset", type=click.IntRange(min=0), default=0, help="How many to pass over.")
@_JSON
def list_(store: Path | None, scope: str, limit: int, offset: int, as_json: bool) -> None:
    """List a scope's conversations, newest first."""
    with _open(store) as memory:
        page = memory.conversations(scope=scope, limit=limit, offset=offset)
    if as_json:
        say_json([{**asdict(item), "timestamp": item.timestamp.isoformat()} for item in page])
    else:
        say_list(page)
        if not page:
            print(f"no {'more ' if offset else ''}conversations in scope {scope!r}", file=sys.stderr)
    _leave(found=bool(page))


@app.command(short_help="List the scopes.")
@_options(_STORE, _JSON)
def scopes(store: Path | None, as_json: bool) -> None:
    """List the scopes with the number of their conversations."""
    with _open(store) as memory:
        found = memory.scopes()
    if as_json:
        say_json(found)
    else:
        for name, count in found.items():
            say(f"{count:>8}  {name}")
    _leave(found=bool(found))


@app.command(short_help="Tell how much the memory holds.")
@_STORE
@click.option("--scope", envvar=SCOPE_VARIABLE, help=f"Only this scope. Default: ${SCOPE_VARIABLE}, else all.")
@_JSON
def stats(store: Path | None, scope: str | None, as_json: bool) -> None:
    """Tell where the memory is, and how much it holds."""
    with _open(store) as memory:
        found = memory.stats(scope=scope)
        tuned = memory.weights._asdict() if memory.tuned else None
    told: dict[str, Any] = {"store": str(_place(store))} | asdict(found)
    told |= {"first": iso(found.first), "last": iso(found.last), "tuned": tuned}
    if as_json:
        return say_json(told)
    for name, value in told.items():
        if isinstance(value, dict):
            value = ", ".join(f"{signal} {weight:.4g}" for signal, weight in value.items())
        shown = f"{value:,}" if isinstance(value, int) else value or ("no" if name == "tuned" else "")
        say(f"{name:<14} {shown}".rstrip())
    return None


@app.command(short_help="Remove conversations for good.")
@click.argument("conversations", metavar="[CONVERSATION]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Forget the whole scope.")
@_options(_STORE, _SCOPE, _JSON)
def forget(conversations: Sequence[str], everything: bool, store: Path | None, scope: str, as_json: bool) -> None:
    """Remove conversations with all that was kept of them, at once and for good."""
    if bool(conversations) == everything:
        raise click.UsageError("Name either conversations to forget, or --all for the whole scope")
    with _open(store) as memory:
        missing = [each for each in dict.fromkeys(conversations) if memory.get(each, scope=scope) is None]
        gone = memory.forget(conversations or None, scope=scope, everything=everything)
    if as_json:
        say_json({"forgotten": gone, "not_found": missing})
    else:
        for each in missing:
            _note(f"no conversation {each!r} in scope {scope!r}")
        say(f"{many(gone, 'conversation')} forgotten")
    _leave(found=bool(gone))


@app.command(short_help="Exchange all vectors for another embedder's.")
@click.option("--embedder", metavar="NAME", required=True, help="The new embedder.")
@_options(_STORE, _JSON)
def reembed(embedder: str, store: Path | None, as_json: bool) -> None:
    """Exchange all vectors for another embedder's.

    May be interrupted and run again; switches over at the end.
    """
    with (
        _telling_if_stopped(lambda: "the memory still has its old vectors; run it again to finish"),
        _open(store) as memory,
        progress("embedding", memory.stats().passages) as at,
    ):
        count = memory.reembed(embedder, progress=lambda done, _: at(done))
    if as_json:
        say_json({"passages": count, "embedder": embedder})
    else:
        say(f"{many(count, 'passage')} embedded with {embedder}")


@app.command(short_help="Fit the weights of the signals to this memory.")
@click.option(
    "--questions",
    metavar="FILE",
    help='JSON Lines: {"question": "…", "evidence": [["CONVERSATION", TURN]], "scope": "…"}; - is standard input. '
    "Default: what was asked in the memory, and answered in the next turn.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=120, show_default=True, help="How long to search."
)
@click.option("--reset", is_flag=True, help="Go back to the default weights.")
@_options(_STORE)
@click.option(
    "--scope",
    envvar=SCOPE_VARIABLE,
    default="default",
    show_default=True,
    help="Of questions that name none. Without --questions all scopes are looked through.",
)
@_options(_EMBEDDER, _JSON)
def tune(
    questions: str | None,
    seconds: float,
    reset: bool,
    store: Path | None,
    scope: str,
    embedder: str | None,
    as_json: bool,
) -> None:
    """Fit the weights of the signals to this memory; they are kept only if they answer better.

    One half of the questions is fitted to; the other half, of other conversations, decides. Nothing is sent anywhere,
    and without a gain nothing is changed.
    """
    if reset and questions is not None:
        raise click.UsageError("--reset: goes without --questions")
    asked = None if questions is None else _questions(questions)
    with (
        _telling_if_stopped(lambda: "the weights are as they were"),
        _open(store, embedder) as memory,
    ):
        if reset:
            had = memory.reset_tuning()
            if as_json:
                return say_json({"reset": had})
            return say("the default weights are in use again" if had else "the default weights were in use")
        with counter("tuning", "set of weights") as at:
            report = memory.tune(asked, scope=scope, seconds=seconds, progress=at)
    if as_json:
        say_json(tuning_json(report))
    else:
        say_tuning(report)
    return _leave(found=report.held_out is not None)


@app.command(short_help="Write a memory in another format, or its summaries.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@_FORMAT
@click.option("--reembed", is_flag=True, help="Make all vectors anew in the copy, with --embedder.")
@click.option("--embedder", metavar="NAME", help="The embedder for --reembed. Default: minilm.")
@click.option("--skip-bad", is_flag=True, help="Leave out entries that cannot be used, and report each of them.")
@click.option("--overwrite", is_flag=True, help="Replace what the destination holds.")
@click.option(
    "--scope",
    envvar=SCOPE_VARIABLE,
    default="default",
    show_default=True,
    help="Whose summaries, if these are what is written. A whole memory is written with all its scopes.",
)
@_JSON
@click.pass_context
def convert(
    asked: click.Context,
    source: Path,
    destination: Path,
    layout: str | None,
    reembed: bool,
    embedder: str | None,
    skip_bad: bool,
    overwrite: bool,
    scope: str,
    as_json: bool,
) -> None:
    """Write the memory at SOURCE, a store or a file, to DESTINATION in another format.

    One that ends in .h5, .hdf5, .pkl or .pickle is a whole memory; one in .json, .yaml or .sqlite gets the summaries
    alone. For a directory, name the --format.
    """
    from latent_memory import embedders, formats
    from latent_memory.database import exists

    source, destination = source.expanduser(), destination.expanduser()
    summaries = layout is None and destination.suffix.lower() in formats.SUMMARY_SUFFIXES and not destination.is_dir()
    if embedder is not None and not reembed:
        raise click.UsageError("--embedder: goes with --reembed alone")
    if summaries and reembed:
        raise click.UsageError(f"--reembed: a file that ends in {destination.suffix} gets summaries, without vectors")
    if not summaries and asked.get_parameter_source("scope") is click.core.ParameterSource.COMMANDLINE:
        # Whoever asks for one scope must not hand on all of them.
        raise click.UsageError("--scope: goes with summaries alone; a whole memory is written with all its scopes")
    with _looking_into(destination):
        if destination.exists() and not overwrite:
            raise InputError(f"{destination}: already exists; name another place, or give --overwrite")
        if destination.resolve() == source.resolve():
            raise InputError(f"{destination}: is the memory that is to be converted; name another place")
    with _looking_into(source):
        if not source.exists() or (source.is_dir() and not (exists(source) or formats.detect(source))):
            raise InputError(f"no memory at {source}")
    # Before any work is done: it may not be there.
    new = embedders.load(embedder or embedders.DEFAULT) if reembed else None
    bad: list[InputError] = []
    with (
        _telling_if_stopped(lambda: f"nothing was written to {destination}; run it again"),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary,
        contextlib.ExitStack() as opened,
    ):
        memory = opened.enter_context(_open(source, on_bad=bad.append if skip_bad else None))
        for error in bad:
            _note(f"left out: {error}")
        told = memory.stats(scope=scope if summaries else None)
        written: int | None = None
        if new is not None:
            # In a copy, so that what goes wrong leaves the destination as it is.
            copy = Path(temporary) / "memory"
            memory.save(copy, formats.STORE)
            memory = opened.enter_context(_open(copy))
            with progress("embedding", told.passages) as at:
                memory.reembed(new, progress=lambda done, _: at(done))
        if told.conversations or not summaries:
            with progress("writing", told.conversations if summaries else told.passages) as at:
                written = memory.save(destination, layout, scope=scope, progress=at)
                at(written)
    if as_json:
        what = "summaries" if summaries else "passages"
        to = None if written is None else str(destination)
        say_json({what: written or 0, "left_out": len(bad), "destination": to})
    elif written is None:
        _note(f"no conversations in scope {scope!r}; nothing was written")
    elif summaries:
        noun = "summary" if written == 1 else "summaries"
        say(f"{written:,} {noun} written to {destination} (without turns and vectors)")
    else:
        of = f" of {told.scopes:,} scopes" if told.scopes > 1 else ""
        say(f"{many(written, 'passage')}{of} written to {destination}")
    _leave(found=written is not None)


@app.command(short_help="Show what a memory finds in example conversations.")
@click.option("--keep", metavar="DIR", type=click.Path(path_type=Path), help="Keep the demonstration's memory here.")
def demo(keep: Path | None) -> None:
    """Add the example conversations to a memory of their own, ask it a few questions, and show what it finds."""
    from latent_memory import demonstration

    program = PROGRAM if shutil.which(PROGRAM) else sys.argv[0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        demonstration.run(keep or Path(temporary) / "memory", program, kept=keep is not None)


# -- opening and reading ----------------------------------------------------------------------------------


@contextmanager
def _open(
    store: Path | None,
    embedder: str | None = None,
    *,
    create: bool = False,
    summariser: str | None = None,
    reranker: str | None = None,
    warm: bool = False,
    layout: str | None = None,
    on_bad: Callable[[InputError], None] | None = None,
) -> Iterator[LatentMemory]:
    from latent_memory import formats
    from latent_memory.database import FILE_NAME
    from latent_memory.memory import LatentMemory

    place = _place(store)
    with _looking_into(place):
        if place.name == FILE_NAME and place.is_file():
            raise InputError(f"{place}: is a file in a store; name its directory: {place.parent}")
        if place.is_file() and formats.detect(place) is None:
            added = f"{PROGRAM} add {shlex.quote(str(place))}"
            raise InputError(f"{place}: is a file, and no memory; add it to one with: {added}")
    with LatentMemory.open(
        place,
        embedder=embedder,
        create=create,
        summariser=summariser,
        reranker=reranker,
        format=layout,
        on_bad=on_bad,
    ) as memory:
        for note in memory.notes:
            _note(note)
        if warm:
            memory.warm()
        yield memory


def _place(store: Path | None) -> Path:
    """Return where the memory is."""
    if store is not None:
        return store.expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("latent-memory", appauthor=False)) / "memory"


@contextmanager
def _looking_into(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot look into {str(path)[:80]}: {error.args[-1]}") from None


@contextmanager
def _telling_if_stopped(so_far: Callable[[], str]) -> Iterator[None]:
    """Tell what became of a command's work, if the user interrupts it."""
    try:
        yield
    except KeyboardInterrupt:
        raise _StoppedError(so_far()) from None


def _filters(
    *, since: str | None, until: str | None, during: str | None, roles: Sequence[str], conversations: Sequence[str]
) -> dict[str, Any]:
    period = {"since": since, "until": until, "during": during}
    return {**period, "roles": roles or None, "conversation_ids": conversations or None}


def _columns(told: Sequence[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in told]
    if bad := next((field for field, equals, _ in split if not equals), None):
        raise click.UsageError(f"--column {bad}: FIELD=NAME was expected, as in summary=text")
    return {field: name for field, _, name in split}


def _questions(name: str) -> list[Any]:
    """Return the questions of a file of JSON Lines, or of standard input; what they hold is checked elsewhere."""
    from latent_memory import inputs

    questions: list[Any] = []
    try:
        told = inputs.standard_input().read() if name == "-" else Path(name).expanduser().read_bytes()
        lines = told.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name[:80]}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                questions.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}, line {number}: not JSON ({error})") from None
    return questions


def _query(query: str) -> str:
    if query != "-":
        return query
    from latent_memory import inputs

    try:
        return inputs.standard_input().read().decode()
    except OSError as error:
        raise InputError(f"cannot read standard input: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 (byte {error.start})") from None


# -- ending ----------------------------------------------------------------------------------------------


def _leave(*, found: bool) -> None:
    if not found:
        raise click.exceptions.Exit(1)


def _note(text: str) -> None:
    print(harmless(text, sys.stderr), file=sys.stderr)


def _failed(message: str) -> int:
    with contextlib.suppress(OSError):
        # Standard error may be what cannot be written to.
        _note(f"{PROGRAM}: {message}")
    return 2
