"""Every notebook runs from top to bottom, and is stored as a run from top to bottom left it.

    MSA_JAX_STORE_NOTEBOOKS=1 pytest -m slow tests/test_notebooks.py -k msa_in_ten_minutes

stores what the run shows, instead of comparing with what is stored.
"""

import json
import os
import re
import sys
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from msa_jax.checkpoint.adapter import read_description
from msa_jax.checkpoint.backbones import fetch
from msa_jax.checkpoint.huggingface import CheckpointError
from msa_jax.config import ConfigError
from msa_jax.engine.pretrained import find_pretrained

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Longest time that a cell may take, of any notebook, on a machine that does other things as well.
CELL_SECONDS = 900
KERNEL = "running_interpreter"
STORES = "MSA_JAX_STORE_NOTEBOOKS" in os.environ


def code_cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel of this interpreter that finds this checkout and none of the user's settings."""
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": KERNEL,
        "language": "python",
        "env": {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        },
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    # Notebooks train: what optimising their programs costs comes back.
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
    return KERNEL


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook_is_one_whole_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, f"this cell shows nothing:\n{cell.source}"
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", f"warnings or progress:\n{output.text}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_first_cell_installs_the_package_where_it_is_missing(path):
    first = code_cells(path)[0].source
    assert "%pip install" in first and 'REPOSITORY = ""' in first
    assert "find_spec" in first or "ImportError" in first


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_do_not_tell_where_they_were_made(path):
    outputs = json.dumps([cell.outputs for cell in code_cells(path)])
    assert not re.findall(
        r"(?:/home|/root|/tmp|/Users|/opt|/usr|/work|site-packages)/[^\"]{0,60}", outputs
    )


def needs(path):
    """Skips a notebook whose pretrained model, or the backbone of that, cannot be had."""
    for name in re.findall(r"pretrained:([\w.-]+)", path.read_text(encoding="utf-8")):
        try:
            fetch(read_description(find_pretrained(name)).backbone)
        except ConfigError as error:
            pytest.skip(str(error))
        except CheckpointError as error:
            if "cannot be downloaded" not in str(error):
                raise
            pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_is_stored(path, kernel, tmp_path):
    needs(path)
    folder = tmp_path / "run"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=kernel,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    if STORES:
        store(notebook, path)
    executed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for ran, stored in zip(executed, code_cells(path), strict=True):
        assert plots(ran) == plots(stored), ran.source
        assert bool(ran.outputs) == bool(stored.outputs), ran.source


def store(notebook, path):
    """Writes a notebook that ran, without its progress bars and the kernel that it ran on."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


def plots(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)
