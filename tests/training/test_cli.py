"""The program itself: exit codes, one-line errors, and signals."""

import dataclasses
import random
import re
import signal
import sys

import pytest
from absl.testing import flagsaver

from msa_jax import train as program
from msa_jax.checkpoint.checkpointer import CheckpointConfig
from msa_jax.training.metrics import read_metrics
from msa_jax.training.trainer import train
from tests.training.processes import config_file, start, wait_for_step
from tests.training.tiny import dataset_of, stage_config, train_config

STEPS, KILLS = 100, 2  # More of both in test_kill.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_config(
        tmp_path_factory.mktemp("cli"),
        stages=(stage_config(steps=STEPS, schedule="constant"),),
        checkpoint=CheckpointConfig(every=10),
    )


def test_sigterm_and_sigkill_change_no_loss(run):
    config = f"--config={config_file(run)}"
    interrupted = dataclasses.replace(run, workdir=run.workdir + "_interrupted")
    workdir = f"--config.workdir={interrupted.workdir}"

    process = start(config, workdir)
    wait_for_step(process, interrupted.workdir, 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    saved = [line for line in errors.splitlines() if "SIGTERM: saved step" in line]
    assert len(saved) == 1
    last_step = read_metrics(interrupted.workdir)[-1]["step"]
    assert f"saved step {last_step} in" in saved[0] and last_step < STEPS

    for step in sorted(random.sample(range(last_step + 5, STEPS - 10), KILLS)):
        process = start(config, workdir)
        wait_for_step(process, interrupted.workdir, step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    dataset = dataset_of(run)
    train(interrupted, dataset)
    train(run, dataset)
    losses, expected = (
        [(line["step"], line["loss"], line["recall@1"]) for line in read_metrics(x.workdir)]
        for x in (interrupted, run)
    )
    assert len(expected) == STEPS
    assert losses == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.log_evry=3"], "--config.log_evry=3 names a field that .* does not have"),
        (["--config.stages.main.stps=3"], '.*stps=3 names .*; Did you mean "steps"'),
        (["--config.log_every=x"], "--config.log_every=x: invalid literal for int"),
        (["--config.data.questions=none.jsonl"], "none.jsonl"),
        (["--config.mesh.tensor=3"], "mesh data=1 x fsdp=1 x tensor=3 .* does not divide"),
        (["--config.curriculum=('final',)"], "config.curriculum names 'final'"),
        (["--config=none.py"], "none.py"),
    ],
    ids=str,
)
def test_what_the_user_can_mend_is_one_line(run, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["train", f"--config={config_file(run)}", *arguments])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        program.run()
    assert stop.value.code == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)


def test_a_missing_config_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])
    # Another test of this process may have given one.
    with flagsaver.flagsaver(config=None), pytest.raises(SystemExit) as stop:
        program.run()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --config is missing; name a file")
