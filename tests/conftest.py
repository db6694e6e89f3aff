"""Settings that must be made before JAX starts."""

import getpass
import os
import sys
import tempfile
from pathlib import Path

import jax
import pytest

# JAX_PLATFORMS=cuda,cpu (or tpu,cpu) runs tests/kernels on the real thing.
PLATFORMS = os.environ.get("JAX_PLATFORMS") or "cpu"
jax.config.update("jax_platforms", PLATFORMS)
jax.config.update("jax_num_cpu_devices", 8)
# Most of the suite's time is compilation of the same small programs.
jax.config.update(
    "jax_compilation_cache_dir", str(Path(tempfile.gettempdir(), f"msa_jax_{getpass.getuser()}"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
if PLATFORMS == "cpu":
    # Half of the rest is optimising programs that run once.
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # For the programs that tests start.
else:
    # Workers share a GPU, of which each would take three quarters for itself.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    # To look for the fastest product takes longer than all products of the tests.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Frees what a module compiled: a process has a limited number of memory maps (65,530 by
    default on Linux), each program takes some dozens, and JAX keeps them all."""
    yield
    jax.clear_caches()


@pytest.fixture
def run_program(monkeypatch, capsys):
    """Runs a program in this process; returns its exit code, what it printed, and its errors."""

    def run(program, *arguments):
        name = program.__name__.rpartition(".")[2]
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            program.run()
        return stop.value.code or 0, *capsys.readouterr()

    return run
