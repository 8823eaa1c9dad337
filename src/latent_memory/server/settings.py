"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from latent_memory.errors import InputError
from latent_memory.query import check_scope

PORT = 8765
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server listens, whom it lets in, and where it sends chats on to.

    Attributes:
        host, port: where it listens; port 0 takes any that is free.
        scope: of requests that name none, unless their key opens just one.
        upstream: base URL of an OpenAI-compatible server ("https://api.openai.com/v1"), or "local:MODEL".
        upstream_key: sent to it where a request brings no key of its own for it.
        upstream_seconds: how long it may be silent before its answer, and within it.
        budget: tokens of memory that a chat gets, unless it asks for more or less.
        hosts: names under which the server is addressed, beside those of this machine.
        origins: of web pages that may use it ("https://chat.example"); none by default.
        most_bytes: of a request's body; of a line, where bodies are streamed.
        most_depth: how deep JSON may be nested.
        rate: requests a second for each key, on average; twice as many at once. 0 for no limit.
        most_at_once: requests that are being answered; those beyond are told to come back.
        log_text: write what was said into the logs.
        certificate, private_key: PEM files, for TLS.
        head_seconds: within which a request's headers are to be there, from when the connection is.
        body_seconds: how long nothing may come of a body; streams of conversations may take their time.
        shutdown_seconds: how long requests may go on when the server stops; what is accepted is written in any case.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    scope: str = "default"
    upstream: str | None = None
    upstream_key: str | None = None
    upstream_seconds: float = 300.0
    budget: int = 1024
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    most_bytes: int = 32 * MEBIBYTE
    most_depth: int = 64
    rate: float = 500.0
    most_at_once: int = 256
    log_text: bool = False
    certificate: Path | None = None
    private_key: Path | None = None
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if self.upstream is not None and not self.upstream.startswith(("http://", "https://", "local:")):
            raise InputError(
                f"upstream: {self.upstream!r} is no address; it begins with http:// or https://, or is local:MODEL"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise InputError("TLS takes two files: the certificate and its private key; give both, or none")
        for origin in self.origins:
            if origin == "*" or "://" not in origin:
                raise InputError(f"origin: {origin!r} is none; name each, as in https://chat.example")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
