"""How a process finds out which others it belongs to; the rest is in training/test_multiprocess."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from msa_jax import distributed
from msa_jax.config import ConfigError

ADDRESS = "first:1234"
SLURM = {
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_GPUS_ON_NODE": "4",
}


@pytest.fixture
def start(monkeypatch):
    """Starts with flags and an environment; what JAX was told, or None if it was not asked."""
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["train"])

    def start(environment=(), answer=None, **given):
        calls = []

        def initialize(**arguments):
            calls.append(arguments)
            if answer:
                raise answer

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        for name, value in dict(environment).items():
            monkeypatch.setenv(name, value)
        with flagsaver.flagsaver(**given):
            distributed.start()
        if not calls:
            return None
        patience = ("initialization_timeout", "heartbeat_timeout_seconds")
        assert all(calls[0].pop(name) > 0 for name in (*patience, "shutdown_timeout_seconds"))
        return calls[0]

    return start


PLACE = {"coordinator_address": ADDRESS, "num_processes": 4, "process_id": 3}
EXPECTED = {**PLACE, "cluster_detection_method": "deactivate"}


def test_a_single_process_starts_nothing(start):
    assert start() is None
    assert start(num_processes=1) is None
    assert start({**SLURM, "JAX_NUM_PROCESSES": "1"}) is None


def test_flags_say_where_the_others_are(start, capsys):
    assert start(**PLACE) == EXPECTED
    # All that there is to read if they do not come.
    assert "Process 3 of 4 waits for the others at first:1234" in capsys.readouterr().err


def test_the_environment_says_it_too_and_flags_win(start):
    environment = {
        "JAX_COORDINATOR_ADDRESS": ADDRESS,
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "0",
    }
    assert start(environment) == EXPECTED | {"process_id": 0}
    assert start(environment, process_id=3) == EXPECTED
    assert start(environment | SLURM, process_id=3) == EXPECTED


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"process_id": None}, r"--process_id is missing; .* \(or JAX_NUM_PROCESSES\)"),
        ({"num_processes": None}, "--num_processes is missing"),
        ({"process_id": 4}, r"--process_id \(4\) must be less than --num_processes \(4\)"),
        ({"coordinator_address": "first"}, r"--coordinator_address \(first\) must be HOST:PORT"),
        ({"coordinator_address": ":12"}, "must be HOST:PORT"),
    ],
    ids=str,
)
def test_a_place_that_cannot_be_is_refused(start, place, message):
    with pytest.raises(ConfigError, match=message):
        start(**PLACE | place)


def test_a_variable_that_is_no_number_is_refused(start):
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES=two cannot be"):
        start({"JAX_NUM_PROCESSES": "two"})


def test_what_jax_says_is_one_line(start):
    with pytest.raises(ConfigError, match=r"cannot be joined \(no port\); start all of them"):
        start(answer=RuntimeError("no\n port"), **PLACE)


def test_tasks_of_a_slurm_step_are_found(start, monkeypatch):
    assert start(SLURM) == {"cluster_detection_method": "slurm"}
    # The batch script itself, and a step of one task, are alone.
    assert start(SLURM | {"SLURM_NTASKS": "1"}) is None
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    assert start({"SLURM_NTASKS": "8"}) is None


def test_slurm_tasks_that_would_leave_gpus_unused_are_refused(start):
    with pytest.raises(ConfigError, match=r"2 tasks on 2 nodes of 4 GPUs.*--ntasks-per-node=4"):
        start(SLURM | {"SLURM_NTASKS": "2"})
    chosen = SLURM | {"SLURM_NTASKS": "2", "JAX_LOCAL_DEVICE_IDS": "0,1,2,3"}
    assert start(chosen) == {"cluster_detection_method": "slurm"}


def test_a_tpu_asks_its_pod_and_may_have_none(start):
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu,cpu")
    try:
        assert start() == {}
        assert start(answer=ValueError("coordinator_address should be defined.")) == {}
    finally:
        jax.config.update("jax_platforms", platforms)


def test_a_workdir_that_is_a_url_is_refused():
    with pytest.raises(ConfigError, match="workdir gs://bucket/run is a URL; mount the bucket"):
        distributed.check_workdir("gs://bucket/run")


@pytest.fixture
def two_threads(monkeypatch):
    """Runs something in two threads, of which each takes itself for a process."""
    index, barrier = threading.local(), threading.Barrier(2, timeout=20)
    monkeypatch.setattr(distributed, "is_first", lambda: index.value == 0)
    monkeypatch.setattr(
        distributed.multihost, "get_barrier_sync_fn", lambda: lambda **_: barrier.wait()
    )

    def run(work):
        def run_one(process_id):
            index.value = process_id
            return work()

        with ThreadPoolExecutor(2) as pool:
            return [pool.submit(run_one, process_id) for process_id in (1, 0)]

    return run


def test_the_first_process_prepares_what_the_others_find(two_threads, tmp_path):
    made = []

    def prepare():
        with distributed.first_process_first("test"):
            if not (tmp_path / "file").exists():
                made.append(distributed.is_first())
                (tmp_path / "file").touch()

    for done in two_threads(prepare):
        done.result()
    assert made == [True]


def test_what_the_first_process_finds_wrong_the_others_find_too(two_threads):
    def prepare():
        with distributed.first_process_first("test"):
            raise ConfigError("wrong")

    for done in two_threads(prepare):
        with pytest.raises(ConfigError, match="wrong"):
            done.result()
