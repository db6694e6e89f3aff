"""The benchmark of training cost runs, counts what it says, and sees memory grow."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import training_cost
from msa_jax.core.segments import PADDING, chunk_documents

TINY = dataclasses.replace(
    training_cost.SMALL, embed_dim=8, hidden_dim=8, head_dim=4, vocab_size=64
)


def test_batch_has_the_memory_it_says():
    batch = training_cost.random_batch(TINY, 2048, 512, queries=3, active_tokens=16)
    assert batch.memory.tokens.shape == (1, 4, 512)
    assert (batch.memory.doc_ids != PADDING).sum() == 2048
    chunks = chunk_documents(batch.memory.doc_ids, TINY.memory.pooling_kernel_size)
    np.testing.assert_array_equal(chunks, np.arange(8).repeat(4)[None])
    assert batch.positives.shape == (1, 3, 32)
    np.testing.assert_array_equal(batch.positives[..., :8].sum(axis=-1), 1)
    assert batch.active.segment_pos[0, 0, :5].tolist() == [0, 1, 2, 19, 20]


def test_it_prints_each_size_and_the_ratios(monkeypatch, capsys):
    monkeypatch.setattr(training_cost, "SMALL", TINY)
    sizes = {"queries": 2, "row-tokens": 256, "steps": 1}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    training_cost.main(["--memory-tokens", "2048", "1024", *options])
    small, large, ratio = map(json.loads, capsys.readouterr().out.splitlines())
    assert (small["memory_tokens"], large["memory_tokens"]) == (1024, 2048)
    assert all(line["seconds_per_step"] > 0 for line in (small, large))
    assert large["peak_bytes"] > small["peak_bytes"] > small["temporary_bytes"] > 0
    assert ratio["ratios"]["memory_tokens"] == 2
    assert ratio["device"] == jax.devices()[0].device_kind


def test_models_come_from_configs():
    assert training_cost.model_of("100m").num_layers == 30


def test_sizes_that_do_not_divide_are_refused(capsys):
    with pytest.raises(SystemExit):
        training_cost.main(["--memory-tokens", "1000"])
    assert "must be multiples of --row-tokens (512)" in capsys.readouterr().err
