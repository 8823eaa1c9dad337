"""The command line: `latent-memory`. A thin door to `LatentMemory`.

Exit codes: 0 found or done, 1 nothing found, 2 bad use, bad input, or a store that cannot be used.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from latent_memory import __version__
from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.output import (
    context_json,
    conversation_json,
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
)

if TYPE_CHECKING:
    from latent_memory.memory import LatentMemory

PROGRAM = "latent-memory"
STORE_VARIABLE = "LATENT_MEMORY_STORE"
SCOPE_VARIABLE = "LATENT_MEMORY_SCOPE"

Command = TypeVar("Command", bound=Callable[..., Any])


def main() -> None:
    """Run the command line; whatever goes wrong becomes one line on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a character shows another one, instead of ending the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        # Not app(): that has its own ideas of a broken pipe, and of how an error looks.
        with app.make_context(PROGRAM, sys.argv[1:]) as context:
            app.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else PROGRAM
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        _fail(f"{' '.join(error.format_message().split())} (see {asked} --help)")
    except LatentMemoryError as error:
        _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        print("stopped; what was reported as added is kept", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EINVAL):
            raise
        # The reader (head, less) has gone (Windows says EINVAL); there is nobody to tell, and nothing went wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


# -- options ----------------------------------------------------------------------------------------------

_STORE = click.option(
    "--store",
    metavar="PATH",
    envvar=STORE_VARIABLE,
    type=click.Path(path_type=Path),
    help="The memory: a store's directory, or a file of another format (docs/formats.md). "
    f"Default: ${STORE_VARIABLE}, else a store of your own where the system keeps such data.",
)
_SCOPE = click.option(
    "--scope",
    envvar=SCOPE_VARIABLE,
    default="default",
    show_default=True,
    help="Whose memory: a user, a tenant, a project.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, as docs/cli.md describes it.")
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
_FILTERS = (
    click.option("--since", metavar="TIME", help="Only turns said then or later (ISO 8601)."),
    click.option("--until", metavar="TIME", help="Only turns said before then (ISO 8601)."),
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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=PROGRAM)
def app() -> None:
    """A conversation memory for language models: add conversations, recall the turns that matter."""


# -- commands ---------------------------------------------------------------------------------------------


