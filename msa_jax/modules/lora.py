"""Low-rank updates (LoRA): small factors beside linear layers that stay as they are.

A layer's kernel `[L, *in, *out]`, stacked over layers, becomes `kernel + scale * a @ b` with
`a: [L, *in, r]` and `b: [L, r, *out]`. Modules never see the factors: the caller merges them into
the parameters that it applies, and gradients pass through the merge.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import traverse_util

from msa_jax.typing import Array, Float, PRNGKey, PyTree, pytree


@pytree
class Lora:
    """Factors of an update.

    Attributes:
        factors: the tree of the parameters, of which it has the updated kernels alone; in place of
            each are `{"a": ..., "b": ...}`.
        scale: of all products, alpha / r.
    """

    factors: PyTree
    scale: Float[Array, ""]


def is_linear(path: str) -> bool:
    """Whether a parameter, by its path joined with "/", is the kernel of a layer's projection."""
    return path.endswith("_proj/kernel")


def init_lora(params: PyTree, paths: Iterable[str], rank: int, scale: float, key: PRNGKey) -> Lora:
    """Factors whose product is zero: `a` is drawn, `b` starts at zero.

    Args:
        params: of the model.
        paths: of kernels (`is_linear`), joined with "/".
        rank: r, at most the size of each side of a kernel.
        scale: see `Lora`.
        key: draws `a`, of every kernel by its path.
    """
    flat, factors = traverse_util.flatten_dict(params, sep="/"), {}
    for path in paths:
        layers, inputs, outputs = _sides(path, flat[path].shape)
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        a = jax.random.normal(own_key, (layers, *inputs, rank)) * math.prod(inputs) ** -0.5
        factors[path] = {"a": a, "b": jnp.zeros((layers, rank, *outputs))}
    return Lora(traverse_util.unflatten_dict(factors, sep="/"), jnp.float32(scale))


def merge_lora(params: PyTree, lora: Lora) -> PyTree:
    """Parameters with the update added; those without factors are passed on as they are."""
    flat = traverse_util.flatten_dict(params, sep="/")
    factors = traverse_util.flatten_dict(lora.factors, sep="/")
    for path in [path.removesuffix("/a") for path in factors if path.endswith("/a")]:
        a, b = factors[f"{path}/a"], factors[f"{path}/b"]
        flat[path] = flat[path] + lora.scale * _product(a, b)
    return traverse_util.unflatten_dict(flat, sep="/")


def _product(a: Float[Array, "L *in r"], b: Float[Array, "L r *out"]) -> Float[Array, "L *in *out"]:
    # In full precision: what is trained through the merge is what a later merge gives.
    product = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1, precision="highest"))
    return product(a, b)


def _sides(path: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Layers, input sizes and output sizes of a kernel; `o_proj` alone has two inputs (heads)."""
    num_inputs = 2 if path.endswith("/o_proj/kernel") else 1
    return shape[0], shape[1 : 1 + num_inputs], shape[1 + num_inputs :]
