"""Hugging Face folders (`config.json` and safetensors) to parameters and back.

    config = read_model_config(folder, dtype="float32")
    params = load_params(folder, config, jax.random.key(0))
    save_params(other_folder, config, params)

`key_map.py` says which tensor is which parameter; `hf_config.py` translates `config.json`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from msa_jax.checkpoint.hf_config import read_json, read_model_config, to_hf_config
from msa_jax.checkpoint.key_map import Entry, checkpoint_entries, parameter_shapes
from msa_jax.config import ModelConfig
from msa_jax.modules.init import init_routers
from msa_jax.typing import PRNGKey, PyTree

__all__ = [
    "CheckpointError",
    "load_params",
    "read_json",
    "read_model_config",
    "save_params",
    "to_huggingface",
]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# Not parameters: the temperature of upstream's training loss, and buffers of old Llama files.
_IGNORED = re.compile(r"temperature|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

_FLOATS = ("F64", "F32", "F16", "BF16")


class CheckpointError(ValueError):
    """A checkpoint that does not hold the model; the message lists everything that is wrong."""


def load_params(directory: str | Path, config: ModelConfig, key: PRNGKey) -> PyTree:
    """Reads the safetensors of a folder, one tensor at a time, as parameters of `config`.

    Router projections that the folder lacks altogether, as in a plain backbone, are made as
    `config.memory.router_init` says.

    Args:
        directory: a folder with `model.safetensors`, or with shards and their index.
        config: the model, usually from `read_model_config(directory)`.
        key: draws routers that start at random.

    Returns:
        The "params" tree as float32 NumPy arrays, for the caller to place on devices.

    Raises:
        CheckpointError: listing all names that are missing, unmapped or in two shards, and all
            tensors of the wrong shape or type.
    """
    entries = checkpoint_entries(config)
    folder = _TensorFolder(Path(directory))
    has_routers = any(entry.is_router and name in folder for name, entry in entries.items())
    if not has_routers:
        entries = _without_routers(entries)
    _raise_if_any(
        f"{directory} does not hold this model", _folder_problems(folder, entries, config)
    )
    flat = {path: np.empty(shape, np.float32) for path, shape in parameter_shapes(config).items()}
    for name, entry in entries.items():
        flat[entry.path][entry.index] = entry.layout.to_ours(folder.read(name))
    params = traverse_util.unflatten_dict(flat, sep="/")
    if not has_routers:
        # Nothing was read into them; this sets every one.
        params = jax.tree.map(np.asarray, init_routers(params, config, key))
    return params


def save_params(
    directory: str | Path, config: ModelConfig, params: PyTree, backbone_only: bool = False
) -> None:
    """Writes `config.json` and `model.safetensors` (float32) in Hugging Face names.

    A folder without `config.json` is not a checkpoint: the file goes first and comes back last,
    so that a process killed in between leaves nothing that looks complete.

    Args:
        directory: made if absent; an earlier checkpoint in it is replaced.
        config: the model.
        params: its "params" tree.
        backbone_only: leave the routers out and write a plain Qwen3, Qwen2 or Llama model.

    Raises:
        CheckpointError: listing all parameters that do not fit `config`.
    """
    values = to_hf_config(config, backbone_only)
    tensors = to_huggingface(params, config, backbone_only)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights, json_file = directory / f"{_WEIGHTS}.tmp", directory / "config.json.tmp"
    save_file(tensors, weights, metadata={"format": "pt"})
    json_file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (directory / "config.json").unlink(missing_ok=True)
    os.replace(weights, directory / _WEIGHTS)
    os.replace(json_file, directory / "config.json")


def to_huggingface(
    params: PyTree, config: ModelConfig, backbone_only: bool = False
) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, in Hugging Face names and layouts, as float32.

    Raises:
        CheckpointError: listing all parameters that do not fit `config`.
    """
    entries = checkpoint_entries(config)
    if backbone_only:
        entries = _without_routers(entries)
    flat = traverse_util.flatten_dict(params, sep="/")
    _raise_if_any(
        "the parameters do not fit the config", _parameter_problems(flat, parameter_shapes(config))
    )
    host = {path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}
    # Contiguous because safetensors writes the memory behind an array as it lies.
    return {
        name: np.ascontiguousarray(entry.layout.to_theirs(host[entry.path][entry.index]))
        for name, entry in entries.items()
    }


class _TensorFolder:
    """The tensors of a folder by name. Files are mapped, and each tensor read when asked for."""

    def __init__(self, directory: Path):
        self._files: dict[str, Any] = {}
        self.duplicates: list[str] = []
        for path in _weight_files(directory):
            try:
                file = safe_open(path, framework="numpy")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error
            names = file.keys()
            self.duplicates += [name for name in names if name in self._files]
            self._files |= dict.fromkeys(names, file)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> Iterable[str]:
        return self._files.keys()

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor, without reading it."""
        view = self._files[name].get_slice(name)
        return tuple(view.get_shape()), view.get_dtype()

    def read(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name)


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    index = directory / _INDEX
    if not index.is_file():
        raise CheckpointError(f"{directory} has neither {_WEIGHTS} nor {_INDEX}.")
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index with a weight_map of names.") from error
    return [directory / shard for shard in sorted(shards)]


def _folder_problems(
    folder: _TensorFolder, entries: dict[str, Entry], config: ModelConfig
) -> dict[str, list[str]]:
    ignored = {name for name in folder.names if _IGNORED.fullmatch(name)}
    tied_head = config.tie_embeddings and "lm_head.weight" in folder
    if tied_head:
        ignored.add("lm_head.weight")
    wrong = []
    for name, entry in entries.items():
        if name in folder:
            shape, dtype = folder.header(name)
            if shape != entry.layout.their_shape:
                wrong.append(f"{name} {shape} instead of {entry.layout.their_shape}")
            elif dtype not in _FLOATS:
                wrong.append(f"{name} of type {dtype} instead of {' or '.join(_FLOATS)}")
    problems = {
        "missing": sorted(entries.keys() - folder.names),
        "unmapped": sorted(folder.names - entries.keys() - ignored),
        "in two shards": sorted(folder.duplicates),
        "wrong": wrong,
    }
    if tied_head and not _same_tensor(folder, "lm_head.weight", "model.embed_tokens.weight"):
        problems["not tied as the config says"] = ["lm_head.weight"]
    return problems


def _same_tensor(folder: _TensorFolder, first: str, second: str) -> bool:
    return second in folder and np.array_equal(folder.read(first), folder.read(second))


def _parameter_problems(
    flat: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
    return {
        "missing": sorted(shapes.keys() - flat.keys()),
        "unknown": sorted(flat.keys() - shapes.keys()),
        "wrong": [
            f"{path} {flat[path].shape} instead of {shape}"
            for path, shape in shapes.items()
            if path in flat and flat[path].shape != shape
        ],
    }


def _raise_if_any(what: str, problems: dict[str, list[str]]) -> None:
    listed = [f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(f"{what}; {'; '.join(listed)}.")


def _without_routers(entries: dict[str, Entry]) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if not entry.is_router}
