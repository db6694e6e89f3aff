"""Routing over a memory: score every chunk, choose the best documents."""

from msa_jax.kernels.routing.api import document_scores, route
from msa_jax.kernels.routing.keys import RoutingKeys, quantize_keys

__all__ = ["RoutingKeys", "document_scores", "quantize_keys", "route"]
