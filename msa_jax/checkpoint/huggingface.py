"""Hugging Face folders (`config.json` and safetensors) to parameters and back.

    config = read_model_config(folder, dtype="float32")
    params = load_params(folder, config, jax.random.key(0))
    save_params(other_folder, config, params)

`key_map.py` says which tensor is which parameter; `hf_config.py` translates `config.json`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from msa_jax.checkpoint.hf_config import read_json, read_model_config, to_hf_config
from msa_jax.checkpoint.key_map import Entry, checkpoint_entries, parameter_shapes
from msa_jax.checkpoint.tensors import (
    CheckpointError,
    SafetensorsFolder,
    TensorSource,
    check_finite,
    write_folder,
)
from msa_jax.config import ModelConfig
from msa_jax.modules.init import init_routers
from msa_jax.typing import Array, PRNGKey, PyTree

__all__ = [
    "CheckpointError",
    "load_params",
    "read_json",
    "read_model_config",
    "read_params",
    "save_params",
    "save_tensors",
    "to_huggingface",
]

# Not parameters: the temperature of upstream's training loss, and buffers of old Llama files.
_IGNORED = re.compile(r"temperature|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

_FLOATS = ("F64", "F32", "F16", "BF16")


def load_params(
    directory: str | Path, config: ModelConfig, key: PRNGKey, abstract_params: PyTree = None
) -> PyTree:
    """`read_params` of a folder with `model.safetensors`, or with shards and their index.

    Args:
        directory: the folder.
        config: the model, usually from `read_model_config(directory)`.
        key: draws routers that start at random.
        abstract_params: see `read_params`.

    Raises:
        CheckpointError: if there are no weights, or not those of this model.
    """
    return read_params(SafetensorsFolder(directory), config, key, abstract_params)


def read_params(
    tensors: TensorSource, config: ModelConfig, key: PRNGKey, abstract_params: PyTree = None
) -> PyTree:
    """Reads parameters, one tensor at a time.

    Router projections that the source lacks altogether, as in a plain backbone, are made as
    `config.memory.router_init` says.

    Args:
        tensors: where the tensors are.
        config: the model.
        key: draws routers that start at random.
        abstract_params: the "params" tree of `jax.ShapeDtypeStruct` with shardings of any mesh.
            Each parameter goes to its devices as soon as it is complete, so that the host never
            holds more than one.

    Returns:
        The "params" tree of arrays as `abstract_params` says; without it, of float32 NumPy arrays.

    Raises:
        CheckpointError: listing all names that are missing, unmapped or in two shards, and all
            tensors of the wrong shape or type; for the first tensor with NaN or infinity.
    """
    entries = _entries_of(tensors, config)
    _raise_if_any(
        f"{tensors.path} does not hold this model", _source_problems(tensors, entries, config)
    )
    placement = _Placement(config, abstract_params)
    flat: dict[str, Any] = {}
    for path, parts in _by_path(entries).items():
        leaf = placement.empty(path)
        for name, entry in parts.items():
            leaf[entry.index] = _converted(entry.layout.to_ours(tensors.read(name)), leaf.dtype)
            check_finite(tensors.path, name, leaf[entry.index])
        flat[path] = placement.place(path, leaf)
    if len(flat) < len(parameter_shapes(config)):
        flat |= placement.new_routers(flat, key)
    return traverse_util.unflatten_dict(flat, sep="/")


def save_params(
    directory: str | Path,
    config: ModelConfig,
    params: PyTree,
    backbone_only: bool = False,
    dtype: str = "float32",
) -> None:
    """Writes `config.json` and safetensors in Hugging Face names.

    Args:
        directory: made if absent; an earlier checkpoint in it is replaced.
        config: the model.
        params: its "params" tree.
        backbone_only: leave the routers out and write a plain Qwen3, Qwen2 or Llama model.
        dtype: of the tensors, "float32" or "bfloat16".

    Raises:
        CheckpointError: listing all parameters that do not fit `config`.
    """
    tensors = ParameterTensors(params, config, Path(directory))
    save_tensors(directory, config, tensors, backbone_only, dtype)


def save_tensors(
    directory: str | Path,
    config: ModelConfig,
    tensors: TensorSource,
    backbone_only: bool = False,
    dtype: str = "float32",
) -> None:
    """`save_params` from another place of tensors; those of a model without routers stay so.

    Raises:
        CheckpointError: listing all tensors that do not fit `config`.
    """
    entries = _entries_of(tensors, config)
    _raise_if_any(
        f"{tensors.path} does not hold this model", _source_problems(tensors, entries, config)
    )
    if backbone_only:
        entries = _without_routers(entries)
    has_routers = any(entry.is_router for entry in entries.values())
    values = to_hf_config(config, backbone_only=not has_routers) | {"torch_dtype": dtype}
    stored = jnp.dtype(dtype)
    sizes = {
        name: math.prod(entry.layout.their_shape) * stored.itemsize
        for name, entry in entries.items()
    }

    def read(name: str) -> np.ndarray:
        tensor = _converted(tensors.read(name), stored)
        check_finite(tensors.path, name, tensor)
        return tensor

    write_folder(directory, values, sizes, read)


def to_huggingface(
    params: PyTree, config: ModelConfig, backbone_only: bool = False
) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, in Hugging Face names and layouts, as float32.

    Raises:
        CheckpointError: listing all parameters that do not fit `config`.
    """
    tensors = ParameterTensors(params, config, Path("memory"))
    entries = checkpoint_entries(config)
    if backbone_only:
        entries = _without_routers(entries)
    return {name: tensors.read(name).astype(np.float32) for name in entries}


