"""The second look's update and head on disk: `look.safetensors` beside the model that they are of.

Factors are kept in bfloat16 under `<path of the kernel>.a` and `.b`, the head as `head.weight` and
`head.bias`, and the factor of all products as `scale`.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from msa_jax import lfs
from msa_jax.checkpoint.key_map import parameter_shapes
from msa_jax.checkpoint.tensors import CheckpointError
from msa_jax.config import ModelConfig
from msa_jax.modules.look import LookParams
from msa_jax.modules.lora import Lora, is_linear

FILE = "look.safetensors"
_WEIGHT, _BIAS, _SCALE = "head.weight", "head.bias", "scale"


def save_look(folder: str | Path, look: LookParams) -> None:
    """Writes the look of the model in a folder; one that is there is replaced."""
    factors = traverse_util.flatten_dict(look.lora.factors, sep="/")
    tensors = {
        f"{path[:-2]}.{path[-1]}": np.asarray(jnp.asarray(x, jnp.bfloat16))
        for path, x in factors.items()
    }
    head = {_WEIGHT: look.weight, _BIAS: look.bias, _SCALE: look.lora.scale}
    tensors |= {name: np.asarray(x, np.float32) for name, x in head.items()}
    path = Path(folder) / FILE
    temporary = path.with_name(f".{FILE}.tmp")
    temporary.write_bytes(save({name: np.ascontiguousarray(x) for name, x in tensors.items()}))
    os.replace(temporary, path)


def load_look(folder: str | Path, config: ModelConfig) -> LookParams | None:
    """Reads the look of a model; None if its folder has none.

    Args:
        folder: of the model.
        config: of the model.

    Raises:
        CheckpointError: if the file cannot be read, is not of this model, or holds a number that is
            not finite.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        problem = lfs.advice(path) or error
        raise CheckpointError(f"{path} cannot be read: {problem}.") from error
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    for name, x in tensors.items():
        if not np.isfinite(x).all():
            raise CheckpointError(f"{path}: {name} holds a number that is not finite; restore it.")
    try:
        weight, bias, scale = (tensors.pop(name) for name in (_WEIGHT, _BIAS, _SCALE))
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}; restore it.") from error
    _check(path, config, tensors, weight)
    factors = traverse_util.unflatten_dict(
        {name.replace(".", "/"): jnp.asarray(x) for name, x in tensors.items()}, sep="/"
    )
    return LookParams(Lora(factors, jnp.asarray(scale)), jnp.asarray(weight), jnp.asarray(bias))


def _check(path: Path, config: ModelConfig, tensors: dict, weight: np.ndarray) -> None:
    """Whether factors and head fit the model."""
    shapes = parameter_shapes(config)
    wrong = [] if weight.shape == (config.embed_dim,) else [_WEIGHT]
    for kernel in {name.rpartition(".")[0] for name in tensors}:
        a, b = (tensors.get(f"{kernel}.{side}") for side in "ab")
        fits = a is not None and b is not None and is_linear(kernel) and kernel in shapes
        if not fits or (*a.shape[:-1], *b.shape[2:]) != tuple(shapes[kernel]):
            wrong.append(kernel)
    if wrong:
        raise CheckpointError(
            f"{path} is not of this model: {', '.join(sorted(wrong))}; restore it, or remove it to "
            "do without a second look."
        )
