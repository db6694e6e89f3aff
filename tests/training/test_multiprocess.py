"""Training in two processes: the losses of one, and of a run that nothing has killed."""

import dataclasses
import signal

import pytest

from msa_jax.checkpoint.checkpointer import CheckpointConfig
from msa_jax.sharding.mesh import MeshConfig
from msa_jax.training.trainer import train
from tests.training.processes import (
    config_file,
    last_step,
    losses_of,
    two_processes,
    wait_for_step,
)
from tests.training.tiny import dataset_of, model_config, stage_config, train_config

STEPS, KILLED_AFTER = 24, 10
# Groups over the two processes, the rows of a memory over the two devices of each.
MESH = MeshConfig(fsdp=2, memory=2)
# No axis is as it was, and neither is the number of devices in a process.
OTHER_MESH = MeshConfig(data=2, tensor=2)
# Relative: of float32 sums over devices, which add up in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_config(
        tmp_path_factory.mktemp("processes"),
        model=model_config(vocab_size=4096, num_layers=2, memory={"router_layers": (1,)}),
        stages=(stage_config(steps=STEPS, schedule="constant"),),
        checkpoint=CheckpointConfig(every=4),
        mesh=MESH,
    )


@pytest.fixture(scope="module")
def config(run):
    return f"--config={config_file(run)}"


@pytest.fixture(scope="module")
def one_process(run):
    """The metrics of one process with as many devices."""
    train(run, dataset_of(run))
    return losses_of(run.workdir)


@pytest.fixture(scope="module")
def unbroken(run, config, tmp_path_factory):
    """The metrics of two processes that nothing disturbs."""
    return finish(config, tmp_path_factory.mktemp("unbroken"))


def finish(config, workdir, *flags):
    """Trains to the end in two processes; the metrics."""
    with two_processes(config, f"--config.workdir={workdir}", *flags) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    return losses_of(workdir)


def interrupt(config, workdir, victim, number):
    """Sends a signal to one process in the middle of a run; how both ended and what they said."""
    with two_processes(config, f"--config.workdir={workdir}") as processes:
        wait_for_step(processes[0], workdir, KILLED_AFTER)
        processes[victim].send_signal(number)
        # The other one must not wait for ever; for how long is not what is tested.
        errors = [process.communicate(timeout=120)[1] for process in processes]
    assert KILLED_AFTER <= last_step(workdir) < STEPS
    return [process.returncode for process in processes], errors


def assert_close(lines, expected):
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)


def test_two_processes_learn_what_one_learns_and_one_goes_on_elsewhere(
    tmp_path, run, config, one_process
):
    codes, _ = interrupt(config, tmp_path, victim=1, number=signal.SIGKILL)
    assert codes[0] != 0 and codes[1] == -signal.SIGKILL
    done = last_step(tmp_path)
    assert_close(losses_of(tmp_path), one_process[:done])
    assert one_process[-1]["loss"] < 0.9 * one_process[0]["loss"]

    moved = dataclasses.replace(run, workdir=str(tmp_path), mesh=OTHER_MESH)
    train(moved, dataset_of(run))
    assert_close(losses_of(tmp_path), one_process)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_two_processes_go_on_bit_for_bit_when_one_was_killed(tmp_path, config, unbroken, victim):
    codes, _ = interrupt(config, tmp_path, victim, signal.SIGKILL)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] != 0
    assert finish(config, tmp_path) == unbroken


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_with_a_checkpoint(tmp_path, config, unbroken):
    codes, errors = interrupt(config, tmp_path, victim=1, number=signal.SIGTERM)
    assert codes == [0, 0], errors
    saved = f"SIGTERM: saved step {last_step(tmp_path)} in"
    assert [saved in text for text in errors] == [True, False]
    assert finish(config, tmp_path) == unbroken


@pytest.mark.slow
def test_processes_that_share_a_memory_are_fed_the_same_groups(tmp_path, config, one_process):
    across = ("--config.mesh.fsdp=1", "--config.mesh.memory=4")
    assert_close(finish(config, tmp_path, *across), one_process)


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_refused_by_both(tmp_path, config):
    with two_processes(config, f"--config.workdir={tmp_path}/{{process_id}}") as processes:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 2, errors
            assert "error: process 1 does not see what process 0 writes in workdir" in errors
    assert not list(tmp_path.rglob(".written-by-process-0"))
