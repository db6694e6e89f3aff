"""Parameters with an array of its own for every layer, as generating needs them."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from msa_jax.config import ModelConfig
from msa_jax.typing import Array, PyTree


def unstack_layers(config: ModelConfig, params: PyTree) -> tuple[ModelConfig, PyTree]:
    """The same model without `scan_layers`: its config and parameters.

    Shardings stay; parameters of the embeddings and the final norm are shared with `params`.
    """
    if not config.scan_layers:
        return config, params
    unstacked = {name: x for name, x in params.items() if name not in _names(config)}
    for name, start, stop in config.layer_runs:
        kind = name.split("_")[0]
        leaves, structure = jax.tree.flatten(params[name])
        layers = zip(*(_split(leaf, stop - start) for leaf in leaves), strict=True)
        for layer, own in enumerate(layers, start):
            unstacked[f"{kind}_{layer}"] = jax.tree.unflatten(structure, own)
    return dataclasses.replace(config, scan_layers=False), unstacked


def _names(config: ModelConfig) -> list[str]:
    return [name for name, _, _ in config.layer_runs]


@partial(jax.jit, static_argnums=1)
def _split(x: Array, count: int) -> list[Array]:
    return jnp.split(x, count)
