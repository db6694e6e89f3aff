"""Several processes as one program: a TPU pod, a Slurm job, or processes that are told their place.

`start` must come before anything that makes JAX look for its devices.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from msa_jax.config import ConfigError
from msa_jax.fields import Count, CountOrZero
from msa_jax.flag_types import define_number
from msa_jax.terminal import show

# How long processes wait for the others to appear: machines of a cluster do not boot together.
START_SECONDS = 600
# A process unheard of for so long is taken for dead, and all end. More than a machine may pause
# while it is moved to another host, and less than anyone would wait for a run that hangs.
HEARTBEAT_SECONDS = 100
# How long a process that ends waits for the others. One that failed, while the others wait for it
# in a step, ends them after so long.
SHUTDOWN_SECONDS = 120
# How long processes wait for the first one to prepare files, which may have to be downloaded.
PREPARATION_SECONDS = 3600

_FLAGS = (
    flags.DEFINE_string("coordinator_address", None, "Several processes: HOST:PORT of the first."),
    define_number("num_processes", None, Count, "Several processes: how many.", flags.FLAGS),
    define_number(
        "process_id", None, CountOrZero, "Several processes: which is this?", flags.FLAGS
    ),
)


def start() -> None:
    """Joins the other processes of this run; does nothing where there are none.

    Their number and addresses come from `--coordinator_address`, `--num_processes` and
    `--process_id` or the environment (`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`,
    `JAX_PROCESS_ID`), and otherwise from Slurm or the TPU pod that this process runs on.
    `--num_processes=1` alone says that this process has no others, wherever it runs.

    Raises:
        ConfigError: if the processes are described badly, or do not find each other.
    """
    given = {flag.name: _value(flag) for flag in _FLAGS}
    if given["num_processes"] == 1:
        return
    if any(value is not None for value in given.values()):
        _check_place(given)
        _say_who_waits(**given)
        _initialize(**given, cluster_detection_method="deactivate")
    elif _is_slurm_task():
        _initialize(cluster_detection_method="slurm")
    elif (jax.config.jax_platforms or "").startswith("tpu"):
        # JAX says so as soon as it is imported where it sees the chips of a TPU.
        with contextlib.suppress(ValueError):  # It does not belong to a pod.
            _initialize()


@contextlib.contextmanager
def first_process_first(what: str) -> Iterator[None]:
    """Lets the first process do the work inside before the others do it.

    So files are written once, and the others find them there. If it fails in the first process,
    the others try, too, and end with the same error instead of waiting.

    Args:
        what: a name that is used once in a run.
    """
    wait = multihost.get_barrier_sync_fn()
    first = is_first()
    if not first:
        wait(key=what, timeout_ms=PREPARATION_SECONDS * 1000)
    try:
        yield
    finally:
        if first:
            wait(key=what, timeout_ms=PREPARATION_SECONDS * 1000)


def check_workdir(workdir: str) -> None:
    """Makes sure that all processes write to the same directory.

    Raises:
        ConfigError: if it is a URL, or (in every process) if one of them does not see what the
            first has written there.
    """
    if "://" in workdir:
        raise ConfigError(f"workdir {workdir} is a URL; mount the bucket and name a directory.")
    if jax.process_count() == 1:
        return
    mark = pathlib.Path(workdir) / ".written-by-process-0"
    with first_process_first("workdir"):
        if is_first():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        seen = mark.exists()
    blind = np.flatnonzero(~multihost_utils.process_allgather(np.array(seen)))
    if is_first():
        mark.unlink()
    if len(blind):
        raise ConfigError(
            f"process {blind[0]} does not see what process 0 writes in workdir {workdir}; name a "
            "directory that all machines share."
        )


def is_first() -> bool:
    """Whether this process is the one that prints and writes what all have in common."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        show(text)


def _initialize(**arguments: Any) -> None:
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"the processes of this run cannot be joined ({' '.join(str(error).split())}); start "
            "all of them with the same address, of a free port that each can reach."
        ) from error


def _check_place(given: Mapping[str, Any]) -> None:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ConfigError(
            f"--{missing[0]} is missing; several processes need all of "
            f"{', '.join(f'--{name} (or {_variable(name)})' for name in given)}."
        )
    if given["process_id"] >= given["num_processes"]:
        raise ConfigError(
            f"--process_id ({given['process_id']}) must be less than --num_processes "
            f"({given['num_processes']}); number the processes from 0."
        )
    host, _, port = given["coordinator_address"].rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"--coordinator_address ({given['coordinator_address']}) must be HOST:PORT; name the "
            "machine of process 0 and a free port there."
        )


def _say_who_waits(coordinator_address: str, num_processes: int, process_id: int) -> None:
    # JAX gives no reason when the others do not come: it aborts.
    print(
        f"Process {process_id} of {num_processes} waits for the others at {coordinator_address}, "
        f"{START_SECONDS} seconds at most.",
        file=sys.stderr,
        flush=True,
    )


def _value(flag: flags.FlagHolder) -> Any:
    """A flag, or else its variable in the environment."""
    variable = _variable(flag.name)
    if flag.value is not None or variable not in os.environ:
        return flag.value
    try:
        return flags.FLAGS[flag.name].parser.parse(os.environ[variable])
    except ValueError as error:
        raise ConfigError(f"{variable}={os.environ[variable]} cannot be: {error}.") from error


def _variable(name: str) -> str:
    return f"JAX_{name.upper()}"


def _is_slurm_task() -> bool:
    """Whether this is one of several tasks of a step.

    Raises:
        ConfigError: if they would leave GPUs unused.
    """
    # In the batch script, which runs once however many tasks its steps have, there is no step.
    in_step = "SLURM_STEP_NODELIST" in os.environ
    tasks = int(os.environ.get("SLURM_NTASKS", 1)) if in_step else 1
    nodes, gpus = (int(os.environ.get(f"SLURM_{x}", 0)) for x in ("STEP_NUM_NODES", "GPUS_ON_NODE"))
    if 1 < tasks < nodes * gpus and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        raise ConfigError(
            f"Slurm started {tasks} tasks on {nodes} nodes of {gpus} GPUs, and each uses one GPU; "
            f"start more (--ntasks-per-node={gpus})."
        )
    return tasks > 1
