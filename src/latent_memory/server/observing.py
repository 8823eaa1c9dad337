"""What the server tells of itself: logs of one JSON object a line, and metrics for Prometheus. Never what was said."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import Scope

from latent_memory import __version__

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METRICS_TYPE = CONTENT_TYPE_LATEST

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watched:
    """One request, as far as it has come."""

    caller: str = "-"
    status: int = 0
    bytes: int = 0
    began: float = 0.0
    first: float | None = None
    is_quiet: bool = False

    def begins(self, status: int) -> None:
        """Note that the answer begins."""
        self.status = status
        self.first = time.perf_counter() - self.began


class Observer:
    """Counts and logs requests, and what becomes of memories."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "latent_memory_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "latent_memory_request_seconds",
            "From a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._going = Gauge("latent_memory_requests_going_on", "Requests being answered.", registry=self.registry)
        self.recall_seconds = Histogram(
            "latent_memory_recall_seconds", "Of each recall for a chat.", buckets=_SECONDS, registry=self.registry
        )
        self.upstream_seconds = Histogram(
            "latent_memory_upstream_first_byte_seconds",
            "From sending a chat on to the first byte of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.recorded = Counter(
            "latent_memory_exchanges", "Exchanges added to the memory, or not.", ["outcome"], registry=self.registry
        )
        Gauge("latent_memory_build", "What runs.", ["version"], registry=self.registry).labels(__version__).set(1)

    @contextmanager
    def watching(self, scope: Scope, request_id: str) -> Iterator[Watched]:
        """Watch one request; log and count it when it is over."""
        watched = Watched(began=time.perf_counter())
        self._going.inc()
        failed: str | None = None
        try:
            yield watched
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            self._going.dec()
            seconds = time.perf_counter() - watched.began
            # The route and not the path: ids in paths are not for logs, and would make a metric for each.
            route = getattr(scope.get("route"), "path", None) or scope.get("state", {}).get("route", "-")
            # Any text may be sent as a method.
            method = scope["method"] if scope["method"] in _METHODS else "-"
            status = watched.status or (499 if failed == "CancelledError" else 500)
            self._requests.labels(route, method, str(status)).inc()
            self._seconds.labels(route).observe(seconds)
            told = {
                "request_id": request_id,
                "method": method,
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "first_ms": None if watched.first is None else round(1000 * watched.first, 1),
                "bytes": watched.bytes,
                "caller": watched.caller,
            } | scope.get("state", {}).get("told", {})
            if failed is not None:
                told["failed"] = failed
            log.log(logging.DEBUG if watched.is_quiet else logging.INFO, "request", extra={"told": told})

    def metrics(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self.registry)


_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def log_to(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Write this package's logs, and those of what serves it, to a stream as JSON."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name, least in (("latent_memory", level), ("uvicorn", logging.WARNING), ("mcp", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(least)
        logger.propagate = False
