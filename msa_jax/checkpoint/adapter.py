"""Adapters: what training made of a backbone, without the backbone.

    folder/adapter.json                       which backbone, which model
    folder/adapter-00001-of-00002.safetensors or adapter.safetensors

Of every tensor that training changed, by its Hugging Face name, there is the tensor itself (norms;
routers in low-rank adapters), or its change (`changes.py`) under `<name>.<part>`.

    save_adapter(folder, make_adapter(trained, backbone, ...))
    tensors = AdaptedTensors(folder, backbone)        # both, as if they were one folder
    params = read_params(tensors, ...)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from msa_jax import lfs
from msa_jax.checkpoint import changes
from msa_jax.checkpoint.hf_config import read_json
from msa_jax.checkpoint.key_map import checkpoint_entries
from msa_jax.checkpoint.tensors import CheckpointError, TensorSource
from msa_jax.config import ModelConfig, from_mapping
from msa_jax.fields import check_value

DESCRIPTION = "adapter.json"
_FORMAT = 1
_FILE_BYTES = 45_000_000
_PARTS = ("lora_a", "lora_b", "codes", "steps")


@dataclasses.dataclass(frozen=True)
class Description:
    """What `adapter.json` says.

    Attributes:
        backbone: what `backbones.fetch` takes.
        fingerprint: of the backbone's tensors.
        model: of the whole, its memory included.
    """

    backbone: str
    fingerprint: str
    model: ModelConfig


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    Attributes:
        description: what it belongs to.
        tensors: whole tensors by name, and parts of changes by "<name>.<part>".
        error: of what it keeps, relative to what training changed; root mean squares.
    """

    description: Description
    tensors: dict[str, np.ndarray]
    error: float


class Fingerprint:
    """Of tensors, in whatever order they come, and however often."""

    def __init__(self):
        self._digests: dict[str, str] = {}

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Takes a tensor into account."""
        digest = hashlib.blake2b(np.ascontiguousarray(tensor, np.float32), digest_size=16)
        self._digests[name] = f"{tensor.shape} {digest.hexdigest()}"

    def __str__(self) -> str:
        text = json.dumps(self._digests, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def make_adapter(
    trained: TensorSource,
    backbone: TensorSource,
    source: str,
    model: ModelConfig,
    rank: int | None = None,
) -> Adapter:
    """What `trained` has and `backbone` has not.

    Args:
        trained: the tensors of `model`.
        backbone: those that it was trained from.
        source: of the backbone, for `backbones.fetch`.
        model: the configuration.
        rank: of the changes; None for changes in 8 bits.
    """
    fingerprint, tensors = Fingerprint(), {}
    total, lost = 0.0, 0.0
    for name in checkpoint_entries(model):
        new, old = _float32(trained.read(name)), None
        if name in backbone.names:
            old = _float32(backbone.read(name))
            fingerprint.add(name, old)
            if np.array_equal(new, old):
                continue
        kept, change, restored = _keep(new, old, rank)
        tensors |= {f"{name}.{part}" if part else name: array for part, array in kept.items()}
        total += float(np.square(change).sum())
        lost += float(np.square(change - restored).sum())
    description = Description(source, str(fingerprint), model)
    return Adapter(description, tensors, (lost / total) ** 0.5 if total else 0.0)


def _keep(
    new: np.ndarray, old: np.ndarray | None, rank: int | None
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What to keep of a tensor, with its change and what will be restored of that."""
    change = new if old is None else new - old
    if new.ndim < 2:
        return {"": new}, change, change
    if rank is None:
        kept = changes.eight_bit(change)
    elif old is None:
        kept = {"": new.astype(jnp.bfloat16)}
        return kept, change, _float32(kept[""])
    else:
        kept = changes.low_rank(change, rank)
    return kept, change, changes.restore(kept, new.shape)


def save_adapter(folder: str | Path, adapter: Adapter) -> int:
    """Writes an adapter; one that is there is replaced.

    A folder without `adapter.json` has no adapter: the file goes first and comes back last.

    Returns:
        The bytes of its files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = dataclasses.asdict(adapter.description)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    for old in folder.glob("adapter*.safetensors"):
        old.unlink()
    files = _files(adapter.tensors)
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    text = json.dumps({"format": _FORMAT, **description, "files": list(files)}, indent=2) + "\n"
    temporary = folder / f"{DESCRIPTION}.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, folder / DESCRIPTION)
    return sum((folder / file).stat().st_size for file in (*files, DESCRIPTION))


def _files(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of each file."""
    groups: list[dict[str, np.ndarray]] = [{}]
    room = _FILE_BYTES
    for name, tensor in tensors.items():
        if tensor.nbytes > room and groups[-1]:
            groups.append({})
            room = _FILE_BYTES
        groups[-1][name] = np.ascontiguousarray(tensor)
        room -= tensor.nbytes
    if len(groups) == 1:
        return {"adapter.safetensors": groups[0]}
    of = f"of-{len(groups):05}"
    return {f"adapter-{i:05}-{of}.safetensors": group for i, group in enumerate(groups, start=1)}


