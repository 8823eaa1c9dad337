"""What adapters have seen: forgetting cannot reach into trained weights, so it must be known which hold what.

An adapter is a directory with weights and `latent_memory.json`, which names every turn that it was trained on, with a
digest of its text. A store finds its adapters under `adapters/` in its own directory, and in `adapters.json` those that
are kept elsewhere. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_memory.errors import DerivedError, InputError, StoreError
from latent_memory.files import as_ours, sha256_of, written
from latent_memory.records import Conversation, Turn

MANIFEST = "latent_memory.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
DIRECTORY = "adapters"
REGISTRY = "adapters.json"

_FORMAT = "latent-memory adapter"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """Turns of one conversation that an adapter has seen.

    Attributes:
        conversation_id: of the conversation.
        turns: their places in it, ascending.
        digests: of each turn's text and speaker, by which it is told whether the turn is still what it was.
    """

    conversation_id: str
    turns: tuple[int, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `latent_memory.json` says of an adapter.

    Attributes:
        scope: of the memory it was trained on.
        model: its base model: "name", "dtype" and "fingerprint".
        settings: that it was trained with.
        finished: whether its training has come to the end; before that it has seen all the same.
        files: by name: "bytes" and "sha256"; none before the training has ended.
        losses: what came out of it.
        seen: turns it was trained on.
        held_out: turns that were kept for validation, and never trained on.
    """

    scope: str
    model: Mapping[str, str]
    settings: Mapping[str, Any]
    finished: bool
    files: Mapping[str, Mapping[str, Any]]
    losses: Mapping[str, Any]
    seen: tuple[Seen, ...]
    held_out: tuple[Seen, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read it from an adapter's directory.

        Raises:
            DerivedError: if there is none, or it is damaged, or written by a newer version of this package.
        """
        path = directory / MANIFEST
        try:
            told = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DerivedError(
                f"no adapter at {directory}: it has no {MANIFEST}. Train one there with: latent-memory finetune"
            ) from None
        except OSError as error:
            raise DerivedError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError:
            raise _damaged(path) from None
        if not isinstance(told, dict) or told.get("format") != _FORMAT:
            raise _damaged(path)
        if told.get("version") != _VERSION:
            raise DerivedError(f"{path}: version {told.get('version')}; a newer latent-memory wrote it. Upgrade")
        if told.pop("sum", None) != _sum(told):
            raise _damaged(path)
        return cls(
            **{name: told[name] for name in ("scope", "model", "settings", "finished", "files", "losses")},
            seen=tuple(_unpacked(told["seen"])),
            held_out=tuple(_unpacked(told["held_out"])),
        )

    def write(self, directory: Path) -> None:
        """Write it into an adapter's directory, whole or not at all."""
        told: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            **{name: getattr(self, name) for name in ("scope", "model", "settings", "finished", "files", "losses")},
            "seen": [_packed(each) for each in self.seen],
            "held_out": [_packed(each) for each in self.held_out],
        }
        # As it will be read: tuples are lists then.
        told = json.loads(json.dumps(told))
        with written(directory / MANIFEST) as file:
            file.write(json.dumps({**told, "sum": _sum(told)}, indent=1).encode() + b"\n")

    def check(self, directory: Path) -> None:
        """Refuse an adapter whose files are not what they were when they were written.

        Raises:
            DerivedError: naming the file.
        """
        if not self.finished:
            raise DerivedError(
                f"{directory}: its training has not come to its end. Run the same finetune again: it goes on from there"
            )
        for name, of in self.files.items():
            path = directory / name
            try:
                size = path.stat().st_size
                whole = size == of["bytes"] and sha256_of(path) == of["sha256"]
            except FileNotFoundError:
                raise DerivedError(f"{path}: missing. Train the adapter anew") from None
            except OSError as error:
                raise DerivedError(f"cannot read {path}: {error.strerror or error}") from error
            if not whole:
                raise DerivedError(
                    f"{path}: damaged: {size:,} bytes that are not the {of['bytes']:,} that were written. Train the "
                    "adapter anew"
                )


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter that was trained on a memory, against what the memory holds now.

    Attributes:
        path: its directory.
        scope: of the memory it was trained on; "" if that cannot be read.
        model: the name of its base model.
        finished: whether its training has come to its end.
        turns: how many it has seen.
        forgotten: (conversation_id, turns) that it has seen and that are no longer stored.
        changed: (conversation_id, turns) that are stored with another text now.
        problem: why it cannot be told what it has seen; "" if it can.
    """

    path: Path
    scope: str
    model: str
    finished: bool
    turns: int
    forgotten: tuple[tuple[str, tuple[int, ...]], ...] = ()
    changed: tuple[tuple[str, tuple[int, ...]], ...] = ()
    problem: str = ""

    @property
    def stale(self) -> bool:
        """Whether it must be retrained or deleted for the memory to be forgotten in it."""
        return bool(self.forgotten or self.changed or self.problem)

    @property
    def gone(self) -> int:
        """How many turns it has seen that are forgotten."""
        return sum(len(turns) for _, turns in self.forgotten)

    @property
    def altered(self) -> int:
        """How many turns it has seen that have another text now."""
        return sum(len(turns) for _, turns in self.changed)


Get = Callable[[str, str], Conversation | None]


def told(directory: Path, get: Get) -> AdapterInfo:
    """Return what an adapter has seen, against what is stored.

    Args:
        directory: the adapter's.
        get: returns the conversation of a scope and an id, or None.
    """
    try:
        manifest = Manifest.read(directory)
    except DerivedError as error:
        return AdapterInfo(directory, "", "", False, 0, problem=str(error))
    forgotten, changed = [], []
    for seen in manifest.seen:
        found = get(manifest.scope, seen.conversation_id)
        now = [digest(turn) for turn in found.turns] if found else []
        gone = tuple(turn for turn in seen.turns if turn >= len(now))
        other = tuple(t for t, d in zip(seen.turns, seen.digests, strict=True) if t < len(now) and now[t] != d)
        if gone:
            forgotten.append((seen.conversation_id, gone))
        if other:
            changed.append((seen.conversation_id, other))
    return AdapterInfo(
        directory,
        manifest.scope,
        manifest.model["name"],
        manifest.finished,
        count(manifest.seen),
        tuple(forgotten),
        tuple(changed),
    )


def note(info: AdapterInfo) -> str:
    """Return what to tell of an adapter that is stale, in one line."""
    if info.problem:
        return f"adapter at {info.path}: it cannot be told what it has seen ({info.problem}); retrain or delete it"
    parts = [
        f"{count:,} turn{'' if count == 1 else 's'} that {'is' if count == 1 else 'are'} {what}"
        for count, what in ((info.gone, "forgotten"), (info.altered, "changed since"))
        if count
    ]
    return f"adapter {info.path.name} at {info.path} has seen {' and '.join(parts)}; retrain or delete it"


# -- where a store finds them -----------------------------------------------------------------------------


def home(store: Path, name: str) -> Path:
    """Return where an adapter of a name lies in a store's directory.

    Raises:
        InputError: for a name that is none of a directory.
    """
    if not name.strip() or name.startswith(".") or any(c in name for c in '/\\:*?"<>|\0') or len(name) > 100:
        raise InputError(
            f"name: {name[:100]!r} is no name for a directory; give one of letters, digits and hyphens (--name)"
        )
    return store / DIRECTORY / name


def named(scope: str) -> str:
    """Return the name of a scope's adapter: the scope itself, or a digest where that is none of a directory."""
    try:
        home(Path(), scope)
    except InputError:
        return f"scope-{hashlib.sha256(scope.encode()).hexdigest()[:16]}"
    return scope


