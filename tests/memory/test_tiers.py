"""What goes where, before anything is allocated."""

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.memory import tiers
from msa_jax.memory.chunks import Layout
from msa_jax.memory.parts import PartTable
from msa_jax.memory.slots import Slots
from msa_jax.memory.tiers import Budget, format_bytes, plan_tiers

# 1000 bytes of keys and 2000 of content per chunk.
LAYOUT = Layout(
    num_layers=5,
    num_kv_heads=2,
    head_dim=50,
    pooling_kernel_size=64,
    max_document_tokens=640,
    key_dtype="bfloat16",
    content_dtype="bfloat16",
)
KEYS, CONTENT, TABLE = 1000, 2000, 12
SLAB, LONGEST = tiers.SLAB_CHUNKS, 10
NUM = 10 * SLAB
# With a little headroom, and with half as much again.
FRUGAL, GENEROUS = 11 * SLAB, 16 * SLAB


def tier_of(device_bytes, host_bytes=0, **options):
    plan = plan_tiers(LAYOUT, NUM, Budget(device_bytes, host_bytes), **options)
    return plan.content_tier, plan.capacity


def test_the_layout_is_as_the_figures_below_assume():
    assert LAYOUT.bytes_per_chunk() == (KEYS, CONTENT)
    assert LAYOUT.max_document_chunks == LONGEST


ALL = KEYS + CONTENT + TABLE
LEAST = FRUGAL * (KEYS + TABLE)


@pytest.mark.parametrize(
    ("device_bytes", "host_bytes", "expected"),
    [
        (4 * GENEROUS * ALL, 0, ("device", GENEROUS)),
        (4 * GENEROUS * ALL - 1, 0, ("device", FRUGAL)),
        (FRUGAL * ALL, 10**12, ("device", FRUGAL)),
        (FRUGAL * ALL - 1, 10**12, ("host", FRUGAL)),
        (4 * GENEROUS * (KEYS + TABLE), 10**12, ("device", FRUGAL)),
        (LEAST, FRUGAL * CONTENT, ("host", FRUGAL)),
        (LEAST, FRUGAL * CONTENT - 1, ("disk", FRUGAL)),
        (LEAST, 0, ("disk", FRUGAL)),
    ],
)
def test_content_goes_to_the_nearest_place_that_has_room(device_bytes, host_bytes, expected):
    assert tier_of(device_bytes, host_bytes) == expected


def test_a_tier_can_be_asked_for():
    plenty = Budget(10**12, 10**12)
    for tier in ("device", "host", "disk"):
        plan = plan_tiers(LAYOUT, NUM, plenty, content_tier=tier)
        assert (plan.content_tier, plan.capacity) == (tier, GENEROUS)


def test_devices_share_the_chunks_but_each_has_the_table():
    on_each = FRUGAL * (ALL - TABLE) // 4 + FRUGAL * TABLE
    capacity = 12 * SLAB  # A slab for each of four devices.
    on_each = capacity * (KEYS + CONTENT) // 4 + capacity * TABLE
    assert tier_of(on_each, num_shards=4) == ("device", capacity)
    assert tier_of(on_each - 1, num_shards=4) == ("disk", capacity)


