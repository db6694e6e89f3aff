"""The tiny config, killed again and again, learns as if nothing had happened."""

import random
import signal

import pytest

from msa_jax.data.demo import DemoConfig, build_demo_corpus
from tests.training.processes import REPOSITORY, losses_of, start, wait_for_step

STEPS, KILLS = 60, 20


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The tiny config with shorter memories, fewer steps and fewer documents, not measured."""
    corpus = tmp_path_factory.mktemp("corpus")
    demo = DemoConfig(
        packages=("email", "http", "json", "logging", "unittest", "xml"),
        train_needles=400,
        train_docstrings=100,
        heldout_needles=4,
        heldout_docstrings=1,
        heldout_tokens=2_000,
    )
    build_demo_corpus(corpus, demo)
    return (
        f"--config={REPOSITORY}/configs/tiny.py",
        f"--config.data.documents={corpus}/train.documents.jsonl",
        f"--config.data.questions={corpus}/train.questions.jsonl",
        f"--config.stages.retrieval.steps={STEPS}",
        "--config.stages.retrieval.memory_tokens=2048",
        "--config.stages.retrieval.queries_per_group=8",
        "--config.checkpoint.every=5",
        "--config.log_every=1",
    )


def finish(*flags):
    process = start(*flags, devices=1)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]


@pytest.mark.slow
def test_killed_at_20_random_steps_the_loss_is_that_of_an_unbroken_run(
    tmp_path, flags, monkeypatch
):
    # As users train, not as fast as tests compile.
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*flags, f"--config.workdir={whole}")
    for step in sorted(random.Random(0).sample(range(1, STEPS - 2), KILLS)):
        process = start(*flags, f"--config.workdir={killed}", devices=1)
        wait_for_step(process, killed, step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(*flags, f"--config.workdir={killed}")

    lines = losses_of(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert losses_of(killed) == lines
