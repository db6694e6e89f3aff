"""Folders of safetensors: one tensor is read at a time, one shard written at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from msa_jax import lfs
from msa_jax.finite import all_finite

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"

# Of one file that is written; so much is held in memory besides the model.
SHARD_BYTES = 1 << 30


class CheckpointError(ValueError):
    """A checkpoint that does not hold the model; the message lists everything that is wrong."""


def check_finite(path: Path, name: str, tensor: np.ndarray) -> None:
    """Refuses weights with which a model computes nothing but NaN.

    Args:
        path: of the checkpoint.
        name: of the tensor.
        tensor: in the type in which it is used.

    Raises:
        CheckpointError: if a value is NaN or infinite.
    """
    if not all_finite(tensor):
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinity as {tensor.dtype}; restore the file, or take an "
            "earlier checkpoint."
        )


class TensorSource(Protocol):
    """Tensors with Hugging Face names and layouts, wherever they come from.

    Attributes:
        path: where they are, for messages.
    """

    path: Path

    @property
    def names(self) -> Iterable[str]:
        """Names of all tensors."""

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape of a tensor, and its type as safetensors calls it, without reading it."""

    def read(self, name: str) -> np.ndarray:
        """One tensor."""


class SafetensorsFolder:
    """The tensors of a folder with `model.safetensors`, or with shards and their index.

    Attributes:
        path: the folder.
        duplicates: names that are in two shards.
    """

    def __init__(self, path: str | Path):
        """Reads the headers.

        Raises:
            CheckpointError: if there are no weights, or a file is not safetensors.
        """
        self.path = Path(path)
        self._files: dict[str, Path] = {}
        self._headers: dict[str, tuple[tuple[int, ...], str]] = {}
        self.duplicates: list[str] = []
        for file in _weight_files(self.path):
            self._read_headers(file)

    @property
    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._files.keys()

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor."""
        return self._headers[name]

    def read(self, name: str) -> np.ndarray:
        """One tensor. Its file is mapped for that long only: pages once read stay in memory."""
        with safe_open(self._files[name], framework="numpy") as tensors:
            return tensors.get_tensor(name)

    def _read_headers(self, file: Path) -> None:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    if name in self._files:
                        self.duplicates.append(name)
                    view = tensors.get_slice(name)
                    self._files[name] = file
                    self._headers[name] = tuple(view.get_shape()), view.get_dtype()
        except (OSError, SafetensorError) as error:
            problem = lfs.advice(file) or error
            raise CheckpointError(f"{file} cannot be read as safetensors: {problem}.") from error


def write_folder(
    directory: str | Path,
    config_values: Mapping[str, Any],
    sizes: Mapping[str, int],
    read: Callable[[str], np.ndarray],
) -> None:
    """Writes `config.json` and the weights, in shards if they are large.

    A folder without `config.json` is not a checkpoint: the file goes first and comes back last,
    so that a process killed in between leaves nothing that looks complete.

    Args:
        directory: made if absent; an earlier checkpoint in it is replaced.
        config_values: of `config.json`.
        sizes: bytes of every tensor by name.
        read: the tensor of a name, when its turn comes.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(sizes)
    files = list(shards)
    for file, names in shards.items():
        _write_shard(_temporary(directory / file), names, read)
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(directory / _INDEX, index)
        files.append(_INDEX)
    _write_json(directory / _CONFIG, config_values)
    (directory / _CONFIG).unlink(missing_ok=True)
    for old in (*directory.glob("model*.safetensors"), directory / _INDEX):
        old.unlink(missing_ok=True)
    for file in (*files, _CONFIG):
        os.replace(_temporary(directory / file), directory / file)


def _write_shard(path: Path, names: Sequence[str], read: Callable[[str], np.ndarray]) -> None:
    # Contiguous because safetensors writes the memory behind an array as it lies.
    tensors = {name: np.ascontiguousarray(read(name)) for name in names}
    save_file(tensors, path, metadata={"format": "pt"})


def _shards(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Names of the tensors in each file, in the order given."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {_WEIGHTS: shards[0]}
    of = f"of-{len(shards):05}"
    return {f"model-{i:05}-{of}.safetensors": names for i, names in enumerate(shards, start=1)}


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    _temporary(path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    index = directory / _INDEX
    if not index.is_file():
        raise CheckpointError(f"{directory} has neither {_WEIGHTS} nor {_INDEX}.")
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [directory / shard for shard in sorted(shards)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = lfs.advice(index) or "it is not an index with a weight_map of names"
        raise CheckpointError(f"{index}: {problem}.") from error
