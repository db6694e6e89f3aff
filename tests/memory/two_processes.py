"""One of two processes that share a memory: `python -m tests.memory.two_processes PORT RANK OUT`.

Each has two devices and writes what it found.
"""

import sys

import jax
import numpy as np

from msa_jax.memory.placement import place_memory
from tests.memory.tiny import UNEVEN, masked, memory_of, mesh_of, queries_of, route_layer


def main(port: str, rank: str, out: str) -> None:
    """Routes over the memory of four devices, of which this process sees two."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
    mesh = mesh_of(memory=4)
    placed = place_memory(masked(memory_of(UNEVEN)), mesh)
    assert not placed.layers.router_keys.values.is_fully_addressable
    with jax.set_mesh(mesh):
        scores, docs = route_layer(placed, *queries_of(2))
    np.savez(out, scores=np.asarray(scores), docs=np.asarray(docs))


if __name__ == "__main__":
    main(*sys.argv[1:])
