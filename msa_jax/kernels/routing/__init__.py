"""Routing over a memory: score every chunk, choose the best documents."""

from msa_jax.kernels.routing.api import document_scores, route
from msa_jax.kernels.routing.keys import CHUNK_ALIGNMENT, RoutingKeys, quantize_keys

__all__ = ["CHUNK_ALIGNMENT", "RoutingKeys", "document_scores", "quantize_keys", "route"]
