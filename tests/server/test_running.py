"""`latent-memory serve`, as a process: where it listens, how it ends, and what it refuses to begin."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from served import Served

Serve = Callable[..., Served]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("latent-memory")
    return subprocess.run([program, "serve", *map(str, args)], capture_output=True, text=True, timeout=60)


def get(url: str, context: ssl.SSLContext | None = None) -> bytes:
    with urllib.request.urlopen(url, timeout=20, context=context) as answer:
        body: bytes = answer.read()
        return body


def test_it_tells_where_it_is_and_ends_when_told(serve: Serve) -> None:
    server = serve()
    assert json.loads(get(f"{server.url}/healthz"))["status"] == "ok"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    events = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    assert {"ready", "request"} <= {event["event"] for event in events}
    assert all({"time", "level", "logger"} <= event.keys() for event in events)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signal for another process")
def test_ctrl_c_ends_it(serve: Serve) -> None:
    server = serve()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0


def test_elsewhere_only_with_keys(tmp_path: Path) -> None:
    store = tmp_path / "memory"
    ended = run("--host", "0.0.0.0", "--port", 0, "--store", store)
    assert ended.returncode == 2
    assert "latent-memory keys create" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--port", port, "--store", tmp_path / "memory", "--embedder", "hashing")
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--upstream", "api.example"], "is no address"),
        (["--tls-cert", "cert.pem"], "two files"),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], "no.pem"),
        (["--upstream-key-file", "no.key"], "no.key"),
        (["--allow-origin", "*"], "name each"),
        (["--host", "no such host"], "keys create"),
    ],
)
def test_what_cannot_be_begun(args: list[str], told: str, tmp_path: Path) -> None:
    ended = run("--port", 0, "--store", tmp_path / "memory", "--embedder", "hashing", *args)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_tls(serve: Serve, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    server = serve(args=["--tls-cert", certificate, "--tls-key", key])
    assert server.url.startswith("https://")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    assert json.loads(get(f"{server.url}/healthz", context=trusting))["status"] == "ok"
