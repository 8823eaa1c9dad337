"""A framework is imported only by its own adapter, and where it is missing the adapter says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

ADAPTERS = {
    "langchain": ("langchain_core", "langchain-core"),
    "langgraph": ("langgraph", "langgraph"),
    "llama_index": ("llama_index", "llama-index-core"),
}
FRAMEWORKS = ("langchain_core", "langgraph", "llama_index", "agents", "pydantic_ai", "langchain_tests")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_imports_no_framework() -> None:
    done = run(f"import sys, latent_memory.integrations; print([n for n in {FRAMEWORKS} if n in sys.modules])")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_missing_framework_is_told(adapter: str) -> None:
    module, package = ADAPTERS[adapter]
    done = run(f"import sys; sys.modules[{module!r}] = None; import latent_memory.integrations.{adapter}")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("latent_memory.errors.MissingExtraError: ")
    assert last.endswith(f"pip install {package}")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_a_framework_itself_lacks_is_its_own_error(adapter: str) -> None:
    done = run(f"import sys; sys.modules['pydantic'] = None; import latent_memory.integrations.{adapter}")
    assert done.returncode == 1
    assert "pydantic" in done.stderr.strip().splitlines()[-1]
    assert "MissingExtraError" not in done.stderr
