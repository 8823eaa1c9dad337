"""The server as users start it: `latent-memory serve` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_SECONDS = 60


class Served:
    """A server that runs until it is stopped.

    Args:
        store: the memory; it is made if it is not there.
        args: further options of `latent-memory serve`.
        env: added to the environment.
        log_path: where its standard error is written.
        embedder: of the memory; None for the default one.

    Attributes:
        url: without a slash at the end, as in http://127.0.0.1:43210.
        process: is running when the object is made.
    """

    def __init__(
        self,
        store: Path,
        args: Sequence[object] = (),
        env: Mapping[str, str] | None = None,
        *,
        log_path: Path,
        embedder: str | None = "hashing",
    ) -> None:
        self.store = store
        self.log_path = log_path
        self.url = ""
        command = [Path(sys.executable).with_name("latent-memory"), "serve", "--port", "0", "--store", store]
        command += ["--embedder", embedder] if embedder else []
        self.process = subprocess.Popen(
            [*map(str, command), *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )
        self._up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._up.wait(_SECONDS)
        if not self.url:
            self.stop()
            raise AssertionError(f"the server did not start:\n{self.log()}")

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.log_path.open("w", encoding="utf-8") as log:
            for line in self.process.stderr:
                log.write(line)
                log.flush()
                if not self.url and (found := re.match(r"serving .* at (https?://\S+) ", line)):
                    self.url = found[1]
                    self._up.set()
        self._up.set()

    def log(self) -> str:
        """Return what it has written to standard error so far."""
        return self.log_path.read_text(encoding="utf-8") if self.log_path.exists() else ""

    def stop(self) -> int:
        """Tell it to end (SIGTERM), wait until it has, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; kill it if that takes too long."""
        try:
            status = self.process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join(_SECONDS)
        if not self._reader.is_alive() and self.process.stderr is not None:
            self.process.stderr.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
