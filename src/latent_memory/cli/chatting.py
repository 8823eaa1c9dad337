"""The command `chat`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_memory.cli.ending import PROGRAM, note
from latent_memory.cli.opening import open_memory, place_of, telling_if_stopped
from latent_memory.cli.options import DEVICE, DTYPE, EMBEDDER, MODEL, SCOPE, STORE, Command, options
from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.output import harmless, many

if TYPE_CHECKING:
    from latent_memory.chat import Chat, Exchange
    from latent_memory.inference.local_model import LocalModel
    from latent_memory.inference.ways import Way
    from latent_memory.memory import LatentMemory
    from latent_memory.records import Context, Passage

# So many of the memories that were used are shown, the most relevant ones; /memory shows all.
_SHOWN = 5
_FIRST_WORDS = 60
_HELP = """\
/memory   show everything that was recalled for the last answer
/help     show this
/quit     end; so does the end of input (Ctrl-D)
Ctrl-C while the model answers stops the answer; at the prompt it ends the chat."""


@click.command(cls=Command, short_help="Talk to a local model that remembers.")
@MODEL
@click.option(
    "--mode",
    type=click.Choice(["prompt", "kv", "soft", "lora", "none"]),
    default="prompt",
    show_default=True,
    help="How the memory gets into the model: as text, as stored keys and values, as soft tokens (--bridge), in its "
    "weights (--adapter), or not at all.",
)
@options(STORE, SCOPE)
@click.option("--conversation", metavar="ID", help="Continue this one. Default: a new one.")
@click.option("--no-save", is_flag=True, help="Add nothing to the memory.")
@click.option(
    "--budget", type=click.IntRange(min=1), default=1024, show_default=True, help="The most tokens of memory."
)
@click.option(
    "--max-tokens", "most", type=click.IntRange(min=1), default=256, show_default=True, help="The most of an answer."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How freely tokens are chosen; 0 takes the likeliest.",
)
@click.option("--seed", type=click.IntRange(0, 2**62), help="The same one gives the same answers.")
@click.option("--system", metavar="TEXT", help="What the model is told first, instead of the usual instruction.")
@click.option(
    "--adapter",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Of the mode lora: the adapter. Default: the one of the scope.",
)
@click.option(
    "--bridge",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Of the mode soft: the bridge. Default: the one of the scope.",
)
@DEVICE
@DTYPE
@click.option("--show-memory", is_flag=True, help="Print the whole block of memory for each question.")
@options(EMBEDDER)
@click.option("--json", "as_json", is_flag=True, help="Print each answer as a line of JSON.")
def chat(
    model: str,
    mode: str,
    store: Path | None,
    scope: str,
    conversation: str | None,
    no_save: bool,
    budget: int,
    most: int,
    temperature: float,
    seed: int | None,
    system: str | None,
    adapter: Path | None,
    bridge: Path | None,
    device: str | None,
    dtype: str | None,
    show_memory: bool,
    embedder: str | None,
    as_json: bool,
) -> None:
    """Talk to a local model: for each line, what matters is recalled, the model answers, and both are kept.

    Answers go to standard output, all else to standard error. Lines may be piped in. At the prompt, /help tells more.
    """
    if adapter is not None and mode != "lora":
        raise click.UsageError("--adapter: goes with --mode lora alone")
    if bridge is not None and mode != "soft":
        raise click.UsageError("--bridge: goes with --mode soft alone")
    from latent_memory.chat import Chat
    from latent_memory.inference import ways
    from latent_memory.inference.local_model import LocalModel, Sampling

    if conversation is not None and not conversation.strip():
        raise click.UsageError("--conversation: empty; give an id, or leave it out for a new one")
    if system is not None and not system.strip():
        raise click.UsageError("--system: empty; tell the model something, or leave it out")
    # Before the memory: nothing is made if there is no model.
    with _telling("loading the model"):
        local = LocalModel.load(model, device=device, dtype=dtype)
    with open_memory(store, embedder, create=not no_save, warm=not no_save or ways.recalls(mode)) as memory:
        way = _way(mode, local, memory, place_of(store), scope, bridge, adapter)
        talk = Chat(
            memory,
            local,
            way,
            scope=scope,
            conversation_id=conversation,
            recalls=ways.recalls(mode),
            budget=budget,
            most=most,
            sampling=Sampling(temperature, seed=seed),
            system=system,
            save=not no_save,
        )
        with (
            telling_if_stopped(lambda: _kept(talk, no_save)),
            contextlib.closing(talk),
            _preparing(way, memory, scope) as resting,
        ):
            _begin(talk, conversation)
            _converse(talk, way, resting, as_json=as_json, show_memory=show_memory)
        if _at_a_terminal() and talk.last is not None:
            _aside(_kept(talk, no_save))


def _way(
    mode: str,
    model: LocalModel,
    memory: LatentMemory,
    place: Path,
    scope: str,
    bridge: Path | None,
    adapter: Path | None,
) -> Way:
    from latent_memory import adapters, block_files, bridges, database
    from latent_memory.inference import ways

    is_store = place.is_dir() and database.exists(place)
    if mode == "lora" and adapter is None and is_store:
        adapter = memory.adapter_directory(adapters.named(scope))
    if mode == "soft" and bridge is None and is_store:
        bridge = memory.adapter_directory(bridges.name_of(scope)) / bridges.FILE
    return ways.load(
        mode,
        model,
        scope=scope,
        conversation=partial(memory.get, scope=scope),
        # A memory in a file has no place for them that would go with it.
        blocks=place / block_files.NAME if is_store else None,
        embedder=bridges.embedder_of(memory),
        vectors=partial(memory.vectors_of, scope=scope),
        bridge=bridge,
        adapter=adapter,
    )


@contextmanager
def _preparing(way: Way, memory: LatentMemory, scope: str) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Compute blocks that are missing while the user reads and types; yield what lets that rest meanwhile."""
    from latent_memory.inference.kv_cache import Background, BlockCache

    # Piped questions come one after the other: there is no time between them.
    if not isinstance(way, BlockCache) or not _at_a_terminal():
        yield contextlib.nullcontext
        return
    background = Background(way, memory.conversation_ids(scope=scope))
    try:
        yield background.paused
    finally:
        background.close()
        if background.error is not None:
            note(f"not all keys and values were prepared: {background.error}")


