"""onnxruntime, as everything here imports it: it tells nobody.

Its official builds send events about their use to Microsoft, and keep an id of the device, unless they are told not to
before they are loaded.
"""

from __future__ import annotations

import os
from typing import Any

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"


def load() -> Any:
    """Return the module `onnxruntime`, with its telemetry off.

    Whoever wants it sets the environment variable ORT_DISABLE_TELEMETRY to 0.
    """
    silent = os.environ.setdefault(TELEMETRY_VARIABLE, "1") != "0"
    import onnxruntime

    # Also where the application has imported it before.
    quiet = getattr(onnxruntime, "disable_telemetry_events", None)
    if silent and quiet is not None:
        quiet()
    return onnxruntime
