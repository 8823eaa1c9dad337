"""How a command ends: what it says on standard error, its exit code, and outputs that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

import click

from latent_memory.output import harmless

PROGRAM = "latent-memory"


class StoppedError(Exception):
    """The user has interrupted a command; the message says what became of its work."""


def leave(*, found: bool) -> None:
    """End with exit code 1 if nothing was found."""
    if not found:
        raise click.exceptions.Exit(1)


def note(text: str) -> None:
    """Say something beside the result, on standard error."""
    print(harmless(text, sys.stderr), file=sys.stderr)


def failed(message: str) -> int:
    """Say what went wrong; return the exit code."""
    with contextlib.suppress(OSError):
        # Standard error may be what cannot be written to.
        note(f"{PROGRAM}: {message}")
    return 2


def fill_closed_streams() -> None:
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


def discard(stream: TextIO) -> None:
    """Let what is still waiting to be written go nowhere: it would fail once more at the very end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def unwritable(error: OSError) -> int:
    """Tell that what is printed cannot be written, unless its reader (head, less) has gone; return the exit code."""
    if error.filename is not None:
        return failed(f"{error.filename}: {error.strerror or error}")
    discard(sys.stdout)
    # There is nobody to tell, and nothing went wrong. Windows says EINVAL.
    if error.errno == errno.EPIPE or (error.errno == errno.EINVAL and os.name == "nt"):
        return 0
    return failed(f"cannot write to standard output: {error.strerror or error}")
