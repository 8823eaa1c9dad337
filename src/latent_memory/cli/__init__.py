"""The command line: `latent-memory`. A thin door to `LatentMemory`.

Exit codes: 0 found or done, 1 nothing found, 2 bad use, bad input, or a store that cannot be used, 130 interrupted.
"""

from __future__ import annotations

import sys

import click

from latent_memory import __version__
from latent_memory.cli import (
    adding,
    chatting,
    checking,
    converting,
    inspecting,
    keys,
    mcp,
    preparing,
    recalling,
    serving,
    tending,
    training,
)
from latent_memory.cli.ending import PROGRAM, StoppedError, discard, failed, fill_closed_streams, note, unwritable
from latent_memory.cli.options import MORE
from latent_memory.errors import LatentMemoryError

# Each module holds commands, and imports at its top only what all of them need: a command starts as fast as its work.
_COMMANDS = (
    adding.add,
    recalling.recall,
    recalling.context,
    inspecting.show,
    inspecting.list_,
    inspecting.scopes,
    inspecting.stats,
    inspecting.demo,
    chatting.chat,
    preparing.prepare,
    tending.forget,
    tending.reembed,
    tending.tune,
    checking.check,
    converting.convert,
    training.finetune,
    training.bridge,
    training.export,
    serving.serve,
    mcp.mcp_,
    keys.keys,
)


def main() -> None:
    """Run the command line; whatever goes wrong becomes one line on standard error and an exit code."""
    fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a character shows another one, instead of ending the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = _run()
        # Here, and not as the interpreter ends: that would tell of a full disk with a traceback.
        sys.stdout.flush()
    except OSError as error:
        code = unwritable(error)
    try:
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)
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
        return failed(f"{' '.join(error.format_message().split()).removesuffix('.')} (see {asked} --help)")
    except LatentMemoryError as error:
        return failed(str(error))
    except (StoppedError, KeyboardInterrupt, click.Abort) as stop:
        note(f"stopped; {stop}" if isinstance(stop, StoppedError) else "stopped")
        return 130
    return 0


@click.group(epilog=MORE, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=PROGRAM)
def app() -> None:
    """A conversation memory for language models: add conversations, recall the turns that matter."""


for _command in _COMMANDS:
    app.add_command(_command)
