"""A bank in use: a store's documents on the devices, kept current while the store changes.

    with Store.open("bank") as store:
        bank = Bank(store)
        generator.start(prompts, bank.memory)
        ...
        bank.refresh()   # what was added, replaced and removed since, by any process

The store is the truth; what lies on the devices can always be made from it again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from msa_jax.core.index import MemoryIndex
from msa_jax.kernels import parallel
from msa_jax.kernels.content import DISK, HOST, Content
from msa_jax.kernels.parallel import MEMORY_AXIS
from msa_jax.kernels.routing import RoutingKeys
from msa_jax.memory.chunks import Chunks
from msa_jax.memory.slots import Slots
from msa_jax.memory.store import PartTable, Store, StoreError
from msa_jax.memory.tiers import Budget, Plan, plan_tiers
from msa_jax.modules.state import LayerMemory, Memory
from msa_jax.typing import Array, Bool, Int

# Chunks written at once. Few sizes, so that few programs are compiled.
_WRITE_SIZES = (4096, 512, 64, 8, 1)


class Bank:
    """A memory of one group on the devices.

    Attributes:
        store: where documents are.
        plan: how much room there is, and where.
    """

    def __init__(
        self,
        store: Store,
        mesh: Mesh | None = None,
        content_tier: str | None = None,
        budget: Budget | None = None,
        on_load: Callable[[int, int], None] = lambda done, total: None,
    ):
        """Loads all documents.

        Args:
            store: open, for reading or writing.
            mesh: devices to lie on, chunks along its axis `memory`; None for the default device.
            content_tier: "device", "host" or "disk"; None for the nearest that has room.
            budget: memory that may be used; what is free by default.
            on_load: called while everything is loaded, with the chunks that are and those to be.

        Raises:
            ConfigError: if it does not fit.
            StoreError: if what was read is not what was written.
        """
        self.store = store
        self._mesh, self._content_tier, self._budget = mesh, content_tier, budget
        self._on_load = on_load
        self._num_shards = 1 if mesh is None else mesh.shape[MEMORY_AXIS]
        self._layers: LayerMemory | None = None
        self._index: MemoryIndex | None = None
        self._load()

    @property
    def memory(self) -> Memory:
        """For the model. Valid until the next `refresh`, which may write into its arrays."""
        return Memory(self._layers, self._index)

    @property
    def version(self) -> int:
        """Of the store, when it was last looked at."""
        return self._version

    def refresh(self) -> bool:
        """Takes over what has changed in the store; returns whether anything had.

        Where room runs out, everything is loaded again into more.

        Raises:
            ConfigError: if it does not fit any more.
            StoreError: if what was read is not what was written.
        """
        if self._index is None:
            self._load()  # What the last call could not.
            return True
        if self.store.version == self._version:
            return False
        changes = self.store.changes(self._version)
        self._slots.remove(changes.removed)
        first = self._slots.add(changes.added)
        if first is None:
            self._load()
            return True
        try:
            self._write(changes.added, first)
        except BaseException:
            # As if they had not come; the next call tries again.
            self._slots.remove(changes.added.ids)
            raise
        finally:
            self._index = self._place_index()
        self._version = changes.version
        return True

    def ids(self, slots: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Ids of parts by their number in the memory, which is what routing returns; -1 stays."""
        return self._slots.ids_at(slots)

    def mask(self, ids: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "1 1 M"]:
        """`MemoryIndex.doc_mask` for these parts; those that are not here are passed over."""
        mask = np.zeros((1, 1, len(self._slots.ids)), np.bool_)
        mask[0, 0, self._slots.first_chunks(ids)] = True
        return mask

    def _load(self) -> None:
        # Let go of what there is first: two such memories may not fit.
        self._layers = self._index = None
        changes, layout = self.store.changes(0), self.store.layout
        parts = changes.added
        budget = self._budget or Budget.of(self._devices)
        self.plan: Plan = plan_tiers(
            layout, int(parts.chunks.sum()), budget, self._num_shards, self._content_tier
        )
        self._slots = Slots(self.plan.capacity, self._num_shards, layout.max_document_chunks)
        first = self._slots.fill(parts)
        assert first is not None, "the plan has room for all parts"
        self._reader = _StoredContent(self.store, self._slots)
        self._layers = self._empty_layers()
        # The number of a document in a memory is its first chunk.
        numbers = np.arange(self.plan.capacity, dtype=np.int32)
        self._first_chunk = jax.device_put(numbers[None], self._sharding())
        self._write(parts, first, self._on_load)
        self._version = changes.version
        self._index = self._place_index()

    @property
    def _devices(self) -> list[jax.Device]:
        return jax.devices()[:1] if self._mesh is None else list(self._mesh.devices.flat)

    def _sharding(self, *axes: str | None, host: bool = False) -> jax.sharding.Sharding:
        kind = {"memory_kind": "pinned_host"} if host else {}
        if self._mesh is None:
            return SingleDeviceSharding(self._devices[0], **kind)
        return NamedSharding(self._mesh, P(*axes), **kind)

    def _empty_layers(self) -> LayerMemory:
        fields = self.store.layout.fields(self.plan.capacity)
        tier = self.plan.content_tier

        def zeros(name: str) -> Array | None:
            if name not in fields or (name.startswith("content") and tier == DISK):
                return None
            shape, dtype = fields[name]
            shape = (shape[0], 1, *shape[1:])
            if tier == HOST and name == "content":
                return jax.device_put(np.zeros(shape, dtype), self._sharding(host=True))
            sharding = self._sharding(None, None, MEMORY_AXIS)
            return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)()

        reader = self._reader if tier == DISK else None
        return LayerMemory(
            RoutingKeys(zeros("keys"), zeros("key_scale")),
            Content(zeros("content"), zeros("content_scale"), tier, reader),
        )

    def _write(
        self,
        parts: PartTable,
        first: Int[np.ndarray, " n"],
        on_load: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Copies the arrays of parts from the store to their places."""
        with_content = self.plan.content_tier != DISK
        was_read = np.zeros(len(parts), np.bool_)
        done, total = 0, int(parts.chunks.sum())
        for rows, chunks in self.store.read(parts, content=with_content):
            was_read[rows] = True
            for source, target in _stretches(first[rows], parts.chunks[rows]):
                self._write_stretch(chunks[source], target)
            done += len(chunks)
            on_load(done, total)
        # The others were removed and compacted away just now.
        self._slots.remove(parts.ids[~was_read])

    def _write_stretch(self, chunks: Chunks, start: int) -> None:
        for offset, size in _pieces(len(chunks)):
            piece = dict(chunks[offset : offset + size].arrays())
            rows = LayerMemory(
                RoutingKeys(piece["keys"], piece.get("key_scale")),
                Content(piece.get("content"), piece.get("content_scale")),
            )
            self._layers = self._written(rows, np.int32(start + offset))

    def _written(self, rows: LayerMemory, start: np.int32) -> LayerMemory:
        old = self._layers
        rows = jax.tree.map(lambda x: x[:, None], rows)
        host, content = None, old.content
        if content.tier == HOST:
            host = _host_writer(content.values.sharding)(content.values, rows.content.values, start)
            content = Content(None, content.scale)
            rows = LayerMemory(rows.router_keys, Content(None, rows.content.scale))
        on_device = LayerMemory(old.router_keys, Content(content.values, content.scale))
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            on_device = _write_device(on_device, rows, start, num_shards=self._num_shards)
        values = on_device.content.values if host is None else host
        content = Content(values, on_device.content.scale, old.content.tier, old.content.reader)
        return LayerMemory(on_device.router_keys, content)

    def _place_index(self) -> MemoryIndex:
        slots = self._slots
        return MemoryIndex(
            # Copies: what is on its way to a device must not change.
            jax.device_put(slots.chunk_doc[None].copy(), self._sharding(None, MEMORY_AXIS)),
            self._first_chunk,
            jax.device_put(slots.num_chunks[None].copy(), self._sharding()),
            self.store.layout.max_document_chunks,
            self._num_shards,
        )


class _StoredContent:
    """Content that is read from the store's files when it is asked for."""

    def __init__(self, store: Store, slots: Slots):
        layout = store.layout
        self.shape = (2, layout.num_kv_heads, layout.head_dim)
        self.dtype = np.dtype(layout.content_dtype)
        self._store, self._slots = store, slots

    def read(
        self, layer: int, chosen: Int[np.ndarray, "*batch k"], max_document_chunks: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `ContentReader`."""
        lead = (chosen.size, max_document_chunks)
        values, scale = np.zeros((*lead, *self.shape), self.dtype), np.ones((*lead, 2), np.float32)
        filled = np.zeros(lead, np.bool_)
        rows, found, scales = self._find(layer, self._slots.ids_at(chosen.reshape(-1)))
        for i, row in enumerate(rows):
            count = len(found[i])
            values[row, :count], filled[row, :count] = found[i], True
            if scales is not None:
                scale[row, :count] = scales[i]
        return tuple(x.reshape(*chosen.shape, *x.shape[1:]) for x in (values, scale, filled))

    def _find(
        self, layer: int, ids: Int[np.ndarray, " n"]
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray] | None]:
        """Rows of the parts that no other process has just removed, and their content."""
        rows = np.flatnonzero(self._store.parts().find(ids) >= 0)
        try:
            return rows, *self._store.content(layer, ids[rows])
        except StoreError:
            if (self._store.parts().find(ids[rows]) >= 0).all():
                raise
            return self._find(layer, ids)


@partial(jax.jit, donate_argnums=0, static_argnames="num_shards")
def _write_device(
    layers: LayerMemory, rows: LayerMemory, start: Int[Array, ""], num_shards: int
) -> LayerMemory:
    return parallel.write_chunks(layers, rows, start, num_shards)


@functools.lru_cache
def _host_writer(sharding: jax.sharding.Sharding) -> Callable[[Array, Array, Array], Array]:
    """Writes chunks into host memory, in place."""

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def write(values, rows, start):
        rows = jax.device_put(rows, jax.memory.Space.Host)
        return jax.lax.dynamic_update_slice_in_dim(values, rows, start, axis=2)

    return write


def _stretches(first: np.ndarray, counts: np.ndarray) -> Iterator[tuple[slice, int]]:
    """Chunks of consecutive parts that lie side by side: where they come from and go to."""
    source = np.cumsum(counts) - counts
    breaks = np.flatnonzero(first[1:] != first[:-1] + counts[:-1]) + 1
    for rows in np.split(np.arange(len(first)), breaks):
        if len(rows):
            start = int(source[rows[0]])
            yield slice(start, start + int(counts[rows].sum())), int(first[rows[0]])


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """Cuts a stretch into pieces of the sizes that there are: offset and size of each."""
    offset = 0
    for size in _WRITE_SIZES:
        while offset + size <= count:
            yield offset, size
            offset += size
