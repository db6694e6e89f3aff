"""Stage 1 against the model's own encode, whatever the batches, the mesh and the types."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.engine.encode import Encoder, bank_layout, encode_documents, row_lengths
from msa_jax.kernels.routing import CHUNK_ALIGNMENT
from msa_jax.memory.chunks import EIGHT_BITS, Chunks
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import state_shardings
from tests.modules.tiny import POOLING, compiled, model_config, random_params, rows_of

LONGEST = 30
# One token, whole chunks, one more, and the longest that there may be.
LENGTHS = (1, POOLING, POOLING + 1, 3, 4 * POOLING, 2, 4 * POOLING + 1, LONGEST, 6, 11, 1, 29)
RNG = np.random.default_rng(0)
PARTS = [RNG.integers(64, size=length).astype(np.int32) for length in LENGTHS]
CONFIG = model_config()
LAYOUT = bank_layout(CONFIG, LONGEST)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def encoder_of(params, batch_tokens=64, mesh=None, **types):
    layout = dataclasses.replace(LAYOUT, **types)
    return Encoder(Transformer(CONFIG), params, layout, mesh, batch_tokens)


@pytest.fixture(scope="module")
def expected(params):
    """The parts as the model encodes them, with a mask, in one row each."""
    rows = rows_of(PARTS, [[m] for m in range(len(PARTS))], 32)
    memory = compiled(CONFIG, params)(rows, num_documents=len(PARTS), method="encode")
    filled = np.flatnonzero(np.asarray(memory.index.chunk_doc[0]) >= 0)
    layers = memory.layers
    return Chunks(
        *(np.asarray(x)[:, 0] for x in (layers.router_keys.values, layers.content.values))
    )[filled]


def assert_same(ours, expected, tolerance=1e-5):
    for (name, array), (_, other) in zip(ours.arrays(), expected.arrays(), strict=True):
        np.testing.assert_allclose(array, other, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_parts_come_out_as_the_model_encodes_them(params, expected, batch_tokens):
    tokens_done = []
    chunks = encoder_of(params, batch_tokens).encode(PARTS, tokens_done.append)
    assert_same(chunks, expected)
    assert sum(tokens_done) == sum(LENGTHS)
    assert len(tokens_done) == len(plan(LENGTHS, batch_tokens))
    for name, (shape, dtype) in LAYOUT.fields(len(expected)).items():
        array = getattr(chunks, name)
        assert (array.shape, array.dtype) == (shape, dtype)


def test_what_shares_a_batch_changes_nothing(params, expected):
    encoder = encoder_of(params)
    assert_same(Chunks.concatenate([encoder.encode([part]) for part in PARTS]), expected)


@pytest.mark.parametrize("sizes", [{"data": 2}, {"fsdp": 2, "tensor": 2, "memory": 2}], ids=str)
def test_a_mesh_encodes_like_one_device(params, expected, sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    spread = jax.device_put(params, state_shardings(params, mesh))
    assert_same(encoder_of(spread, mesh=mesh).encode(PARTS), expected)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_eight_bits_are_off_by_half_a_step_at_most(params, expected, dtype):
    chunks = encoder_of(params, key_dtype=dtype, content_dtype=dtype).encode(PARTS)
    assert chunks.keys.dtype == chunks.content.dtype == dtype
    for name, scale in (("keys", chunks.key_scale), ("content", chunks.content_scale)):
        scale = scale[..., None]
        values = getattr(chunks, name).astype(np.float32).reshape(*scale.shape[:-1], -1)
        exact = getattr(expected, name).reshape(values.shape)
        # Steps of int8 are even; those of float8 (3 bits of mantissa) grow with the number.
        step = scale if dtype == "int8" else np.maximum(np.abs(exact) / 8, scale * 2.0**-9)
        assert (np.abs(values * scale - exact) <= 0.51 * step + 1e-6).all(), name
        assert (np.abs(values).max(-1) == {"int8": 127, "float8_e4m3fn": 448}[dtype]).all()


def test_content_alone_may_be_in_eight_bits(params, expected):
    chunks = encoder_of(params, content_dtype="int8").encode(PARTS)
    np.testing.assert_allclose(chunks.keys, expected.keys, atol=1e-5)
    assert chunks.key_scale is None and chunks.content_scale is not None


def test_nothing_to_encode_is_no_chunks(params):
    assert len(encoder_of(params).encode([])) == 0


@given(st.integers(1, 64), st.integers(1, 5000))
def test_rows_waste_a_fifth_at_most(pooling, longest):
    lengths = row_lengths(pooling, longest)
    assert lengths[0] == pooling and 0 <= lengths[-1] - longest < pooling
    assert not (lengths % pooling).any() and (np.diff(lengths) > 0).all()
    shortest = np.append(0, lengths[:-1]) + pooling
    assert ((lengths - shortest) <= 0.2 * lengths).all()
    assert len(lengths) <= 5 + 4.2 * np.log(max(longest / pooling, 1))


def plan(lengths, batch_tokens, mesh=None):
    aligned = -(-np.asarray(lengths) // POOLING) * POOLING
    return list(encoder_of(None, batch_tokens, mesh)._batches(aligned))


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=300), st.integers(1, 4096))
def test_batches_hold_every_part_once_in_few_shapes(lengths, batch_tokens):
    batches = plan(lengths, batch_tokens)
    members = np.concatenate([batch.members for batch in batches])
    assert sorted(members) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.members) <= batch.num_rows
        assert max(lengths[m] for m in batch.members) <= batch.row_tokens
        assert batch.num_rows * batch.row_tokens <= max(batch_tokens, batch.row_tokens)
    shapes = {(batch.num_rows, batch.row_tokens) for batch in batches}
    assert len(shapes) <= 2 * len(row_lengths(POOLING, LONGEST))


def test_a_corpus_fills_its_batches_and_one_document_takes_a_small_one():
    lengths = RNG.integers(1, LONGEST + 1, size=20_000)
    spent = sum(batch.num_rows * batch.row_tokens for batch in plan(lengths, 4096))
    assert spent < 1.3 * (-(-lengths // POOLING) * POOLING).sum()
    assert len(plan([1] * 10_000, 65_536)) == 1
    (batch,) = plan([LONGEST], 65_536)
    assert batch.num_rows * batch.row_tokens <= 1024


def test_rows_divide_among_devices():
    mesh = make_mesh(MeshConfig(data=2, memory=4))
    for batch in plan(LENGTHS, 64, mesh) + plan([3], 640, mesh):
        assert batch.num_rows % 8 == 0


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 31], r"parts\[1\] has 31 tokens; .* 1 to max_document_tokens \(30\)"),
        ([3, 5, 0], r"parts\[2\] has 0 tokens"),
    ],
)
def test_parts_that_fit_no_row_are_refused(params, lengths, message):
    with pytest.raises(ConfigError, match=message):
        encoder_of(params).encode([np.ones(n, np.int32) for n in lengths])


def test_a_memory_of_documents_has_a_table_and_padding(params, expected):
    memory = encode_documents(Transformer(CONFIG), params, PARTS, LONGEST, rows_per_batch=2)
    owner = [m for m, length in enumerate(LENGTHS) for _ in range(-(-length // POOLING))]
    padding = [-1] * (CHUNK_ALIGNMENT - len(owner))
    assert memory.index.chunk_doc[0].tolist() == owner + padding
    assert (memory.index.num_documents, memory.index.max_document_chunks) == (len(PARTS), 8)
    keys, content = memory.layers.router_keys.values, memory.layers.content.values
    assert_same(Chunks(keys[:, 0, : len(owner)], content[:, 0, : len(owner)]), expected)
    assert not keys[:, 0, len(owner) :].any() and not content[:, 0, len(owner) :].any()
    with pytest.raises(ConfigError, match="at least one document"):
        encode_documents(Transformer(CONFIG), params, [], LONGEST)


@pytest.mark.parametrize(
    ("dtype", "name"), [("float32", "keys"), ("int8", "key_scale"), ("float8_e4m3fn", "keys")]
)
def test_what_is_not_finite_is_refused(params, dtype, name):
    spoiled = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(ConfigError, match=f"to {name} with NaN or infinity"):
        encoder_of(spoiled, key_dtype=dtype, content_dtype=dtype).encode(PARTS)
