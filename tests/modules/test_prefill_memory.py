"""Routing reads a memory where it lies: no layer of it is ever copied, or moved."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from msa_jax.core.index import MemoryIndex
from msa_jax.core.segments import TokenBlock
from msa_jax.kernels.content import Content
from msa_jax.kernels.routing import RoutingKeys
from msa_jax.modules.init import init_params
from msa_jax.modules.state import LayerMemory, Memory
from msa_jax.modules.transformer import Transformer, init_cache
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from tests.memory.tiny import collectives
from tests.modules.tiny import model_config

CHUNKS, DOCUMENTS = 1 << 22, 1 << 20


def abstract_memory(config, mesh, axis):
    def array(*shape, spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    stack, spec = (len(config.router_layers), 1, CHUNKS), P(None, None, axis)
    content = Content(array(*stack, 2, config.num_kv_heads, config.head_dim, spec=spec))
    keys = RoutingKeys(array(*stack, config.num_kv_heads * config.head_dim, spec=spec))
    table = array(1, DOCUMENTS, spec=P(), dtype=jnp.int32)
    chunk_doc = array(1, CHUNKS, spec=P(None, axis), dtype=jnp.int32)
    index = MemoryIndex(chunk_doc, table, table, 4, mesh.size)
    return Memory(LayerMemory(keys, content), index)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_prefill_needs_less_room_than_the_keys_of_a_layer(shards):
    config = model_config()
    mesh = make_mesh(MeshConfig(memory=shards))
    params = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    active = TokenBlock(*[jax.ShapeDtypeStruct((1, 1, 8), jnp.int32)] * 3)
    cache = jax.eval_shape(lambda: init_cache(config, 1, 1, 16))
    prefill = jax.jit(partial(Transformer(config).apply, method="prefill"))
    memory = abstract_memory(config, mesh, "memory" if shards > 1 else None)
    with jax.set_mesh(mesh):
        compiled = prefill.lower({"params": params}, active, cache, memory).compile()
    keys = CHUNKS * config.num_kv_heads * config.head_dim * 4 // shards
    assert compiled.memory_analysis().temp_size_in_bytes < keys
    moved = collectives(compiled)
    assert bool(moved) == (shards > 1) and all(size < 1000 for size in moved)
