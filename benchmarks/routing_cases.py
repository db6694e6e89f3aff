"""Memories and queries to measure routing on, made on the device where they are used."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.records import short
from benchmarks.timing import BEYOND_CACHES
from msa_jax.core.index import MemoryIndex, memory_index
from msa_jax.core.routing import normalize, routing_queries
from msa_jax.kernels.routing import RoutingKeys, quantize_keys
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.typing import Array, Float

CHUNK_TOKENS, DOCUMENT_CHUNKS, TOP_K_DOCS = 64, 4, 16
HEADS_PER_KV_HEAD = 4
_SLAB = 16_384  # Keys drawn at once.


@dataclasses.dataclass(frozen=True)
class Case:
    """One point of the grid.

    Attributes:
        memory_tokens: chunks of 64 tokens, documents of 4 chunks.
        query_tokens: T, of each query.
        batch: B, queries.
        dtype: of the keys; 8-bit keys are rescored with bfloat16 ones.
        num_kv_heads: K.
        head_dim: H.
        layers: memories that are routed over one after the other.
        stacked: layers are one array, scanned over as the models do; else they are arrays apart.
        devices: that share the memory.
    """

    memory_tokens: int
    query_tokens: int
    batch: int = 1
    dtype: str = "bfloat16"
    num_kv_heads: int = 8
    head_dim: int = 128
    layers: int = 1
    stacked: bool = False
    devices: int = 1

    @property
    def name(self) -> str:
        """Of its record: the fields that say something."""
        parts = [short(self.memory_tokens), f"{self.batch}x{self.query_tokens}", self.dtype]
        parts.append(f"{self.num_kv_heads}x{self.head_dim}")
        parts += [f"{self.layers}-layers"] * (self.layers > 1) + ["stacked"] * self.stacked
        return "/".join(parts + [f"{self.devices}-devices"] * (self.devices > 1))

    @property
    def num_chunks(self) -> int:
        # Kernels fetch eight keys at a time; a memory has no other number of them.
        return -(-self.memory_tokens // (8 * CHUNK_TOKENS)) * 8

    @property
    def num_documents(self) -> int:
        return -(-self.num_chunks // DOCUMENT_CHUNKS)

    @property
    def key_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def key_bytes(self) -> int:
        """Bytes of the keys that one layer's scan reads."""
        return self.num_chunks * self.key_size * jnp.dtype(self.dtype).itemsize

    @property
    def flops(self) -> int:
        """Operations of one layer's scan."""
        return 2 * self.batch * self.query_tokens * self.num_chunks * self.key_size


def random_queries(case: Case) -> tuple[Float[Array, "L B T N H"], Float[Array, "L B T D"]]:
    """Routing queries of every layer: head by head, and with the heads of each group summed."""
    num_heads = HEADS_PER_KV_HEAD * case.num_kv_heads
    shape = (case.layers, case.batch, case.query_tokens, num_heads, case.head_dim)
    per_head = jax.random.normal(jax.random.key(0), shape)
    grouped = routing_queries(per_head, case.num_kv_heads, "cosine")
    return per_head, grouped.reshape(*shape[:3], -1).astype(jnp.bfloat16)


def random_memories(case: Case) -> list[RoutingKeys]:
    """Keys of each layer; of one layer, as many as no cache holds.

    Several layers in 8 bits share one layer's exact keys: those of all of them would not fit
    beside, and rescoring reads a few rows of them wherever they lie.
    """
    count = case.layers if case.layers > 1 else -(-BEYOND_CACHES // case.key_bytes)
    memories: list[RoutingKeys] = []
    for seed in range(count):
        keys = random_keys(case, jax.random.key(1 + seed))
        memories.append(dataclasses.replace(keys, exact=memories[0].exact) if memories else keys)
    return memories


@partial(jax.jit, static_argnums=(0, 2))
def random_keys(case: Case, key: Array, layers: int | None = None) -> RoutingKeys:
    """Keys of unit length per head, drawn in slabs that take little memory.

    Args:
        case: says how many, and their type.
        key: of the random numbers.
        layers: number of stacked layers; None for one without an axis for it.
    """
    slab = min(_SLAB, case.num_chunks)
    slabs = -(-case.num_chunks // slab)
    shape = (slab, case.num_kv_heads, case.head_dim)

    def draw(i: int, keys: Float[Array, "L C D"]) -> Float[Array, "L C D"]:
        part = normalize(jax.random.normal(jax.random.fold_in(key, i), shape))
        part = part.reshape(1, slab, -1).astype(keys.dtype)
        return jax.lax.dynamic_update_slice(keys, part, (i // slabs, i % slabs * slab, 0))

    keys = jnp.zeros((layers or 1, case.num_chunks, case.key_size), jnp.bfloat16)
    keys = jax.lax.fori_loop(0, keys.shape[0] * slabs, draw, keys)
    if layers is None:
        keys = keys[0]
    return RoutingKeys(keys) if case.dtype == "bfloat16" else quantize_keys(keys, case.dtype)


def documents_of_chunks(case: Case) -> Array:
    """`[C]` the document of each chunk."""
    return jnp.arange(case.num_chunks, dtype=jnp.int32) // DOCUMENT_CHUNKS


def sharded_memory(case: Case) -> tuple[Mesh, RoutingKeys, MemoryIndex]:
    """Layers of a memory of one group, whose parts were drawn on the devices where they lie.

    Returns:
        The mesh, keys `[L, 1, C, D]`, and the chunk table. Every device has equally many chunks,
        and whole documents: there are as many more than the case asks for as that takes.
    """
    mesh = make_mesh(MeshConfig(memory=case.devices), jax.devices()[: case.devices])
    part = dataclasses.replace(case, memory_tokens=-(-case.memory_tokens // case.devices))
    whole_tokens = case.devices * part.num_chunks * CHUNK_TOKENS
    whole = dataclasses.replace(case, memory_tokens=whole_tokens)
    parts = []
    for seed, device in enumerate(mesh.devices.flat):
        with jax.default_device(device):
            keys = random_keys(part, jax.random.key(1 + seed), case.layers)
            parts.append(jax.tree.map(lambda x: x[:, None], keys))
    sharding = NamedSharding(mesh, PartitionSpec(None, None, "memory"))

    def join(*arrays: Array) -> Array:
        shape = (case.layers, 1, whole.num_chunks, *arrays[0].shape[3:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(arrays))

    index = memory_index(
        documents_of_chunks(whole)[None], whole.num_documents, DOCUMENT_CHUNKS, case.devices
    )
    return mesh, jax.tree.map(join, *parts), index