class ParameterTensors:
    """Parameters as a `TensorSource`."""

    def __init__(self, params: PyTree, config: ModelConfig, path: Path):
        self.path = path
        self._entries = checkpoint_entries(config)
        self._flat = traverse_util.flatten_dict(params, sep="/")
        _raise_if_any(
            "the parameters do not fit the config",
            _parameter_problems(self._flat, parameter_shapes(config)),
        )

    @property
    def names(self) -> Iterable[str]:
        return self._entries.keys()

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        return self._entries[name].layout.their_shape, "F32"

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        return entry.layout.to_theirs(np.asarray(self._flat[entry.path][entry.index]))


class _Placement:
    """Where parameters go: to the devices of `abstract_params`, or into host memory."""

    def __init__(self, config: ModelConfig, abstract_params: PyTree):
        self._config = config
        self._shapes = parameter_shapes(config)
        self._abstract: dict[str, jax.ShapeDtypeStruct] | None = None
        if abstract_params is not None:
            self._abstract = traverse_util.flatten_dict(abstract_params, sep="/")

    def empty(self, path: str) -> np.ndarray:
        """Room on the host for a whole parameter, all layers of its run."""
        return np.empty(self._shapes[path], self._dtype(path))

    def place(self, path: str, leaf: np.ndarray) -> Array | np.ndarray:
        """Waits until the devices have it, lest the next parameter lie beside it on the host."""
        if self._abstract is None:
            return leaf
        sharding = self._abstract[path].sharding
        placed = jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
        return jax.block_until_ready(placed)

    def new_routers(self, flat: Mapping[str, Any], key: PRNGKey) -> dict[str, Any]:
        """The routers, which are what the parameters lack, as the config says."""
        absent = {
            path: jax.ShapeDtypeStruct(shape, np.float32)
            for path, shape in self._shapes.items()
            if path not in flat
        }
        attention = {path.replace("/router/", "/") for path in absent}

        def make(attention: dict[str, Any]) -> dict[str, Any]:
            params = traverse_util.unflatten_dict(attention | absent, sep="/")
            made = traverse_util.flatten_dict(init_routers(params, self._config, key), sep="/")
            return {path: made[path].astype(self._dtype(path)) for path in absent}

        sources = {path: flat[path] for path in attention}
        if self._abstract is None:
            return jax.tree.map(np.asarray, make(sources))
        shardings = {path: self._abstract[path].sharding for path in absent}
        return jax.jit(make, out_shardings=shardings)(sources)

    def _dtype(self, path: str) -> np.dtype:
        return np.dtype(np.float32) if self._abstract is None else self._abstract[path].dtype


def _converted(tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A tensor in another type; what that cannot hold becomes infinite, for `check_finite`."""
    with np.errstate(over="ignore"):
        return tensor.astype(dtype, copy=False)


def _entries_of(tensors: TensorSource, config: ModelConfig) -> dict[str, Entry]:
    """The key map, without the routers if the source has none at all."""
    entries = checkpoint_entries(config)
    names = set(tensors.names)
    has_routers = any(entry.is_router and name in names for name, entry in entries.items())
    return entries if has_routers else _without_routers(entries)


def _by_path(entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """The tensors of each parameter, the largest parameter first.

    The last ones are then small, and lie on the host beside a model that is almost complete where
    devices share its memory.
    """
    parts: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        parts.setdefault(entry.path, {})[name] = entry
    sizes = {
        path: sum(math.prod(entry.layout.their_shape) for entry in tensors.values())
        for path, tensors in parts.items()
    }
    return {path: parts[path] for path in sorted(parts, key=sizes.get, reverse=True)}


def _source_problems(
    tensors: TensorSource, entries: dict[str, Entry], config: ModelConfig
) -> dict[str, list[str]]:
    names = set(tensors.names)
    ignored = {name for name in names if _IGNORED.fullmatch(name)}
    tied_head = config.tie_embeddings and "lm_head.weight" in names
    if tied_head:
        ignored.add("lm_head.weight")
    wrong = []
    for name, entry in entries.items():
        if name in names:
            shape, dtype = tensors.header(name)
            if shape != entry.layout.their_shape:
                wrong.append(f"{name} {shape} instead of {entry.layout.their_shape}")
            elif dtype not in _FLOATS:
                wrong.append(f"{name} of type {dtype} instead of {' or '.join(_FLOATS)}")
    problems = {
        "missing": sorted(entries.keys() - names),
        "unmapped": sorted(names - entries.keys() - ignored),
        "in two shards": sorted(getattr(tensors, "duplicates", ())),
        "wrong": wrong,
    }
    if tied_head and not _same_tensor(tensors, "lm_head.weight", "model.embed_tokens.weight"):
        problems["not tied as the config says"] = ["lm_head.weight"]
    return problems


def _same_tensor(tensors: TensorSource, first: str, second: str) -> bool:
    return second in tensors.names and np.array_equal(tensors.read(first), tensors.read(second))


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
