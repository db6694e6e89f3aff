"""Sharded routing over `jax.distributed` gives what one process gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.memory.tiny import UNEVEN, masked, memory_of, queries_of, route_each_group


def test_two_processes_find_what_one_finds(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Each process has as many devices as it asks for itself.
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    outputs = [tmp_path / f"{rank}.npz" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.memory.two_processes", str(port), str(rank), str(out)],
            env=environment,
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outputs)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in processes:
            process.kill()
    scores, docs = route_each_group(masked(memory_of(UNEVEN)), *queries_of(2))
    for out in outputs:
        found = np.load(out)
        np.testing.assert_array_equal(found["docs"], docs)
        np.testing.assert_array_equal(found["scores"], scores)
