"""Compiles routing for a TPU that need not be there: cases in, bytes out, both as JSON lines.

A program of its own, because libtpu wants settings that must not reach the tests themselves.
"""

import json
import sys
from functools import partial

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from msa_jax.kernels.routing import RoutingKeys, pallas_tpu, route


def main(topology: str) -> None:
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    for line in sys.stdin:
        compiled = _compile(np.array(devices), **json.loads(line))
        memory = compiled.memory_analysis()
        print(json.dumps([memory.temp_size_in_bytes, memory.argument_size_in_bytes]), flush=True)


def _compile(devices, program, batch, tokens, size, chunks, dtype, stack=0):
    """`program` is "chunk_scores"; "route"; or "sharded", `route` on each of four devices."""
    mesh = jax.sharding.Mesh(devices[: 4 if program == "sharded" else 1], "memory")

    replicated, by_chunk = PartitionSpec(), PartitionSpec("memory")

    def array(shape, dtype, spec=replicated):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    queries = array((batch, tokens, size), dtype)
    keys = array(((stack,) if stack else ()) + (chunks, size), dtype, by_chunk)
    if program == "chunk_scores":
        arguments = (queries, keys) + ((array((), "int32"),) if stack else ())
        return jax.jit(pallas_tpu.chunk_scores).lower(*arguments).compile()

    keys = RoutingKeys(keys)
    if keys.values.dtype.itemsize == 1:
        exact = array((chunks, size), "bfloat16", by_chunk)
        keys = RoutingKeys(keys.values, array((chunks,), "float32", by_chunk), exact)
    queries = array(queries.shape, "bfloat16")
    query_mask = array((batch, tokens), "bool")
    chunk_doc = array((chunks,), "int32", by_chunk)
    search = partial(route, top_k_docs=16, max_document_chunks=8, implementation="pallas_tpu")
    if program == "sharded":
        found = PartitionSpec(None, "memory")
        specs = (replicated, replicated, by_chunk, by_chunk)
        search = jax.shard_map(search, mesh=mesh, in_specs=specs, out_specs=(found, found))
    return jax.jit(search).lower(queries, query_mask, keys, chunk_doc).compile()


if __name__ == "__main__":
    main(sys.argv[1])
