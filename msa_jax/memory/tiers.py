"""Where a bank's arrays go: routing keys on the devices, content as near to them as there is room.

Routing reads every key for every question, so keys must be in device memory. Of the content a
question reads a few documents, so it can wait in host memory, or on disk.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax

from msa_jax.config import ConfigError
from msa_jax.kernels.content import DEVICE, DISK, HOST
from msa_jax.memory.chunks import Layout

# The nearest first.
TIERS = (DEVICE, HOST, DISK)
# Capacity comes in slabs of this many chunks, so that a growing bank seldom changes shape.
SLAB_CHUNKS = 4096
# Room to grow: half as much again where that is cheap, else a little.
_GENEROUS, _FRUGAL = 2, 32
_CHEAP_SHARE = 4
# Share of the devices' memory that is left to activations, caches and programs.
_WORKING_SHARE = 0.05
# Of the chunk table: the document of each chunk, and first chunk and number of chunks of documents.
_TABLE_BYTES = 12
_HOST_LIMIT_VARIABLE = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"
_DEFAULT_HOST_LIMIT = 64e9


@dataclasses.dataclass(frozen=True)
class Budget:
    """Memory that may be used.

    Attributes:
        device_bytes: on each device.
        host_bytes: that devices can read; 0 where host memory is the devices' own, or cannot be
            shared by several.
    """

    device_bytes: int
    host_bytes: int

    @classmethod
    def of(cls, devices: list[jax.Device]) -> Budget:
        """What is free now."""
        available = _available_host_bytes()
        stats = devices[0].memory_stats() or {}
        if "bytes_limit" not in stats:  # A CPU.
            return cls(available // 2 // len(devices), 0)
        limit = stats["bytes_limit"]
        free = limit - stats["bytes_in_use"] - int(_WORKING_SHARE * limit)
        host_limit = float(os.environ.get(_HOST_LIMIT_VARIABLE, 0)) * 1e9 or _DEFAULT_HOST_LIMIT
        return cls(free, min(int(0.8 * available), int(host_limit)) if len(devices) == 1 else 0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much room a bank gets, and where.

    Attributes:
        layout: of its arrays.
        capacity: chunks that there is room for.
        num_shards: devices that share the chunks.
        content_tier: "device", "host" or "disk".
    """

    layout: Layout
    capacity: int
    num_shards: int
    content_tier: str

    def describe(self) -> str:
        """One line for people."""
        keys, content = (self.capacity * size for size in self.layout.bytes_per_chunk())
        places = {DEVICE: "beside them", HOST: "in host memory", DISK: "left on disk"}
        devices = "1 device" if self.num_shards == 1 else f"{self.num_shards} devices"
        tokens = self.capacity * self.layout.pooling_kernel_size
        return (
            f"room for {tokens / 1e6:,.1f}M tokens: routing keys {format_bytes(keys)} "
            f"({self.layout.key_dtype}) on {devices}, content {format_bytes(content)} "
            f"({self.layout.content_dtype}) {places[self.content_tier]}"
        )


def plan_tiers(
    layout: Layout,
    num_chunks: int,
    budget: Budget,
    num_shards: int = 1,
    content_tier: str | None = None,
) -> Plan:
    """Decides how much room a bank of `num_chunks` chunks gets, and where its content goes.

    Args:
        layout: of its arrays.
        num_chunks: that it holds now.
        budget: what there is.
        num_shards: devices that share the chunks.
        content_tier: where content must go; None for the nearest place that has room.

    Raises:
        ConfigError: if routing keys, or content where it must go, do not fit.
    """
    if content_tier is not None and content_tier not in TIERS:
        raise ConfigError(
            f"content_tier must be one of {', '.join(TIERS)}, or None for the nearest that has "
            f"room, not {content_tier!r}."
        )
    for tier in TIERS if content_tier is None else (content_tier,):
        for headroom in (_GENEROUS, _FRUGAL):
            capacity = _capacity(layout, num_chunks, num_shards, headroom)
            share = _CHEAP_SHARE if headroom == _GENEROUS else 1
            if _fits(layout, capacity, num_shards, tier, budget, share):
                return Plan(layout, capacity, num_shards, tier)
    keys, content = layout.bytes_per_chunk()
    raise ConfigError(
        f"a memory of {num_chunks} chunks does not fit: its routing keys need "
        f"{format_bytes(num_chunks * keys)} ({layout.key_dtype}) and its content "
        f"{format_bytes(num_chunks * content)} ({layout.content_dtype}), with "
        f"{format_bytes(budget.device_bytes * num_shards)} free on the devices and "
        f"{format_bytes(budget.host_bytes)} in host memory; encode with key_dtype or content_dtype "
        "of 8 bits, or use more devices."
    )


def format_bytes(count: float) -> str:
    """ "57.6 GB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def _capacity(layout: Layout, num_chunks: int, num_shards: int, headroom: int) -> int:
    """Chunks in whole slabs."""
    # On every shard one longest document's chunks stay empty (`Slots`), and one more document may
    # go beyond the shard's share, because it is not cut.
    wanted = num_chunks + num_chunks // headroom + 2 * num_shards * layout.max_document_chunks
    slab = SLAB_CHUNKS * num_shards
    return -(-wanted // slab) * slab


def _fits(
    layout: Layout, capacity: int, num_shards: int, tier: str, budget: Budget, share: int
) -> bool:
    """Whether it takes no more than 1 / `share` of the budget."""
    keys, content = layout.bytes_per_chunk()
    on_device = capacity * (keys + (content if tier == DEVICE else 0)) / num_shards
    on_device += capacity * _TABLE_BYTES
    on_host = capacity * content if tier == HOST else 0
    return on_device * share <= budget.device_bytes and on_host * share <= budget.host_bytes


def _available_host_bytes() -> int:
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
