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
    assert ratio["devices"] == 1


def test_models_come_from_configs():
    assert training_cost.model_of("100m").num_layers == 30


def test_two_devices_share_the_memory_of_a_step():
    one, two = (
        training_cost.measure(TINY, 4096, row_tokens=256, queries=2, steps=1, devices=devices)
        for devices in (1, 2)
    )
    flops = [result["tflops"] * result["seconds_per_step"] for result in (one, two)]
    assert flops[0] == pytest.approx(2 * flops[1])
    assert two["temporary_bytes"] < 0.7 * one["temporary_bytes"]


def test_a_shortened_model_routes_in_its_upper_half():
    model = training_cost.shortened(training_cost.model_of("qwen3_4b"), 6)
    assert (model.num_layers, model.embed_dim, model.router_layers) == (6, 2560, (3, 4, 5))
    assert training_cost.shortened(training_cost.model_of("tiny"), 2).router_layers == (1,)


def test_a_layer_and_a_word_cost_what_they_multiply():
    def flops(**changes):
        model = dataclasses.replace(TINY, **changes)
        batch = training_cost.random_batch(model, 1024, 512, queries=2, active_tokens=16)
        return training_cost.step_flops(model, 1024, batch) - training_cost.step_flops(
            TINY, 1024, batch
        )

    # 16 targets, and 3 more products with the hidden dimension for 2 layers of the queries' 32
    # tokens, but only for one of the documents' 1,024.
    assert flops(vocab_size=TINY.vocab_size + 1) == 6 * 16 * TINY.embed_dim
    assert flops(hidden_dim=TINY.hidden_dim + 1) == 6 * 3 * TINY.embed_dim * (1024 + 2 * 32)


@pytest.fixture
def measured(monkeypatch):
    """Models that the program measures; memories above 1,024 tokens fail with `failure`."""
    models = []

    def measure(model, memory_tokens, failure="RESOURCE_EXHAUSTED: Out of memory", **sizes):
        models.append(model)
        if memory_tokens > 1024:
            raise jax.errors.JaxRuntimeError(failure)
        return {"memory_tokens": memory_tokens, "tflops": 1.0}

    monkeypatch.setattr(training_cost, "measure", measure)
    return models


def test_the_command_line_changes_the_model(measured):
    training_cost.main(
        ["--model=100m", "--layers=4", "--remat=all", "--unroll", "--memory-tokens=1024"]
    )
    (model,) = measured
    assert (model.num_layers, model.remat, model.unroll_layers) == (4, "all", True)
    training_cost.main(["--model=100m", "--memory-tokens=1024"])
    assert measured[-1] == training_cost.model_of("100m")


def test_a_size_that_does_not_fit_loses_no_other(measured, capsys):
    training_cost.main(["--memory-tokens", "4096", "512", "2048", "1024"])
    printed = capsys.readouterr()
    *lines, last = map(json.loads, printed.out.splitlines())
    assert [line["memory_tokens"] for line in lines] == [512, 1024, 2048]
    assert lines[-1] == {"memory_tokens": 2048, "error": "out of memory"}
    assert last["ratios"]["memory_tokens"] == 2
    assert "Out of memory" in printed.err


def test_without_any_that_fits_there_are_no_ratios(measured, capsys):
    training_cost.main(["--memory-tokens", "2048"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratios"] == {}


def test_other_failures_are_not_taken_for_a_lack_of_memory(measured):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        training_cost.measure_all(TINY, [2048], peak=1.0, failure="INTERNAL: no")


def test_sizes_that_do_not_divide_are_refused(capsys):
    with pytest.raises(SystemExit):
        training_cost.main(["--memory-tokens", "1000"])
    assert "must be multiples of --row-tokens (512)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        training_cost.main(["--memory-tokens", "1536", "--devices", "2"])
    assert "times --devices (2)" in capsys.readouterr().err