def _begin(talk: Chat, conversation: str | None) -> None:
    if talk.continued:
        _aside(f"continuing {talk.conversation_id}, {many(talk.continued, 'turn')} so far")
    elif conversation is not None:
        _aside(f"no conversation {conversation!r} yet; it begins now")
    if _at_a_terminal():
        _aside("/help tells what can be asked for; Ctrl-D ends")


def _kept(talk: Chat, no_save: bool) -> str:
    if no_save or talk.last is None:
        return "nothing was added to the memory"
    return f"what was said is kept; go on with: {PROGRAM} chat --conversation {talk.conversation_id}"


def _converse(
    talk: Chat, way: Way, resting: Callable[[], AbstractContextManager[None]], *, as_json: bool, show_memory: bool
) -> None:
    dropped = 0
    for line in _lines():
        question = line.strip()
        if not question:
            continue
        if question in _COMMANDS:
            if _COMMANDS[question](talk):
                return
            continue
        try:
            with resting():
                _answer(talk, way, question, as_json=as_json, show_memory=show_memory)
        except KeyboardInterrupt:
            # At a terminal it ends the answer, and not the chat.
            print(flush=True)
            if not _at_a_terminal():
                raise
        except LatentMemoryError as error:
            if not _at_a_terminal():
                raise
            note(f"{PROGRAM}: {error}")
        if talk.dropped and not dropped:
            dropped = talk.dropped
            _aside(
                "the conversation has grown longer than the model can read: from now on what was said first is "
                "recalled when it matters, as all else is"
            )


def _answer(talk: Chat, way: Way, question: str, *, as_json: bool, show_memory: bool) -> None:
    with contextlib.ExitStack() as reading:

        def recalled(exchange: Exchange) -> None:
            _show(exchange, whole=show_memory)
            reading.enter_context(_telling(_reading(way, exchange)))

        with contextlib.closing(talk.ask(question, recalled)) as pieces:
            for piece in pieces:
                reading.close()
                if not as_json:
                    print(harmless(piece, sys.stdout), end="", flush=True)
    last = talk.last
    assert last is not None
    if as_json:
        print(json.dumps(_as_json(talk, last)), flush=True)
    else:
        print(flush=True)
    first = "no answer" if last.seconds is None else f"{last.seconds:.2f} s to the first token"
    _aside(f"{first}, {many(last.read, 'token')} read")


