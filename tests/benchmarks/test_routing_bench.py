"""The routing benchmark runs on any machine, survives failures, and compares equal work."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import routing_bench, routing_cases, timing
from benchmarks.routing_cases import Case
from benchmarks.upstream_routing import route_per_head
from msa_jax.core.routing import normalize, per_head_document_scores
from msa_jax.kernels.routing import route

TINY = ["--memory-tokens=4096", "--query-tokens=4", "--kv-heads=2", "--head-dim=8"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_ROUND_SECONDS", 1e-4)
    monkeypatch.setattr(routing_cases, "BEYOND_CACHES", 4096)
    monkeypatch.setattr(routing_bench, "_REDUCTIONS", {})


def lines(capsys, *options):
    routing_bench.main([*TINY, "--matrix-size=16", *options])
    return list(map(json.loads, capsys.readouterr().out.splitlines()))


def test_it_prints_a_line_per_case(capsys):
    plain, coded = lines(capsys, "--dtype", "bfloat16", "int8")
    assert (plain["dtype"], coded["dtype"]) == ("bfloat16", "int8")
    assert plain["key_bytes"] == 64 * 16 * 2 == 2 * coded["key_bytes"]
    for line in (plain, coded):
        assert not [name for name in line if name.endswith("_error")]
        assert line["served_by"] == "xla" and line["same_ids_as_xla"] == 1.0
        assert line["device"] == jax.devices()[0].device_kind
        assert line["command"].startswith("python -m benchmarks.routing_bench --memory-tokens=4096")
        assert line["ms"] > 0 and line["xla_ms"] > 0 and line["temporary_bytes"] > 0
        assert line["times_reduction"] == pytest.approx(line["ms"] / line["reduction_ms"], rel=1e-2)
        assert line["gb_per_s"] == pytest.approx(line["key_bytes"] / line["ms"] / 1e6, rel=1e-2)
    assert plain["times_faster_than_upstream"] == pytest.approx(
        plain["upstream_ms"] / plain["ms"], rel=1e-2
    )


def test_layers_and_devices(capsys):
    (layered,) = lines(capsys, "--dtype=int8", "--layers=2")
    (stacked,) = lines(capsys, "--dtype=int8", "--layers=2", "--stacked")
    (sharded,) = lines(capsys, "--dtype=int8", "--devices=2")
    for line in (layered, stacked):
        assert line["ms_per_layer"] == pytest.approx(line["ms"] / 2, rel=1e-2)
    assert sharded["same_ids_as_one_device"] == 1.0
    assert sharded["times_faster_than_one_device"] > 0
    for line in (layered, stacked, sharded):
        assert not [name for name in line if name.endswith("_error")]


def test_stacked_layers_find_what_layers_apart_find():
    case = Case(64 * 104, 4, num_kv_heads=2, head_dim=8, layers=3)
    _, queries = routing_cases.random_queries(case)
    layers = routing_cases.random_memories(case)
    stack = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    mask, chunk_doc = jnp.ones((1, 4), bool), routing_cases.documents_of_chunks(case)
    apart = routing_bench._route_layers(queries, mask, layers, chunk_doc)
    _, stacked = routing_bench._route_stacked(queries, mask, stack, chunk_doc)
    np.testing.assert_array_equal(stacked, [docs for _, docs in apart])


def test_a_failing_case_is_a_line_and_the_next_goes_on(capsys):
    broken, fine = lines(capsys, "--dtype", "int4", "bfloat16")
    assert "int4" in broken["case_error"] and "ms" not in broken
    assert fine["ms"] > 0 and "case_error" not in fine


def test_a_failing_comparison_leaves_the_rest(capsys, monkeypatch):
    def out_of_memory(*_, **__):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(routing_bench, "route_per_head", out_of_memory)
    (line,) = lines(capsys, "--dtype=bfloat16")
    assert line["upstream_error"] == "RuntimeError: out of memory"
    assert line["share_of_bandwidth"] > 0


def test_keys_are_of_unit_length_and_fill_the_memory():
    case = Case(64 * 104, 4, num_kv_heads=2, head_dim=8)
    routing_cases.random_keys.clear_cache()
    keys = np.asarray(routing_cases.random_keys(case, jax.random.key(0)).values, np.float32)
    assert keys.shape == (104, 16)
    np.testing.assert_allclose(np.linalg.norm(keys.reshape(104, 2, 8), axis=-1), 1, rtol=1e-2)


@pytest.mark.parametrize("slab", [7, 52, 104])
def test_slabs_leave_no_chunk_out_and_repeat_none(monkeypatch, slab):
    monkeypatch.setattr(routing_cases, "_SLAB", slab)
    routing_cases.random_keys.clear_cache()
    keys = routing_cases.random_keys(
        Case(64 * 104, 4, num_kv_heads=2, head_dim=8), jax.random.key(0)
    )
    assert len(np.unique(np.asarray(keys.values, np.float32), axis=0)) == 104
    routing_cases.random_keys.clear_cache()


def test_stacked_layers_are_as_random_as_layers_apart():
    case = Case(64 * 104, 4, num_kv_heads=2, head_dim=8, layers=3, stacked=True)
    keys = routing_cases.random_keys(case, jax.random.key(0), case.layers).values
    assert keys.shape == (3, 104, 16)
    assert len(np.unique(np.asarray(keys, np.float32).reshape(-1, 16), axis=0)) == 312


def test_layers_in_eight_bits_share_exact_keys_and_nothing_else():
    first, second = routing_cases.random_memories(Case(640, 4, dtype="int8", layers=2))
    assert first.exact is second.exact
    assert (first.values != second.values).any()


@pytest.mark.parametrize("slice_chunks", [7, 16, 64])
def test_upstream_finds_what_the_formula_and_our_routing_find(monkeypatch, slice_chunks):
    monkeypatch.setattr("benchmarks.upstream_routing.SLICE_CHUNKS", slice_chunks)
    case = Case(64 * 32, 5, batch=2, num_kv_heads=2, head_dim=8)
    per_head, grouped = (x[0] for x in routing_cases.random_queries(case))
    pooled = normalize(jax.random.normal(jax.random.key(7), (32, 2, 8)))
    keys, chunk_doc = pooled.reshape(32, 16), routing_cases.documents_of_chunks(case)
    mask = jnp.ones((2, 5), bool).at[0, 2:].set(False)
    scores, docs = route_per_head(per_head, mask, keys, chunk_doc, case.num_documents, 3)
    formula = per_head_document_scores(per_head, mask, pooled, chunk_doc, case.num_documents)
    expected, best = jax.lax.top_k(formula, 3)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_array_equal(docs, best)
    ours = route(grouped, mask, keys, chunk_doc, top_k_docs=3, max_document_chunks=4)
    np.testing.assert_allclose(ours[0], expected, atol=2e-3)  # Its queries are in bfloat16.


@pytest.mark.parametrize("slice_chunks", [7, 64])
def test_upstream_in_pytorch_finds_the_same(monkeypatch, slice_chunks):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    upstream_torch = importlib.import_module("benchmarks.upstream_torch")
    monkeypatch.setattr(upstream_torch, "SLICE_CHUNKS", slice_chunks)
    case = Case(64 * 32, 5, batch=2, num_kv_heads=2, head_dim=8)
    per_head = routing_cases.random_queries(case)[0][0]
    pooled = normalize(jax.random.normal(jax.random.key(7), (32, 2, 8)))
    chunk_doc = routing_cases.documents_of_chunks(case)
    mask = jnp.ones((2, 5), bool).at[0, 2:].set(False)
    router = upstream_torch.TorchRouter(
        pooled.reshape(32, 16), case.num_kv_heads, chunk_doc, case.num_documents
    )
    scores, docs = router.route(normalize(per_head), mask, 3)
    formula = per_head_document_scores(per_head, mask, pooled, chunk_doc, case.num_documents)
    expected, best = jax.lax.top_k(formula, 3)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(docs.numpy(), best)


def test_the_whole_table_fits_the_line_and_the_device():
    for case in (*routing_bench.FULL, *routing_bench.FULL_TWO_DEVICES):
        exact = 0 if case.dtype == "bfloat16" else case.num_chunks * case.key_size * 2
        assert case.layers * case.key_bytes + exact < 60e9