def register(store: Path, directory: Path) -> None:
    """Remember an adapter that is kept outside of its store's directory; one inside is found anyway."""
    # Here and not above: it takes longer to load than all else that recalling needs of this module.
    from filelock import FileLock

    directory = directory.resolve()
    if directory.parent == (store / DIRECTORY).resolve():
        return
    with as_ours(store / REGISTRY), FileLock(store / f"{REGISTRY}.lock"):
        known = _registered(store)
        if directory not in known:
            with written(store / REGISTRY) as file:
                # Those that are not there, too: they may lie on a drive that is.
                file.write(json.dumps([*map(str, known), str(directory)], indent=1).encode() + b"\n")


def find(store: Path) -> list[Path]:
    """Return the directories of the adapters that were trained on a store's memory, and are there."""
    inside = store / DIRECTORY
    found = sorted(path for path in inside.iterdir() if path.is_dir()) if inside.is_dir() else []
    return [*found, *(path for path in _registered(store) if path.is_dir())]


def _registered(store: Path) -> list[Path]:
    path = store / REGISTRY
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        told = None
    if not isinstance(told, list) or not all(isinstance(each, str) for each in told):
        raise StoreError(f"{path}: damaged; write a JSON list of your adapters' directories into it")
    return [Path(each) for each in told]


# -- turns that were seen ---------------------------------------------------------------------------------


def digest(turn: Turn) -> str:
    """Return a digest of what a turn says and who said it."""
    return hashlib.blake2b(json.dumps([turn.role, turn.name, turn.text]).encode(), digest_size=8).hexdigest()


def seen_of(conversations: Iterable[Conversation], places: Mapping[str, Iterable[int]]) -> tuple[Seen, ...]:
    """Return what is to be remembered of turns, by conversation."""
    found = []
    for conversation in conversations:
        turns = tuple(sorted(places.get(conversation.conversation_id or "", ())))
        if turns:
            digests = tuple(digest(conversation.turns[turn]) for turn in turns)
            found.append(Seen(conversation.conversation_id or "", turns, digests))
    return tuple(found)


def count(seen: Iterable[Seen]) -> int:
    """Return how many turns there are."""
    return sum(len(each.turns) for each in seen)


def _packed(seen: Seen) -> dict[str, Any]:
    ranges: list[list[int]] = []
    for turn in seen.turns:
        if ranges and ranges[-1][1] == turn - 1:
            ranges[-1][1] = turn
        else:
            ranges.append([turn, turn])
    return {"conversation_id": seen.conversation_id, "turns": ranges, "digests": list(seen.digests)}


def _unpacked(told: Sequence[Mapping[str, Any]]) -> Iterator[Seen]:
    for each in told:
        turns = tuple(turn for first, last in each["turns"] for turn in range(first, last + 1))
        yield Seen(each["conversation_id"], turns, tuple(each["digests"]))


def _sum(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path) -> DerivedError:
    return DerivedError(f"{path}: damaged. Train the adapter anew, or delete its directory")
