"""The command that looks whether a memory is sound: `check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from latent_memory.cli.ending import leave
from latent_memory.cli.opening import open_memory, place_of, telling_if_stopped
from latent_memory.cli.options import JSON, STORE, Command
from latent_memory.errors import InputError, StoreDamagedError
from latent_memory.output import check_json, progress, say_check, say_json

if TYPE_CHECKING:
    from latent_memory.checking import CheckReport


@click.command(cls=Command, short_help="Look whether the memory is sound.")
@STORE
@click.option("--scope", metavar="NAME", help="Only what belongs to this scope. Default: all of the memory.")
@JSON
def check(store: Path | None, scope: str | None, as_json: bool) -> None:
    """Look whether everything is as it was written, and tell what to do about what is not.

    Nothing is changed. Exit code 1 means that something is wrong.
    """
    with telling_if_stopped(lambda: "nothing was changed"):
        report = _checked(store, scope)
    if as_json:
        say_json(check_json(report))
    else:
        say_check(report)
    leave(found=report.sound)


def _checked(store: Path | None, scope: str | None) -> CheckReport:
    from dataclasses import replace

    from latent_memory.checking import Finding, unreadable

    bad: list[Finding] = []

    def on_bad(error: InputError) -> None:
        advice = "mend the entry, or write the others to another place with: latent-memory convert --skip-bad"
        bad.append(Finding("conversation", str(place_of(store)), str(error), advice))

    try:
        with open_memory(store, on_bad=on_bad) as memory:
            total = memory.stats(scope=scope).passages
            with progress("checking", 2 * total) as at:
                report = memory.check(scope=scope, progress=lambda done, _: at(done))
    except StoreDamagedError as error:
        return unreadable(str(place_of(store)), error, scope)
    return replace(report, problems=(*report.problems, *bad))
