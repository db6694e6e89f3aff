"""The benchmark of the engine runs at any size and measures what it says."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from benchmarks import engine_bench, timing
from benchmarks.engine_bench import Case
from benchmarks.synthetic_bank import DOCUMENT_CHUNKS
from msa_jax.checkpoint.key_map import parameter_shapes
from msa_jax.data.records import Document

TINY = dict(
    vocab_size=4096,
    num_layers=2,
    embed_dim=16,
    hidden_dim=24,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
)
CASES = [Case("small", 16_384), Case("small", 32_768, "int8", "int8")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setitem(engine_bench.GEOMETRIES, "small", TINY)
    monkeypatch.setattr(engine_bench, "CASES", CASES)
    monkeypatch.setattr(engine_bench, "ANSWER_TOKENS", 16)
    monkeypatch.setattr(engine_bench, "BEYOND_CACHES", 1 << 14)
    monkeypatch.setattr(timing, "_ROUND_SECONDS", 1e-4)


def test_it_prints_a_line_for_the_model_and_one_for_each_memory(monkeypatch, capsys, tmp_path):
    output = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["engine_bench", f"--output={output}"])
    engine_bench.main()
    printed = capsys.readouterr().out
    assert output.read_text(encoding="utf-8") == printed
    encoding, *queries = map(json.loads, printed.splitlines())
    assert encoding["geometry"] == "small" and encoding["encoded_tokens_per_second"] > 0
    for case, line in zip(CASES, queries, strict=True):
        assert dataclasses.asdict(case).items() <= line.items()
        assert f"({case.key_dtype})" in line["plan"]
        for name in ("prefill_ms", "weights_ms", "add_ms", "retrieve_ms"):
            assert line[name] > 0, name
        assert np.isfinite(line["share_of_weight_bandwidth"])
    device = jax.devices()[0].device_kind
    for line in (encoding, *queries):
        assert line["device"] == device and line["versions"]["jax"] == jax.__version__
        assert line["command"] == "python -m benchmarks.engine_bench"
    names = ["encoding", "16,384/bfloat16-bfloat16", "32,768/int8-int8"]
    found = [line["record"] for line in (encoding, *queries)]
    assert found == [f"{device}/engine/small/{name}" for name in names]


def test_cases_of_other_models_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["engine_bench", "--geometry=msa_4b"])
    engine_bench.main()
    assert capsys.readouterr().out == ""


def test_operations_of_encoding_are_those_of_its_matrices_and_of_causal_attention():
    config = engine_bench._config("small", scan_layers=False)
    operations = 0
    for path, shape in parameter_shapes(config).items():
        last = path.startswith(f"routed_{config.num_layers - 1}/")
        unused = "router/q_proj" in path or (last and ("mlp" in path or "o_proj" in path))
        if path.endswith("kernel") and not unused:
            operations += 2 * np.prod(shape)
    # Queries with keys, and weights with values, for half of the tokens on average.
    heads = config.num_heads * config.head_dim
    operations += (config.num_layers - 1) * 2 * 2 * heads * engine_bench.DOCUMENT_TOKENS / 2
    assert engine_bench.encoding_flops(config) == operations


def test_a_synthetic_bank_is_full_of_documents_and_takes_more(tmp_path):
    case, config = CASES[0], engine_bench._config("small", scan_layers=False)
    engine = engine_bench._engine(case, config, tmp_path / "bank")
    count = case.memory_tokens // engine_bench.DOCUMENT_TOKENS
    chunk_doc = np.asarray(engine.bank.memory.index.chunk_doc)
    # One document is there to keep the ids of the others.
    assert (chunk_doc >= 0).sum() == count * DOCUMENT_CHUNKS + 1
    before = {found.id for found in engine.retrieve("what changed?", 2 * count)}
    assert set(range(1, 1 + count)) < before
    engine.add([Document("new", "a new one")])
    (found,) = engine.retrieve("what changed?", 1, {"key": "new"})
    assert found.id not in before and found.text == "a new one"
    # It has the first chunk of all; no other is there twice.
    keys = np.asarray(engine.bank.memory.layers.router_keys.values[0, 0], np.float32)
    assert len(np.unique(keys[chunk_doc[0] >= 0], axis=0)) == count * DOCUMENT_CHUNKS
    engine.close()
