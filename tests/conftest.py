"""Fixtures for all tests: a store's place, a memory in it, and the command line in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from latent_memory import LatentMemory
from latent_memory.cli import main


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LATENT_MEMORY_STORE", "LATENT_MEMORY_SCOPE", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def memory(store: Path) -> Iterator[LatentMemory]:
    with LatentMemory.open(store, embedder="hashing") as opened:
        yield opened


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CompletedProcess[str]]:
    """Return `latent-memory` as a function of its arguments; an error that it does not catch reaches the test."""

    def run(*arguments: object, stdin: bytes = b"") -> CompletedProcess[str]:
        argv = ["latent-memory", *map(str, arguments)]
        out, err = io.BytesIO(), io.BytesIO()
        code: object = 0
        with monkeypatch.context() as patched:
            patched.setattr(sys, "excepthook", sys.excepthook)
            patched.setattr(sys, "argv", argv)
            patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
            patched.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8", newline="", write_through=True))
            patched.setattr(
                sys, "stderr", io.TextIOWrapper(err, "utf-8", "backslashreplace", newline="", write_through=True)
            )
            try:
                main()
            except SystemExit as stop:
                code = stop.code
            printed, told = out.getvalue().decode(), err.getvalue().decode()
        assert code is None or isinstance(code, int), code
        return CompletedProcess(argv, code or 0, printed, told)

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread while a module's tests run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
