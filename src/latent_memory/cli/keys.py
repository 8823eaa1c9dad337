"""The commands for the keys of a server: `keys create`, `keys list` and `keys revoke`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_memory.cli.ending import PROGRAM, leave, note
from latent_memory.cli.opening import looking_into, open_memory, place_of
from latent_memory.cli.options import JSON, MORE, STORE, Command, options
from latent_memory.errors import StoreError
from latent_memory.output import iso, many, minute, say, say_json

if TYPE_CHECKING:
    from latent_memory.keys import KeyInfo, KeyRing


@click.group(epilog=MORE, short_help="Create, list and revoke a server's API keys.")
def keys() -> None:
    """Create, list and revoke the API keys with which a server lets others in.

    As soon as a store has one, a server for it asks everybody for a key.
    """


@keys.command(cls=Command, short_help="Create a key, and print it once.")
@click.option("--scope", "scopes", metavar="NAME", multiple=True, help="A scope that it opens; repeatable.")
@click.option(
    "--scope-prefix",
    "prefixes",
    metavar="PREFIX",
    multiple=True,
    help='It opens each scope whose name begins so, such as "app:"; repeatable.',
)
@click.option("--all-scopes", "every_scope", is_flag=True, help="It opens every scope.")
@click.option("--read-only", is_flag=True, help="It may recall, and neither add nor forget.")
@click.option(
    "--expires", metavar="TIME", help="When it ends (ISO 8601), or how long from now: 90d, 12h, 30m. Default: never."
)
@click.option("--name", metavar="TEXT", help="What to call it in a listing.")
@options(STORE, JSON)
def create(
    scopes: Sequence[str],
    prefixes: Sequence[str],
    every_scope: bool,
    read_only: bool,
    expires: str | None,
    name: str | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Create a key, and print it: this once, for only its hash is kept.

    Name at least one --scope or --scope-prefix, or --all-scopes. Standard output gets the key alone, so that it can be
    put into a variable. The memory is made if there is none.
    """
    from latent_memory.database import exists

    if not (scopes or prefixes or every_scope):
        raise click.UsageError("Name what the key opens: --scope NAME, --scope-prefix PREFIX or --all-scopes")
    if every_scope and (scopes or prefixes):
        raise click.UsageError("--all-scopes: goes without --scope and --scope-prefix")
    with _ring(store) as ring:
        text, info = ring.create(scopes, prefixes, every_scope, read_only, expires, name)
    if as_json:
        say_json({"key": text, **_key_json(info)})
    else:
        print(text)
        note(f"key {info.key_id}: {_access(info)}. It is shown this once only: keep it where nobody else reads it")
    # At last, so that a key which is there is told. A server is often set up with its keys first.
    if not exists(place_of(store)):
        with open_memory(store, create=True):
            pass


@keys.command("list", cls=Command, short_help="List the keys, the oldest first.")
@options(STORE, JSON)
def list_(store: Path | None, as_json: bool) -> None:
    """List all keys there have ever been, the oldest first; times are in UTC."""
    with _ring(store, there=True) as ring:
        found = ring.list()
    if as_json:
        say_json([_key_json(info) for info in found])
    else:
        _say_keys(found)
        if not found:
            note(f"no keys; create one with: {PROGRAM} keys create")
    leave(found=bool(found))


@keys.command(cls=Command, short_help="Let keys open nothing any more.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options(STORE, JSON)
def revoke(ids: Sequence[str], store: Path | None, as_json: bool) -> None:
    """Let keys open nothing any more, from the next request on.

    ID is what `keys list` shows. They stay in the listing; revoking the last one opens the server to nobody.
    """
    from latent_memory.keys import id_of

    missing = []
    with _ring(store, there=True) as ring:
        # Who is in a hurry may give the whole key.
        named = dict.fromkeys(id_of(each) or each for each in ids)
        for each in named:
            if not ring.revoke(each):
                # What is longer than an id may be most of a key.
                missing.append(each if len(each) <= 10 else f"{each[:10]}…")
    if as_json:
        say_json({"revoked": len(named) - len(missing), "not_found": missing})
    else:
        for each in missing:
            note(f"no key {each!r}")
        say(f"{many(len(named) - len(missing), 'key')} revoked")
    leave(found=len(missing) < len(named))


def _ring(store: Path | None, *, there: bool = False) -> KeyRing:
    """Open the keys of a store, which must be `there`."""
    from latent_memory.keys import KeyRing

    place = place_of(store)
    ring = KeyRing(place)
    with looking_into(place):
        if there and not place.is_dir():
            raise StoreError(f"no memory at {place}; name another with --store")
    return ring


def _access(info: KeyInfo) -> str:
    """Tell what a key opens, in words."""
    opened = "opens every scope" if info.every_scope else f"opens {_scopes(info)}"
    only = ", read only" if info.read_only else ""
    until = f", until {minute(info.expires)} UTC" if info.expires else ""
    return f"{opened}{only}{until}"


def _scopes(info: KeyInfo) -> str:
    if info.every_scope:
        return "every scope"
    return ", ".join([*sorted(info.scopes), *(f"{prefix}*" for prefix in info.prefixes)])


def _say_keys(found: Sequence[KeyInfo]) -> None:
    """Print keys as a table, a line a key."""
    rows = [("id", "state", "access", "created", "expires", "last used", "scopes", "name")] if found else []
    rows += [
        (
            info.key_id,
            info.state(),
            "read" if info.read_only else "read, write",
            minute(info.created),
            minute(info.expires) or "never",
            minute(info.last_used) or "never",
            " ".join(_scopes(info).split()),
            " ".join((info.name or "").split()),
        )
        for info in found
    ]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip())


def _key_json(info: KeyInfo) -> dict[str, Any]:
    times = {name: iso(getattr(info, name)) for name in ("created", "expires", "last_used", "revoked")}
    told = asdict(info) | {"scopes": sorted(info.scopes), "prefixes": list(info.prefixes)} | times
    return told | {"state": info.state()}
