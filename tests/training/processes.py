"""Training runs in processes of their own, for tests that end them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from msa_jax.training.config import TrainConfig
from msa_jax.training.metrics import read_metrics

REPOSITORY = Path(__file__).parents[2]
# Times depend on the machine, and are not what is measured.
_TIMINGS = ("seconds_per_step", "tokens_per_second")


def config_file(run: TrainConfig) -> Path:
    """Writes a run as a config file beside its workdir."""
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


def start(
    *arguments: str, devices: int | None = None, program: str = "msa_jax.train"
) -> subprocess.Popen:
    """Starts a training program.

    Args:
        *arguments: its flags.
        devices: how many it sees; as many as this process by default, so that both compile the
            same program.
        program: the module to run.
    """
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices or jax.device_count()),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    # Each process has as many devices as it asks for itself.
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", program, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


@contextlib.contextmanager
def two_processes(*arguments: str, devices: int = 2) -> Iterator[list[subprocess.Popen]]:
    """Starts a training program in two processes; none of them outlives the context.

    Args:
        *arguments: its flags; `{process_id}` in them is 0 or 1.
        devices: how many each of them sees.
    """
    with _reserved_port() as port:
        processes = [
            start(
                *(argument.format(process_id=process_id) for argument in arguments),
                f"--coordinator_address=localhost:{port}",
                "--num_processes=2",
                f"--process_id={process_id}",
                devices=devices,
                program="tests.training.impatient",
            )
            for process_id in range(2)
        ]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.communicate()


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A port that nobody else gets, but that the coordinator, which shares its port, can have."""
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind(("", 0))
        yield reservation.getsockname()[1]


def wait_for_step(process: subprocess.Popen, workdir: str | Path, step: int) -> None:
    """Waits until a run has logged a step."""
    while process.poll() is None and last_step(workdir) < step:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()


def last_step(workdir: str | Path) -> int:
    """The last step that a run has logged."""
    return max((line["step"] for line in read_metrics(workdir)), default=0)


def losses_of(workdir: str | Path) -> list[dict]:
    """The lines of metrics of a run, but for times."""
    return [
        {name: value for name, value in line.items() if name not in _TIMINGS}
        for line in read_metrics(workdir)
    ]
