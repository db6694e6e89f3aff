"""The program itself: exit codes, one-line errors, and signals."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from absl.testing import flagsaver

from msa_jax import train as program
from msa_jax.checkpoint.checkpointer import CheckpointConfig
from msa_jax.training.metrics import read_metrics
from msa_jax.training.trainer import train
from tests.training.tiny import dataset_of, stage_config, train_config

REPOSITORY = Path(__file__).parents[2]
STEPS = 100


def config_file(run):
    """Writes a run as a config file."""
    values = dataclasses.asdict(run)
    values["stages"] = {stage.pop("name"): stage for stage in values["stages"]}
    values["curriculum"] = tuple(values["stages"])
    path = Path(run.workdir).parent / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "from msa_jax.training.config import with_defaults\n"
        f"def get_config():\n    return with_defaults(ConfigDict({values!r}))\n"
    )
    return path


def start(*arguments):
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        # As in this process, so that both compile the same program.
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    command = [sys.executable, "-m", "msa_jax.train", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_config(
        tmp_path_factory.mktemp("cli"),
        stages=(stage_config(steps=STEPS, schedule="constant"),),
        checkpoint=CheckpointConfig(every=10),
    )


def wait_for_step(process, workdir, step):
    while process.poll() is None and not any(x["step"] >= step for x in read_metrics(workdir)):
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()


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

    process = start(config, workdir)
    wait_for_step(process, interrupted.workdir, last_step + 5)
    process.kill()
    process.communicate()
    assert read_metrics(interrupted.workdir)[-1]["step"] < STEPS

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
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        program.run()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --config is missing; name a file")
