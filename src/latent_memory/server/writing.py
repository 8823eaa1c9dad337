"""JSON as it goes out: it says what came in, to the last code point."""

from __future__ import annotations

import json
from typing import Any

from latent_memory.server.problems import ProblemError


def written(value: Any) -> bytes:
    """Return a value as JSON; half of a surrogate pair stays one, and integers stay exact whatever their size.

    Raises:
        ProblemError: for a number that JSON does not have, such as what 1e999 is read as.
    """
    try:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        raise ProblemError(400, "body: a number in it is too large for one", code="json") from None
