"""The ASGI application: the doors, and what stands before them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from latent_memory import __version__
from latent_memory.errors import LatentMemoryError
from latent_memory.keys import KeyRing
from latent_memory.memory import LatentMemory
from latent_memory.server import mcp, problems, proxy, rest
from latent_memory.server.access import Access
from latent_memory.server.observing import METRICS_TYPE, Observer
from latent_memory.server.problems import ProblemError
from latent_memory.server.service import Service
from latent_memory.server.settings import Settings

log = logging.getLogger(__name__)

_DESCRIPTION = """A conversation memory for language models.

Every request is about one **scope**, a hard wall between memories. It is named in the header `Memory-Scope`, in the
query or in the body; where a key opens one scope only, it need not be named.
"""


def create_app(memory: LatentMemory, settings: Settings | None = None, keys: KeyRing | None = None) -> FastAPI:
    """Make the application. It runs once: its threads end with it, so make another to start again.

    Args:
        memory: the memory; whoever opened it closes it, after the application has ended.
        settings: see there.
        keys: who may come in; by default nobody needs a key, and only this machine may ask.

    Raises:
        InputError: if others could reach it without a key.
    """
    service = Service(memory, settings or Settings(), keys)
    observer = Observer()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(service.stop)
            for door in doors:
                await stack.enter_async_context(door)
            # Before the upstream is closed: what has come of an answer is kept.
            stack.push_async_callback(service.end_relays)
            warming = service.spawn(service.start(), "warming")
            warming.add_done_callback(_told_if_failed)
            yield

    app = FastAPI(
        title="Latent Memory",
        version=__version__,
        description=_DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        lifespan=lifespan,
        # Its pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False},
    )
    app.state.service = service
    app.state.observer = observer
    _tell_problems(app)
    _tend(app, service, observer)
    doors = [install(app, service, observer) for install in _DOORS]
    app.add_middleware(Access, service=service, observer=observer)
    return app


Install = Callable[[FastAPI, Service, Observer], AbstractAsyncContextManager[object]]
# Each adds its routes, and returns what is open as long as the application runs.
_DOORS: tuple[Install, ...] = (rest.install, mcp.install, proxy.install)


def _tend(app: FastAPI, service: Service, observer: Observer) -> None:
    """Add what those who run the server ask."""

    @app.get("/healthz", tags=["server"], summary="Is the process up?")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/readyz", tags=["server"], summary="Are its models and indexes loaded?")
    async def readyz(response: Response) -> dict[str, bool]:
        response.status_code = 200 if service.ready else 503
        return {"ready": service.ready}

    @app.get("/metrics", tags=["server"], summary="Metrics for Prometheus.", response_class=Response)
    async def metrics() -> Response:
        return Response(observer.metrics(), media_type=METRICS_TYPE)


def _tell_problems(app: FastAPI) -> None:
    """Let whatever goes wrong be told in the same shape."""

    def told(request: Request, problem: ProblemError) -> Response:
        return problems.response(problem, request.url.path, request.scope.get("state", {}).get("request_id"))

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> Response:
        return told(request, error)

    @app.exception_handler(LatentMemoryError)
    async def ours(request: Request, error: LatentMemoryError) -> Response:
        problem = ProblemError.of(error)
        if problems.is_for_the_log(error, problem.status):
            log.error("cannot answer", extra={"told": _who(request) | {"error": f"{type(error).__name__}: {error}"}})
        return told(request, problem)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return told(request, ProblemError(422, f"{where}: {first['msg']}", code="input"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:200]}"
        details = {404: f"there is no {where}; see /openapi.json", 405: f"{where}: not with this method"}
        detail = details.get(error.status_code, str(error.detail))
        return told(request, ProblemError(error.status_code, detail, headers=error.headers))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        log.error("a bug, please report it", exc_info=error, extra={"told": _who(request)})
        return told(request, ProblemError(500, "something went wrong here; the server's log tells what"))


def _who(request: Request) -> dict[str, object]:
    return {"request_id": request.scope.get("state", {}).get("request_id")}


def _told_if_failed(task: object) -> None:
    error = getattr(task, "exception", lambda: None)()
    if error is not None:
        log.error("cannot make ready", extra={"told": {"error": f"{type(error).__name__}: {error}"}})
