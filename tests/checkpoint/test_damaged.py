"""Weights that are NaN, files that are pointers of Git LFS: one sentence that names them."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from msa_jax.checkpoint.adapter import DESCRIPTION, read_description
from msa_jax.checkpoint.backbones import fetch
from msa_jax.checkpoint.checkpointer import Position
from msa_jax.checkpoint.checkpointer import load_params as load_checkpoint
from msa_jax.checkpoint.gguf import GgufFile
from msa_jax.checkpoint.hf_config import read_model_config, to_hf_config
from msa_jax.checkpoint.huggingface import CheckpointError, load_params, save_params, save_tensors
from msa_jax.checkpoint.look import load_look
from msa_jax.checkpoint.tensors import SafetensorsFolder
from msa_jax.config import ConfigError
from msa_jax.data.text_format import load_text_format
from tests.checkpoint.test_checkpointer import abstract, open_at, save, state_of
from tests.checkpoint.tiny import random_params, tiny_config, write_config
from tests.checkpoint.tiny_gguf import write_gguf

KEY = jax.random.key(0)
NAME = "model.layers.1.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"


@pytest.fixture
def folder(tmp_path):
    config = tiny_config()
    save_params(tmp_path / "model", config, random_params(config))
    return tmp_path / "model"


def spoil(folder, value, dtype=np.float32):
    """Puts a value into one tensor of a folder."""
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME] = tensors[NAME].astype(dtype)
    tensors[NAME][3, 2] = value
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_folder_with_such_weights_is_refused_and_not_converted(folder, tmp_path, value, dtype):
    spoil(folder, value, dtype)
    config = read_model_config(folder)
    message = rf"model: {NAME} holds NaN or infinity as float32; restore"
    with pytest.raises(CheckpointError, match=message):
        load_params(folder, config, KEY)
    with pytest.raises(CheckpointError, match=message):
        save_tensors(tmp_path / "converted", config, SafetensorsFolder(folder))
    assert not (tmp_path / "converted" / "config.json").exists()


def test_what_becomes_infinite_in_the_type_asked_for_is_refused(folder, tmp_path):
    largest = float(np.finfo(np.float32).max)
    spoil(folder, largest)
    config = read_model_config(folder)
    load_params(folder, config, KEY)
    with pytest.raises(CheckpointError, match=f"{NAME} holds NaN or infinity as bfloat16"):
        save_tensors(tmp_path / "converted", config, SafetensorsFolder(folder), dtype="bfloat16")
    spoil(folder, 1e300, np.float64)
    with pytest.raises(CheckpointError, match=f"{NAME} holds NaN or infinity as float32"):
        load_params(folder, config, KEY)


def test_a_checkpoint_with_such_weights_is_refused(tmp_path):
    with open_at(tmp_path) as checkpointer:
        save(checkpointer, 2)
        checkpointer.save(Position(6, 0, 6, {}), state_of(math.nan), 0.0)
    params = abstract(state_of(0)).params
    load_checkpoint(tmp_path, 2, params)
    with pytest.raises(CheckpointError, match="6: kernel holds NaN or infinity; delete this"):
        load_checkpoint(tmp_path, 6, params)


def test_each_file_that_is_a_pointer_is_called_that(folder, tmp_path):
    config, said = read_model_config(folder), "it is a Git LFS pointer.*run `git lfs pull`"
    (folder / "look.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"look\.safetensors .*{said}"):
        load_look(folder, config)
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors .*{said}"):
        load_params(folder, config, KEY)
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json")
    with pytest.raises(CheckpointError, match=rf"index\.json: {said}"):
        load_params(folder, config, KEY)
    for name, read in (("config.json", read_model_config), (DESCRIPTION, read_description)):
        (folder / name).write_text(POINTER)
        with pytest.raises(ConfigError, match=rf"{name} .*{said}"):
            read(folder)
    (tmp_path / "model.gguf").write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"model\.gguf .*{said}"):
        fetch(f"gguf:{tmp_path / 'model.gguf'}")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_file_of_weights_is_one_sentence(tmp_path_factory, data):
    home = tmp_path_factory.mktemp("cut")
    config = tiny_config()
    save_params(home, config, random_params(config))
    content = (home / "model.safetensors").read_bytes()
    stop = data.draw(st.integers(0, len(content) - 1))
    (home / "model.safetensors").write_bytes(content[:stop])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_params(home, config, KEY)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path, path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_or_altered_gguf_file_is_read_or_one_sentence(gguf_bytes, data):
    path, content = gguf_bytes
    # Names, types and sizes come first; a cut anywhere shows.
    at = data.draw(st.integers(0, 9000))
    if data.draw(st.booleans()):
        altered = content[:at]
    else:
        altered = content[:at] + bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))])
        altered += content[at + 1 :]
    path = path.with_name("altered.gguf")
    path.write_bytes(altered)
    try:
        opened = GgufFile(path)
        opened.model_config()
        opened.tokenizer()
    except (CheckpointError, ConfigError) as error:
        assert "altered.gguf" in str(error)
    else:
        assert len(altered) == len(content)


CONFIG = to_hf_config(tiny_config())
hostile = st.sampled_from(
    [None, True, -1, 0, 1.5, math.nan, math.inf, "3", "", [], {}, [None], {"a": 1}, 10**400]
)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([*CONFIG, *CONFIG["msa_config"]]), value=hostile)
def test_a_hostile_config_is_read_or_one_sentence(tmp_path_factory, name, value):
    home = tmp_path_factory.getbasetemp()
    changed = json.loads(json.dumps(CONFIG))
    (changed if name in changed else changed["msa_config"])[name] = value
    write_config(home, changed)
    try:
        read_model_config(home)
    except ConfigError as error:
        found = str(error).replace("router_layers", "router_layer_idx")
        assert str(home / "config.json") in found and name in found and "\n" not in found


@pytest.mark.parametrize(
    ("field", "value"), [("max_document_tokens", "8"), ("max_document_tokens", 0), ("template", [])]
)
def test_a_hostile_text_format_is_one_sentence(tmp_path, field, value):
    settings = {"template": "plain", "max_document_tokens": 8, field: value}
    (tmp_path / "text.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=rf"text\.json: {field} must be"):
        load_text_format(tmp_path)


@pytest.mark.parametrize("field", ["backbone", "fingerprint", "files", "model"])
@pytest.mark.parametrize("value", [3, [1], {}])
def test_a_hostile_description_of_an_adapter_is_one_sentence(tmp_path, field, value):
    description = {"format": 1, "backbone": "b", "fingerprint": "f", "files": [], "model": {}}
    (tmp_path / DESCRIPTION).write_text(json.dumps(description | {field: value}))
    with pytest.raises(ConfigError, match=rf"adapter\.json: (model|{field})"):
        read_description(tmp_path)