@pytest.mark.parametrize(
    ("device_bytes", "host_bytes", "tier"),
    [
        (LEAST - 1, 10**12, None),
        (LEAST - 1, 10**12, "disk"),
        (FRUGAL * ALL - 1, 10**12, "device"),
        (LEAST, FRUGAL * CONTENT - 1, "host"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(device_bytes, host_bytes, tier):
    with pytest.raises(ConfigError) as error:
        tier_of(device_bytes, host_bytes, content_tier=tier)
    message = str(error.value)
    assert message.count("\n") == 0 and message.endswith(".")
    assert f"a memory of {NUM} chunks does not fit" in message
    for figure in (NUM * KEYS, NUM * CONTENT, device_bytes, host_bytes):
        assert format_bytes(figure) in message
    assert "encode with key_dtype or content_dtype of 8 bits, or use more devices" in message


def test_eight_bits_make_room():
    small = Layout(5, 2, 50, 64, 640, key_dtype="int8", content_dtype="int8")
    with pytest.raises(ConfigError):
        tier_of(LEAST - 1)
    assert plan_tiers(small, NUM, Budget(LEAST - 1, 0)).content_tier == "disk"


def test_an_unknown_tier_is_refused():
    with pytest.raises(ConfigError, match="content_tier must be one of device, host, disk.*'gpu'"):
        tier_of(10**12, content_tier="gpu")


def test_an_empty_bank_has_room_for_a_slab():
    assert plan_tiers(LAYOUT, 0, Budget(10**9, 0)).capacity == SLAB
    assert plan_tiers(LAYOUT, 0, Budget(10**9, 0), num_shards=4).capacity == 4 * SLAB


@given(
    st.lists(st.integers(1, LONGEST), max_size=60),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["frugal", "generous"]),
    st.integers(1, 12),
)
@example([2], 2, "frugal", 1)
def test_all_parts_and_the_longest_find_room(sizes, num_shards, headroom, slab):
    sizes = np.array(sizes, np.int64)
    budget = Budget(10**12, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiers, "SLAB_CHUNKS", slab)
        if headroom == "frugal":
            patch.setattr(tiers, "_GENEROUS", tiers._FRUGAL)
        plan = plan_tiers(LAYOUT, int(sizes.sum()), budget, num_shards)
    assert plan.capacity % (slab * num_shards) == 0
    slots = Slots(plan.capacity, num_shards, LONGEST)
    zeros = np.zeros(len(sizes), np.int64)
    assert slots.fill(PartTable(np.arange(len(sizes)) + 1, sizes, zeros, zeros)) is not None


def test_growth_within_a_slab_changes_nothing():
    plans = {
        plan_tiers(LAYOUT, NUM + more, Budget(10**12, 0)).capacity for more in range(0, 2000, 50)
    }
    assert plans == {GENEROUS}


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        ("device", "on 1 device, content 8.2 MB (bfloat16) beside them"),
        ("host", "on 1 device, content 8.2 MB (bfloat16) in host memory"),
        ("disk", "on 1 device, content 8.2 MB (bfloat16) left on disk"),
    ],
)
def test_a_plan_is_described_in_one_line(tier, expected):
    plan = plan_tiers(LAYOUT, 1, Budget(10**12, 10**12), content_tier=tier)
    assert plan.describe() == (f"room for 0.3M tokens: routing keys 4.1 MB (bfloat16) {expected}")


def test_a_plan_for_several_devices_says_how_many():
    plan = plan_tiers(LAYOUT, 1_600_000, Budget(10**12, 0), num_shards=4)
    assert plan.describe() == (
        "room for 154.1M tokens: routing keys 2.4 GB (bfloat16) on 4 devices, "
        "content 4.8 GB (bfloat16) beside them"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (57.6e9, "57.6 GB"), (2.5e12, "2.50 TB")],
)
def test_bytes_are_written_for_people(count, text):
    assert format_bytes(count) == text


class Device:
    """An accelerator that says how much memory it has."""

    def __init__(self, limit, in_use=0):
        self._stats = {"bytes_limit": limit, "bytes_in_use": in_use}

    def memory_stats(self):
        return self._stats


def test_the_budget_of_an_accelerator_leaves_room_to_work(monkeypatch):
    monkeypatch.delenv("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", raising=False)
    monkeypatch.setattr(tiers, "_available_host_bytes", lambda: 100 * 10**9)
    assert Budget.of([Device(80 * 10**9, 16 * 10**9)]) == Budget(60 * 10**9, 64 * 10**9)
    # Host memory is shared by no two of them.
    assert Budget.of([Device(80 * 10**9)] * 2) == Budget(76 * 10**9, 0)
    monkeypatch.setenv("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", "200")
    assert Budget.of([Device(80 * 10**9)]).host_bytes == 80 * 10**9


def test_the_devices_of_a_cpu_share_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(tiers, "_available_host_bytes", lambda: 16 * 10**9)
    devices = jax.devices("cpu")
    assert Budget.of(devices[:1]) == Budget(8 * 10**9, 0)
    assert Budget.of(devices[:4]) == Budget(2 * 10**9, 0)


def test_the_memory_of_this_machine_is_found():
    assert 10**7 < tiers._available_host_bytes() < 10**15
