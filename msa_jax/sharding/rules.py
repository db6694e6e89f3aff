"""Where parameters and batches lie on the mesh.

A rule maps a parameter path to the letters of its axes (`msa_jax.typing`), and a letter to a mesh
axis. Optimiser moments end in the path of their parameter, so the same rules place them.
Activations follow by propagation in the compiler.
"""

from __future__ import annotations

import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from msa_jax.config import ConfigError
from msa_jax.core.segments import LookBatch, TokenBlock, TrainingBatch
from msa_jax.typing import PyTree

GROUP_AXES = ("data", "fsdp")

# One letter an axis; "." is an axis that stays whole.
_RULES = (
    ("embedder/embedding", "VD"),
    ("lm_head/kernel", "DV"),
    ("final_norm/scale", "."),
    ("(input_norm|post_attention_norm)/scale", ".."),
    ("attention/(q_norm|k_norm)/scale", ".."),
    ("attention/(router/)?q_proj/kernel", ".DN."),
    ("attention/(router/)?k_proj/kernel", ".DK."),
    ("attention/v_proj/kernel", ".DK."),
    ("attention/q_proj/bias", ".N."),
    ("attention/[kv]_proj/bias", ".K."),
    ("attention/o_proj/kernel", ".N.D"),
    ("mlp/(gate|up)_proj/kernel", ".DF"),
    ("mlp/down_proj/kernel", ".FD"),
    # Factors of low-rank updates: the inputs of their kernel, or its outputs.
    ("attention/(router/)?[qkv]_proj/kernel/a", ".D."),
    ("attention/(router/)?q_proj/kernel/b", "..N."),
    ("attention/(router/)?[kv]_proj/kernel/b", "..K."),
    ("attention/o_proj/kernel/a", ".N.."),
    ("attention/o_proj/kernel/b", "..D"),
    ("mlp/(gate|up)_proj/kernel/a", ".D."),
    ("mlp/(gate|up)_proj/kernel/b", "..F"),
    ("mlp/down_proj/kernel/a", ".F."),
    ("mlp/down_proj/kernel/b", "..D"),
    # The head of the second look.
    ("weight", "."),
)
_MESH_AXIS = {"V": "tensor", "D": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor"}
_FIELD = {
    "V": "vocab_size",
    "D": "embed_dim",
    "N": "num_heads",
    "K": "num_kv_heads",
    "F": "hidden_dim",
}


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of something that every device holds whole."""
    return NamedSharding(mesh, P())


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """Shardings of parameters, or of anything that mirrors them (optimiser state).

    Args:
        state: a pytree whose leaves have a shape; scalars are replicated, and the path of every
            other leaf must end in a parameter's path.

    Raises:
        ConfigError: for a path that not exactly one rule matches, or a dimension that its mesh
            axis does not divide.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]
    letters = {path: _matches(path) for path, x in named if x.ndim}
    wrong = sorted(path for path, found in letters.items() if len(found) != 1)
    if wrong:
        raise ConfigError(
            f"no single sharding rule matches {', '.join(wrong)}; add one to "
            "msa_jax/sharding/rules.py."
        )
    specs = [
        NamedSharding(mesh, _spec(letters[path][0], x.shape, mesh)) if x.ndim else replicated(mesh)
        for path, x in named
    ]
    return jax.tree.unflatten(treedef, specs)


def _matches(path: str) -> list[str]:
    return [letters for pattern, letters in _RULES if re.search(f"(^|/){pattern}$", path)]


def _spec(letters: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    for letter, size in zip(letters, shape, strict=True):
        axis = _MESH_AXIS.get(letter)
        if axis and size % mesh.shape[axis]:
            raise _indivisible(axis, mesh.shape[axis], f"model.{_FIELD[letter]}", size)
    return P(*(_MESH_AXIS.get(letter) for letter in letters))


def group_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is that of groups, and whose others stay whole."""
    return NamedSharding(mesh, P(GROUP_AXES))


def batch_shardings(mesh: Mesh) -> TrainingBatch:
    """Shardings of a batch: groups over data and fsdp, memory rows over memory too."""
    groups, rows = group_sharding(mesh), NamedSharding(mesh, P(GROUP_AXES, "memory"))
    return TrainingBatch(
        memory=TokenBlock(tokens=rows, doc_ids=rows, segment_pos=rows),
        active=TokenBlock(tokens=groups, doc_ids=groups, segment_pos=groups),
        targets=groups,
        target_mask=groups,
        answer_mask=groups,
        positives=groups,
    )


def group_share(mesh: Mesh, num_groups: int) -> tuple[int, int]:
    """Which share of the groups this process feeds: `(index, number of shares)`.

    Processes that hold the same groups (a tensor or memory axis across hosts) share an index, so
    their data iterators yield the same batches.

    Raises:
        ConfigError: when the data and fsdp axes do not divide the groups.
    """
    size = mesh.shape["data"] * mesh.shape["fsdp"]
    if num_groups % size:
        raise _indivisible("data x mesh.fsdp", size, "the stage's groups", num_groups)
    owned: dict[int, set[int]] = {}
    sharding = group_sharding(mesh)
    for device, (groups,) in sharding.devices_indices_map((num_groups,)).items():
        owned.setdefault(device.process_index, set()).add(groups.start or 0)
    shares = sorted({tuple(sorted(starts)) for starts in owned.values()})
    return shares.index(tuple(sorted(owned[jax.process_index()]))), len(shares)


def put_batch(batch: TrainingBatch, mesh: Mesh, num_groups: int) -> TrainingBatch:
    """Places this process's NumPy share of a batch on the mesh.

    Args:
        batch: leaves `[groups of this process, ...]`.
        num_groups: groups of the whole batch.

    Raises:
        ConfigError: when the memory axis does not divide the memory rows.
    """
    rows = batch.memory.tokens.shape[1]
    if rows % mesh.shape["memory"]:
        raise _indivisible("memory", mesh.shape["memory"], "memory rows per group", rows)
    return jax.tree.map(
        lambda sharding, leaf: _put(sharding, leaf, num_groups), batch_shardings(mesh), batch
    )


def put_lists(batch: LookBatch, mesh: Mesh, num_groups: int) -> LookBatch:
    """Places this process's NumPy share of a batch of lists on the mesh, as `put_batch` does."""
    sharding = group_sharding(mesh)
    return jax.tree.map(lambda leaf: _put(sharding, leaf, num_groups), batch)


def _put(sharding: NamedSharding, leaf: np.ndarray, num_groups: int) -> jax.Array:
    return jax.make_array_from_process_local_data(sharding, leaf, (num_groups, *leaf.shape[1:]))


def _indivisible(axis: str, size: int, what: str, value: int) -> ConfigError:
    return ConfigError(
        f"mesh.{axis} = {size} does not divide {what} = {value}; change one of the two."
    )