def has_adapter(folder: str | Path) -> bool:
    """Whether there is an adapter in a folder."""
    return (Path(folder) / DESCRIPTION).is_file()


def read_description(folder: str | Path) -> Description:
    """What an adapter belongs to, without its tensors.

    Raises:
        ConfigError: if `adapter.json` cannot be read, or names what this version does not know.
    """
    return _read_description(Path(folder))[0]


def _read_description(folder: Path) -> tuple[Description, list[str]]:
    """Also returns the names of the files."""
    path = folder / DESCRIPTION
    values = read_json(path)
    if values.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has the format {values.get('format')!r}, and this version reads {_FORMAT} "
            "alone; use the version that wrote it."
        )
    try:
        for name, kind in (("backbone", str), ("fingerprint", str), ("files", tuple[str, ...])):
            check_value(f"{path}: {name}", values[name], kind)
        model = from_mapping(ModelConfig, values["model"], f"{path}: model")
        return Description(values["backbone"], values["fingerprint"], model), values["files"]
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}; restore it.") from error


class AdaptedTensors:
    """A backbone with its adapter: the tensors of the whole model, as a `TensorSource`."""

    def __init__(self, folder: str | Path, backbone: TensorSource):
        """Reads the adapter.

        Raises:
            CheckpointError: if its files are not there, or not those of its model.
        """
        self.path = Path(folder)
        self.description, files = _read_description(self.path)
        self._backbone = backbone
        self._entries = checkpoint_entries(self.description.model)
        self._whole, self._changed = self._read(files)
        self._fingerprint = Fingerprint()
        self._check_names()

    @property
    def names(self) -> Iterable[str]:
        return {*self._backbone.names, *self._whole, *self._changed}

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        if name in self._backbone.names:
            return self._backbone.header(name)
        if name in self._whole:
            return self._whole[name].shape, "F32"
        return self._entries[name].layout.their_shape, "F32"

    def read(self, name: str) -> np.ndarray:
        tensor: np.ndarray | float = 0.0
        if name in self._backbone.names:
            tensor = _float32(self._backbone.read(name))
            if name in self._entries:
                self._fingerprint.add(name, tensor)
        if name in self._whole:
            return _float32(self._whole[name])
        if name not in self._changed:
            return tensor
        shape = self._entries[name].layout.their_shape
        try:
            return tensor + changes.restore(self._changed[name], shape)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {name}: {error}; restore the file.") from error

    def check_backbone(self) -> None:
        """Whether all tensors that were read are those that the adapter was made for.

        Raises:
            CheckpointError: if not.
        """
        if str(self._fingerprint) != self.description.fingerprint:
            raise CheckpointError(
                f"{self.path} belongs to the backbone {self.description.backbone} with the "
                f"fingerprint {self.description.fingerprint}, and {self._backbone.path} has "
                f"{self._fingerprint}: it is another one; restore it, or name the right one in "
                f"{DESCRIPTION}."
            )

    def _read(self, files: Iterable[str]) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
        """Tensors that are whole, and the parts of those that are not."""
        whole: dict[str, np.ndarray] = {}
        changed: dict[str, dict[str, np.ndarray]] = {}
        for file in files:
            try:
                tensors = load_file(self.path / file)
            except (OSError, SafetensorError) as error:
                problem = lfs.advice(self.path / file) or error
                raise CheckpointError(f"{self.path / file} cannot be read: {problem}.") from error
            for key, tensor in tensors.items():
                name, _, part = key.rpartition(".")
                if part in _PARTS:
                    changed.setdefault(name, {})[part] = tensor
                else:
                    whole[key] = tensor
        return whole, changed

    def _check_names(self) -> None:
        known = {*self._whole, *self._changed}
        problems = {
            "missing": [
                x for x, entry in self._entries.items() if entry.is_router and x not in known
            ],
            "unknown": sorted(known - self._entries.keys()),
            "wrong": [
                f"{name} {tensor.shape}"
                for name, tensor in self._whole.items()
                if name in self._entries and tensor.shape != self._entries[name].layout.their_shape
            ],
        }
        listed = [f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names]
        if listed:
            raise CheckpointError(f"{self.path} does not hold its model; {'; '.join(listed)}.")


def _float32(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32, copy=False)
