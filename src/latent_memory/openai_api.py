"""One call to an OpenAI-compatible server: a JSON body out, a JSON body back.

The server is OPENAI_BASE_URL (https://api.openai.com/v1 unless set), the key OPENAI_API_KEY. Nothing is sent
unless the user named an `openai:` model.
"""

from __future__ import annotations

import json
import os
from typing import Any

from latent_memory.errors import EmbedderUnavailableError, MissingExtraError

BASE_URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_BASE_URL = "https://api.openai.com/v1"


def post(path: str, body: dict[str, Any], *, base_url: str | None = None, api_key: str | None = None) -> Any:
    """Post `body` to `path` below the base URL and return the decoded answer.

    Retries four times, with growing pauses or as the server asks, when it is busy (429) or briefly down.

    Raises:
        MissingExtraError: if urllib3 is not installed.
        EmbedderUnavailableError: if the server does not answer, refuses, or answers with something else
            than JSON.
    """
    try:
        import urllib3
    except ImportError:
        raise MissingExtraError(
            "openai: models need urllib3. Install it with: pip install 'latent-memory[openai]'"
        ) from None
    base = (base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL).strip().rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise EmbedderUnavailableError(
            f"{BASE_URL_VARIABLE}: {base!r} is no address; it begins with http:// or https://"
        )
    key = (api_key or os.environ.get(KEY_VARIABLE) or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EmbedderUnavailableError(f"{KEY_VARIABLE}: holds a character that no key has; set it again")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    url = f"{base}{path}"
    # Asking for vectors or a summary changes nothing on the server, so asking again is safe.
    retries = urllib3.Retry(
        total=4,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,
        raise_on_status=False,
    )
    try:
        with urllib3.PoolManager(retries=retries, timeout=urllib3.Timeout(connect=10, read=120)) as pool:
            answer = pool.request("POST", url, body=json.dumps(body).encode(), headers=headers)
    except urllib3.exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        told = str(reason).rpartition(": ")[2]
        raise EmbedderUnavailableError(f"{url} does not answer ({told}). Is {BASE_URL_VARIABLE} right?") from error
    if answer.status != 200:
        told = " ".join(answer.data.decode(errors="replace").split())[:300]
        hint = f" Set {KEY_VARIABLE}." if answer.status in (401, 403) else ""
        raise EmbedderUnavailableError(f"{url} answered {answer.status}: {told}{hint}")
    try:
        return json.loads(answer.data)
    except ValueError:
        raise EmbedderUnavailableError(f"{url} answered with something else than JSON: {answer.data[:80]!r}") from None