@app.command()
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

    What a file is, its content tells (see --from). Adding a file again adds only what is new in it. Every file is
    checked from end to end first: if one entry cannot be used, nothing is added (see --skip-bad).
    """
    from latent_memory import inputs

    mapping = _columns(columns)
    with inputs.opened(files, source, branches=branches, table=table, columns=mapping) as given:
        given.check(skip_bad=skip_bad)
        turns = sum(count for _, count in given.counts)
        for told in given.bad:
            _note(f"left out: {told}")
        with _open(store, embedder, create=True, summariser=summariser, layout=layout) as memory:
            if not as_json:
                for file in given.sources:
                    # Of our own format, that is news to nobody but whoever looks on.
                    if file.format != "jsonl" or sys.stderr.isatty():
                        _note(f"{file.name}: {file.description}")
            conversations = given.conversations(skip_bad=skip_bad)
            with progress("adding", turns) as at:
                report = memory.add(conversations, scope, progress=lambda report: at(handled(report)))
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


@app.command()
@click.argument("query")
@click.option(
    "-k", "--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many turns at most."
)
@_options(_STORE, _SCOPE, *_FILTERS, _EMBEDDER, _JSON)
def recall(
    query: str, limit: int, store: Path | None, scope: str, embedder: str | None, as_json: bool, **given: Any
) -> None:
    """Find the turns that matter to QUERY, best first, with the signals that made each score.

    QUERY - is read from standard input.
    """
    with _open(store, embedder, warm=True) as memory:
        hits = memory.recall(_query(query), limit, scope=scope, **_filters(**given))
    if as_json:
        say_json([hit_json(hit) for hit in hits])
    else:
        say_hits(hits)
        if not hits:
            print(f"nothing found in scope {scope!r}", file=sys.stderr)
    _leave(found=bool(hits))


@app.command()
@click.argument("query")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="The most tokens that the block may have (estimated).",
)
@_options(_STORE, _SCOPE, *_FILTERS, _EMBEDDER, _JSON)
def context(
    query: str, budget: int, store: Path | None, scope: str, embedder: str | None, as_json: bool, **given: Any
) -> None:
    """Print the block of text that a prompt gets for QUERY; - reads it from standard input."""
    with _open(store, embedder, warm=True) as memory:
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


@app.command()
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
    say(f"{found.title}\n{found.conversation_id} · {found.type} · {minute(found.timestamp)}\n{found.summary}\n")
    for i in shown:
        said = found.turns[i]
        say(f"{i:>3}  {said.name or said.role}: {said.text}")
    return None


@app.command("list")
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
        for item in page:
            say(f"{minute(item.timestamp):<16}  {item.conversation_id:<24} {item.turns:>4}  {item.title}")
    _leave(found=bool(page))


@app.command()
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


@app.command()
@_STORE
@click.option("--scope", help="Only this scope. Default: all.")
@_JSON
def stats(store: Path | None, scope: str | None, as_json: bool) -> None:
    """Tell how much the memory holds."""
    with _open(store) as memory:
        found = memory.stats(scope=scope)
    told = asdict(found) | {"first": iso(found.first), "last": iso(found.last)}
    if as_json:
        return say_json(told)
    for name, value in told.items():
        shown = f"{value:,}" if isinstance(value, int) else value or ""
        say(f"{name:<14} {shown}".rstrip())
    return None


@app.command()
@click.argument("conversations", metavar="[CONVERSATION]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Forget the whole scope.")
@_options(_STORE, _SCOPE, _JSON)
def forget(conversations: Sequence[str], everything: bool, store: Path | None, scope: str, as_json: bool) -> None:
    """Remove conversations with all that was kept of them, at once and for good."""
    if bool(conversations) == everything:
        raise click.UsageError("Name either conversations to forget, or --all for the whole scope.")
    with _open(store) as memory:
        gone = memory.forget(conversations or None, scope=scope, everything=everything)
    if as_json:
        say_json({"forgotten": gone})
    else:
        say(f"{many(gone, 'conversation')} forgotten")
    _leave(found=bool(gone))


@app.command()
@click.option("--embedder", metavar="NAME", required=True, help="The new embedder.")
@_options(_STORE, _JSON)
def reembed(embedder: str, store: Path | None, as_json: bool) -> None:
    """Exchange all vectors for another embedder's.

    May be interrupted and run again; switches over at the end.
    """
    with _open(store) as memory, progress("embedding", memory.stats().passages) as at:
        count = memory.reembed(embedder, progress=lambda done, _: at(done))
    if as_json:
        say_json({"passages": count, "embedder": embedder})
    else:
        say(f"{many(count, 'passage')} embedded with {embedder}")


@app.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@_FORMAT
@click.option("--reembed", is_flag=True, help="Make all vectors anew in the copy, with --embedder.")
@click.option("--embedder", metavar="NAME", default="minilm", show_default=True, help="The embedder for --reembed.")
@click.option("--skip-bad", is_flag=True, help="Leave out entries that cannot be used, and report each of them.")
@click.option("--overwrite", is_flag=True, help="Replace what the destination holds.")
@click.option("--scope", default="default", show_default=True, help="Whose summaries, if these are what is written.")
@_JSON
def convert(
    source: Path,
    destination: Path,
    layout: str | None,
    reembed: bool,
    embedder: str,
    skip_bad: bool,
    overwrite: bool,
    scope: str,
    as_json: bool,
) -> None:
    """Write the memory at SOURCE, a store or a file, to DESTINATION in another format.

    One that ends in .h5, .hdf5, .pkl or .pickle is a whole memory; one in .json, .yaml or .sqlite gets the summaries
    alone. For a directory, name the --format.
    """
    if destination.exists() and not overwrite:
        raise InputError(f"{destination}: is there already; name another place, or give --overwrite")
    bad: list[InputError] = []
    with _open(source, on_bad=bad.append if skip_bad else None) as memory:
        for error in bad:
            _note(f"left out: {error}")
        passages = memory.stats().passages
        with progress("writing", passages) as at:
            memory.save(destination, layout, scope=scope, progress=at)
    if reembed:
        with _open(destination) as copy, progress("embedding", passages) as at:
            copy.reembed(embedder, progress=lambda done, _: at(done))
    if as_json:
        say_json({"passages": passages, "left_out": len(bad), "destination": str(destination)})
    else:
        say(f"{many(passages, 'passage')} written to {destination}")


@app.command()
@click.option("--keep", metavar="DIR", type=click.Path(path_type=Path), help="Keep the demonstration's memory here.")
def demo(keep: Path | None) -> None:
    """Add the example conversations to a memory of their own, ask it a few questions, and show what it finds."""
    from latent_memory import demonstration

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        demonstration.run(keep or Path(temporary) / "memory", PROGRAM if shutil.which(PROGRAM) else sys.argv[0])


# -- opening and reading ----------------------------------------------------------------------------------


@contextmanager
def _open(
    store: Path | None,
    embedder: str | None = None,
    *,
    create: bool = False,
    summariser: str | None = None,
    warm: bool = False,
    layout: str | None = None,
    on_bad: Callable[[InputError], None] | None = None,
) -> Iterator[LatentMemory]:
    from latent_memory.memory import LatentMemory

    if store is None:
        import platformdirs

        store = Path(platformdirs.user_data_dir("latent-memory", appauthor=False)) / "memory"
    with LatentMemory.open(
        store, embedder=embedder, create=create, summariser=summariser, format=layout, on_bad=on_bad
    ) as memory:
        for note in memory.notes:
            _note(note)
        if warm:
            memory.warm()
        yield memory


def _filters(
    *, since: str | None, until: str | None, roles: Sequence[str], conversations: Sequence[str]
) -> dict[str, Any]:
    return {"since": since, "until": until, "roles": roles or None, "conversation_ids": conversations or None}


def _columns(told: Sequence[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in told]
    if bad := next((field for field, equals, _ in split if not equals), None):
        raise click.UsageError(f"--column {bad}: FIELD=NAME was expected, as in summary=text.")
    return {field: name for field, _, name in split}


def _query(query: str) -> str:
    if query != "-":
        return query
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 (byte {error.start})") from None


# -- ending ----------------------------------------------------------------------------------------------


def _leave(*, found: bool) -> None:
    if not found:
        raise click.exceptions.Exit(1)


def _note(text: str) -> None:
    print(harmless(text, sys.stderr), file=sys.stderr)


def _fail(message: str) -> NoReturn:
    print(harmless(f"{PROGRAM}: {message}", sys.stderr), file=sys.stderr)
    sys.exit(2)
