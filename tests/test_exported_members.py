from __future__ import annotations

import subprocess
import sys

import pytest

import latent_memory

_EXPORTED = [
    "AddReport",
    "Context",
    "Conversation",
    "ConversationInfo",
    "Embedder",
    "Hit",
    "LatentMemory",
    "LatentMemoryError",
    "Passage",
    "Stats",
    "Turn",
    "remember",
]


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_exported_members() -> None:
    assert latent_memory.__all__ == _EXPORTED


@pytest.mark.parametrize("name", _EXPORTED)
def test_each_exported_member_resolves(name: str) -> None:
    member = getattr(latent_memory, name)
    assert member.__name__ == name
    assert member.__module__.startswith("latent_memory.")
    assert member.__doc__


def test_a_star_import_brings_them_all() -> None:
    code = "from latent_memory import *; print(sorted(n for n in dir() if not n.startswith('_')))"
    assert _python(code) == str(_EXPORTED)


def test_an_unknown_member_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'latent_memory' has no attribute 'Nothing'"):
        _ = latent_memory.Nothing


@pytest.mark.parametrize(
    "use",
    [
        "pass",
        "latent_memory.Turn('user', 'Hello'); latent_memory.Conversation(turns=[latent_memory.Turn('user', 'x')])",
    ],
)
def test_importing_the_package_imports_nothing_heavy(use: str) -> None:
    heavy = ("numpy", "onnxruntime", "tokenizers", "faiss", "tantivy", "sqlite3", "typer", "rich")
    code = f"import sys, latent_memory; {use}; print([name for name in {heavy!r} if name in sys.modules])"
    assert _python(code) == "[]"
