"""`python -m msa_jax.convert`: every kind of model becomes a folder with the same logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from msa_jax import convert as program
from msa_jax.checkpoint import tensors as tensors_module
from msa_jax.checkpoint.checkpointer import (
    CHECKPOINTS,
    CheckpointConfig,
    Checkpointer,
    Position,
)
from msa_jax.checkpoint.huggingface import load_params, read_model_config, save_params
from msa_jax.data.text_format import Naming, save_text_format
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.loading import load_model
from msa_jax.engine.pretrained import save_pretrained
from tests.checkpoint.logits import our_logits, random_tokens, their_logits
from tests.checkpoint.tiny_gguf import write_gguf
from tests.engine.banks import save_model
from tests.training.tiny import model_config, random_params

TOKENS = random_tokens(60)


@dataclasses.dataclass
class State:
    """As little of a training state as there can be."""

    params: Any
    step: Any


@pytest.fixture
def run(run_program):
    """Runs the program; returns its exit code, what it printed, and its errors."""
    return lambda source, target, *more: run_program(
        program, f"--from={source}", f"--to={target}", *more
    )


@pytest.fixture(scope="module")
def msa(tmp_path_factory):
    """A folder of a model with routers and a tokenizer."""
    return save_model(tmp_path_factory.mktemp("msa"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a run leaves in its workdir."""
    workdir = tmp_path_factory.mktemp("run")
    config = model_config(vocab_size=4096)
    with Checkpointer(workdir / CHECKPOINTS, CheckpointConfig(), config) as checkpointer:
        state = State(random_params(config), jnp.zeros(()))
        checkpointer.save(Position(step=1, stage=0, stage_step=1, data={}), state, recall=0.5)
    save_text_format(workdir, Tokenizer.load("docs-4k"), "plain", 48)
    return workdir


def logits_of(params, config):
    config = dataclasses.replace(config, dtype="float32")
    return np.asarray(our_logits(config, params, TOKENS))


def logits_in(folder, **overrides):
    config = read_model_config(folder, dtype="float32", **overrides)
    return logits_of(load_params(folder, config, jax.random.key(0)), config)


def logits_by_transformers(folder):
    pytest.importorskip("torch", reason="parity with transformers needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return their_logits(model, TOKENS)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_run_with_its_routers_and_its_words(run, trained, tmp_path):
    code, out, err = run(trained, tmp_path / "out")
    assert code == 0, err
    assert "in float32 and 2 layers with a router" in out
    expected, loaded = load_model(trained), load_model(tmp_path / "out", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert loaded.template_name == expected.template_name == "plain"
    assert loaded.max_document_tokens == expected.max_document_tokens
    assert loaded.tokenizer.specification == expected.tokenizer.specification


def test_a_run_as_transformers_loads_it(run, trained, tmp_path):
    code, out, err = run(trained, f"hf:{tmp_path / 'out'}")
    assert code == 0, err
    assert "0 layers with a router" in out
    expected = load_model(trained)
    assert_close(
        logits_by_transformers(tmp_path / "out"), logits_of(expected.params, expected.config)
    )


def test_an_adapter_is_merged_into_its_backbone(run, trained, tmp_path):
    run(trained, f"hf:{tmp_path / 'backbone'}")
    config = load_model(trained).config
    params = jax.tree.map(lambda leaf: leaf + 0.1, random_params(config))
    backbone, suiting = str(tmp_path / "backbone"), {"router_temperature": 0.02, "margin": 0.3}
    save_pretrained(tmp_path / "mine", config, params, backbone, trained, **suiting)
    code, out, err = run(tmp_path / "mine", tmp_path / "out")
    assert code == 0, err
    assert "2 layers with a router" in out
    expected, loaded = load_model(tmp_path / "mine"), load_model(tmp_path / "out", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert loaded.naming == Naming(**suiting)
    assert run(tmp_path / "out", tmp_path / "again")[0] == 0
    assert load_model(tmp_path / "again").naming == Naming(**suiting)


def test_a_folder_in_half_precision_and_shards(run, msa, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors_module, "SHARD_BYTES", 20_000)
    code, out, err = run(msa, f"hf:{tmp_path / 'out'}", "--dtype=bfloat16")
    assert code == 0, err
    assert "in bfloat16" in out and len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    memory = read_model_config(msa).memory
    expected = logits_in(tmp_path / "out", memory=memory)
    assert_close(logits_by_transformers(tmp_path / "out"), expected)
    # Rounded, but the same model.
    assert 0 < np.abs(expected - logits_in(msa)).max() < 0.05 * np.abs(expected).max()
    assert Tokenizer.load(tmp_path / "out").vocab_size == 4096


def test_types_stay_as_they_are(run, msa, tmp_path):
    run(msa, tmp_path / "half", "--dtype=bfloat16")
    code, out, _ = run(tmp_path / "half", tmp_path / "again")
    assert code == 0 and "in bfloat16 and 2 layers with a router" in out
    files = [tmp_path / name / "model.safetensors" for name in ("half", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_gguf_file(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MSA_JAX_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    code, out, err = run(f"gguf:{tmp_path / 'tiny.gguf'}", tmp_path / "out")
    assert code == 0, err
    assert "in float32 and 0 layers with a router" in out
    assert_close(logits_by_transformers(tmp_path / "out"), logits_in(tmp_path / "out"))
    assert len(Tokenizer.load(tmp_path / "out").encode_template("<|object_ref_end|>")) == 1


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("nowhere", "out", "'nowhere' is neither the workdir"),
        ("pypi:other==1", "out", "pypi:other==1 is not a package that is known"),
        ("", "out", "--from is missing"),
        ("{msa}", "hf:", "--to=hf: names no folder"),
        ("{msa}", "{msa}", "is another model's place"),
        ("{msa}", "hf:{trained}", "is another model's place"),
        ("{broken}", "out", "does not hold this model; missing: model.norm.weight"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    run, msa, trained, tmp_path, monkeypatch, source, target, message
):
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "broken"
    config = read_model_config(msa)
    params = load_params(msa, config, jax.random.key(0))
    save_params(broken, config, params)
    _drop_norm(broken / "model.safetensors")
    places = {"msa": msa, "trained": trained, "broken": broken}
    before = (msa / "config.json").read_bytes()
    code, out, err = run(source.format(**places), target.format(**places))
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()
    assert (msa / "config.json").read_bytes() == before


def _drop_norm(path):
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