def _reading(way: Way, exchange: Exchange) -> str:
    """Tell why it takes a while, the first time that stored memory is used."""
    from latent_memory.inference.kv_cache import BlockCache

    missing = way.missing(exchange.context) if isinstance(way, BlockCache) and exchange.context else 0
    return f"reading {many(missing, 'token')} of memory for the first time" if missing else "reading"


def _as_json(talk: Chat, exchange: Exchange) -> dict[str, Any]:
    return {
        "conversation_id": talk.conversation_id,
        "question": exchange.question,
        "answer": exchange.answer.rstrip(),
        "memory": [
            {"conversation_id": passage.conversation_id, "turn": passage.turn} for passage in exchange.context.passages
        ],
        "memory_tokens": exchange.context.tokens,
        "seconds": exchange.seconds,
        "read": exchange.read,
    }


# -- what was used ----------------------------------------------------------------------------------------


def _show(exchange: Exchange | None, *, whole: bool = False, most: int = _SHOWN) -> None:
    """Show what was recalled: the block itself, or a line for each of the most relevant passages."""
    context = exchange.context if exchange else None
    if not context:
        return
    if whole:
        _aside(context.text.rstrip())
        return
    ranked = sorted(zip(_relevance(context), context.passages, strict=True), key=lambda pair: -pair[0])
    _aside(f"recalled {many(len(ranked), 'passage')}, {many(context.tokens, 'token')}")
    for _, passage in ranked[:most]:
        _aside(f"  {_line(passage)}")
    if len(ranked) > most:
        _aside(f"  and {len(ranked) - most:,} more")


def _relevance(context: Context) -> tuple[float, ...]:
    return context.relevance or (0.0,) * len(context.passages)


def _line(passage: Passage) -> str:
    title = " ".join(passage.title.split())
    said = " ".join(passage.text.split())
    speaker = passage.name or passage.role or "summary"
    return f"{_first(title, 40)} ({passage.timestamp:%Y-%m-%d}) {speaker}: {_first(said, _FIRST_WORDS)}"


def _first(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most].rsplit(' ', 1)[0]}…"


# -- the terminal -----------------------------------------------------------------------------------------


def _help(_: Chat) -> bool:
    note(_HELP)
    return False


def _memory(talk: Chat) -> bool:
    if talk.last is None or not talk.last.context:
        note("nothing was recalled")
    else:
        _show(talk.last, most=len(talk.last.context.passages))
    return False


def _quit(_: Chat) -> bool:
    return True


# What each does returns whether the chat ends.
_COMMANDS: dict[str, Callable[[Chat], bool]] = {"/help": _help, "/memory": _memory, "/quit": _quit}


def _at_a_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _lines() -> Iterator[str]:
    """Yield what is asked, line by line; at a terminal, after a prompt."""
    if _at_a_terminal():
        with contextlib.suppress(ImportError):
            # Gives input() a history, and keys to edit a line with.
            import readline  # noqa: F401
        while True:
            try:
                if sys.stdout.isatty():
                    yield input("> ")
                else:
                    print("> ", end="", file=sys.stderr, flush=True)
                    line = sys.stdin.readline()
                    if not line:
                        return
                    yield line
            except EOFError:
                print(file=sys.stderr)
                return
            except UnicodeDecodeError as error:
                note(f"what was typed is not {error.encoding} (byte {error.start}); type it again")
    from latent_memory import inputs

    number = 0
    given = inputs.standard_input()
    while line_read := _read(given, number + 1):
        number += 1
        yield line_read


def _read(given: Any, number: int) -> str:
    try:
        line: bytes = given.readline()
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input, line {number}: not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"cannot read standard input: {error.strerror or error}") from None


def _aside(text: str) -> None:
    """Say something beside the conversation, on standard error; dimmed if that is a terminal."""
    if sys.stderr.isatty():
        print(f"\x1b[2m{harmless(text, sys.stderr)}\x1b[0m", file=sys.stderr, flush=True)
    else:
        note(text)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Tell what is going on while it goes on, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    print(f"\x1b[2m{what}…\x1b[0m", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
