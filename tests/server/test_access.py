"""Who may come in, and how much of it: before any door."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from latent_memory import LatentMemory
from latent_memory.errors import InputError
from latent_memory.keys import KeyInfo, KeyRing
from latent_memory.server.app import create_app
from latent_memory.server.settings import Settings

MakeClient = Callable[..., TestClient]

CHAT = "/v1/chat/completions"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# -- hosts and pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]:8765", "[::1]"])
def test_names_of_this_machine_are_answered(app_client: TestClient, host: str) -> None:
    assert app_client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8765", "", "localhost.evil:80", "[::1].evil"])
def test_other_names_are_refused(app_client: TestClient, host: str) -> None:
    """A page may point a name of its own at this machine (DNS rebinding)."""
    answer = app_client.get("/healthz", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.headers["content-type"] == "application/problem+json"
    assert "--allow-host" in answer.json()["detail"]


def test_a_name_may_be_allowed(make_client: MakeClient) -> None:
    client = make_client(hosts=("memory.example",))
    assert client.get("/healthz", headers={"Host": "Memory.Example:443"}).status_code == 200
    assert client.get("/healthz", headers={"Host": "other.example"}).status_code == 421


def test_pages_of_others_are_refused(app_client: TestClient) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999", "http://[bad"):
        answer = app_client.get("/healthz", headers={"Origin": origin})
        assert answer.status_code == 403, origin
        assert "access-control-allow-origin" not in answer.headers
    assert app_client.get("/healthz", headers={"Origin": "http://127.0.0.1:8765"}).status_code == 200


def test_a_page_may_be_allowed(make_client: MakeClient) -> None:
    client = make_client(origins=("https://chat.example",))
    asked = {"Origin": "https://chat.example"}
    answer = client.get("/healthz", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert "origin" in answer.headers["vary"].lower()
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = client.options(CHAT, headers=asked | preflight)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == "authorization"
    assert client.options(CHAT, headers={"Origin": "https://evil.example"} | preflight).status_code == 403


# -- keys -----------------------------------------------------------------------------------------------------


def test_on_this_machine_no_key_is_needed(app_client: TestClient) -> None:
    assert app_client.get("/metrics").status_code == 200
    answer = app_client.get("/metrics", headers=bearer("lmem_abc_def"))
    assert answer.status_code == 401  # A key that opens nothing is a mistake that should be seen.


def test_once_there_was_a_key_one_is_needed(make_client: MakeClient, keys: KeyRing) -> None:
    client = make_client(keys)
    assert client.get("/metrics").status_code == 200
    key, info = keys.create(scopes=["ana"])
    answer = client.get("/metrics")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/metrics", headers=bearer(key)).status_code == 200
    assert client.get("/metrics", headers={"Memory-Key": key}).status_code == 200
    # The upstream's key says nothing here.
    assert client.get("/metrics", headers=bearer("sk-upstream")).status_code == 401
    assert client.get("/metrics", headers=bearer("sk-upstream") | {"Memory-Key": key}).status_code == 200
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert client.get(path).status_code in (200, 503)
    keys.revoke(info.key_id)
    assert client.get("/metrics", headers=bearer(key)).status_code == 401
    assert client.get("/metrics").status_code == 401


def test_keys_end(make_client: MakeClient, keys: KeyRing) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=300)
    key, _ = keys.create(scopes=["ana"], expires=soon)
    client = make_client(keys)
    assert client.get("/metrics", headers=bearer(key)).status_code == 200
    while datetime.now(UTC) <= soon:
        threading.Event().wait(0.05)
    assert client.get("/metrics", headers=bearer(key)).status_code == 401


def test_their_last_use_is_noted(make_client: MakeClient, keys: KeyRing) -> None:
    key, info = keys.create(scopes=["ana"])
    assert make_client(keys).get("/metrics", headers=bearer(key)).status_code == 200
    # It is noted in a thread, which no request waits for.
    until = time.monotonic() + 20
    while (listed := keys.list()[0]).last_used is None and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert listed.key_id == info.key_id
    assert listed.last_used is not None


def test_others_may_not_reach_it_without_keys(memory: LatentMemory, keys: KeyRing) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7", "memory.example"):
        with pytest.raises(InputError, match="keys create"):
            create_app(memory, Settings(host=host), keys)
    keys.create(every_scope=True)
    create_app(memory, Settings(host="0.0.0.0"), keys)


# -- how much -------------------------------------------------------------------------------------------------


def test_too_many_requests(make_client: MakeClient, keys: KeyRing) -> None:
    one, other = (keys.create(scopes=[name])[0] for name in ("ana", "ben"))
    client = make_client(keys, rate=2)
    answers = [client.get("/metrics", headers=bearer(one)) for _ in range(8)]
    assert [answer.status_code for answer in answers[:4]] == [200] * 4
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert int(refused[0].headers["retry-after"]) >= 1
    assert client.get("/metrics", headers=bearer(other)).status_code == 200


def test_bodies_that_are_too_large(make_client: MakeClient) -> None:
    client = make_client(most_bytes=1000, upstream="http://127.0.0.1:9")
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    asked = {"Content-Type": "application/json"}
    answer = client.post(CHAT, content=body, headers=asked)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "size"
    # Without telling its size.
    answer = client.post(CHAT, content=iter([body[:500], body[500:]]), headers=asked)
    assert answer.status_code == 413


def test_a_rate_below_one_a_second(make_client: MakeClient) -> None:
    client = make_client(rate=0.4)
    assert [client.get("/metrics").status_code for _ in range(3)] == [200, 429, 429]
    client = make_client(rate=20)
    assert [client.get("/metrics").status_code for _ in range(40)] == [200] * 40


def test_keys_cannot_be_tried_without_end(
    make_client: MakeClient, keys: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    key, _ = keys.create(scopes=["ana"])
    caplog.set_level(logging.INFO, "latent_memory")
    client = make_client(keys)
    wrong = bearer("lmem_aaaaaaaaaa_" + "A" * 43)
    statuses = [client.get("/metrics", headers=wrong).status_code for _ in range(300)]
    assert statuses[:20] == [401] * 20
    assert statuses.count(429) > 100
    logged = [vars(record).get("told", {}).get("status") for record in caplog.records]
    assert logged.count(401) == statuses.count(401)
    assert 429 not in logged
    # Nobody else is refused for it.
    assert client.get("/metrics", headers=bearer(key)).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_keys_that_cannot_be_read(make_client: MakeClient, keys: KeyRing, caplog: pytest.LogCaptureFixture) -> None:
    key, _ = keys.create(scopes=["ana"])
    client = make_client(keys)
    assert client.get("/metrics", headers=bearer(key)).status_code == 200
    keys.close()
    answer = client.get("/metrics", headers=bearer(key))
    assert answer.status_code == 500
    assert answer.json()["detail"] == "Internal error; the server's log tells why"
    told = [vars(record)["told"]["error"] for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 1
    assert "were closed" in told[0]
    assert not any(record.exc_info for record in caplog.records)


def test_keys_that_take_long_to_read_stop_nobody_else(
    make_client: MakeClient, keys: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = keys.create(scopes=["ana"])
    client = make_client(keys)
    asked, go_on = threading.Event(), threading.Event()
    verify = keys.verify

    def slow(text: str) -> KeyInfo | None:
        asked.set()
        assert go_on.wait(20)
        return verify(text)

    monkeypatch.setattr(keys, "verify", slow)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, "/metrics", headers=bearer(key))
        assert asked.wait(20)
        assert client.get("/healthz").status_code == 200
        assert not waiting.done()
        go_on.set()
        assert waiting.result(20).status_code == 200


@pytest.mark.parametrize("between", [" ", "  ", "\t", " \t "])
def test_keys_may_stand_apart(make_client: MakeClient, keys: KeyRing, between: str) -> None:
    key, _ = keys.create(scopes=["ana"])
    assert make_client(keys).get("/metrics", headers={"Authorization": f"bearer{between}{key}"}).status_code == 200


# -- what is told ---------------------------------------------------------------------------------------------


def test_each_request_has_an_id(app_client: TestClient) -> None:
    given = app_client.get("/nowhere", headers={"X-Request-ID": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert given.json()["request_id"] == "mine-1"
    made = [app_client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"] for bad in ("", "a b")]
    assert len(set(made)) == 2
    assert "a b" not in made


def test_errors_of_one_shape(app_client: TestClient) -> None:
    answer = app_client.get("/nowhere")
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= answer.json().keys()
    assert app_client.put("/healthz").status_code == 405
    assert app_client.get("/v1/chat/nowhere").json()["error"]["type"] == "not_found_error"


def test_logs_and_metrics_tell_no_secret_and_no_text(
    make_client: MakeClient, keys: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    key, info = keys.create(scopes=["ana"])
    caplog.set_level(logging.DEBUG, "latent_memory")
    client = make_client(keys)
    said = {"conversation_id": "holiday", "messages": [{"role": "user", "content": "We fly to Osaka."}]}
    assert client.post("/v1/memory/add", json=said, headers=bearer(key)).status_code == 200
    assert client.post("/v1/memory/recall", json={"query": "Where to?"}, headers=bearer(key)).status_code == 200
    assert client.get("/v1/memory/conversations/holiday", headers=bearer(key)).status_code == 200
    metrics = client.get("/metrics", headers=bearer(key)).text
    told = [vars(record) for record in caplog.records if record.name.startswith("latent_memory")]
    everything = repr(told) + metrics
    for secret in (key, key.rpartition("_")[2], "Osaka", "Where to", "holiday", "'ana'"):
        assert secret not in everything
    requests = [each["told"] for each in told if each["msg"] == "request"]
    assert [each["route"] for each in requests][:2] == ["/v1/memory/add", "/v1/memory/recall"]
    assert {each["caller"] for each in requests} == {info.key_id}
    assert 'latent_memory_requests_total{method="POST",route="/v1/memory/recall",status="200"} 1.0' in metrics
