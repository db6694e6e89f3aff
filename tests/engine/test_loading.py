"""Loading a model from a training run or a Hugging Face folder, and telling models apart."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from msa_jax.checkpoint import huggingface
from msa_jax.checkpoint.checkpointer import CheckpointConfig
from msa_jax.config import ConfigError
from msa_jax.data.text_format import Naming, TextFormat, load_text_format, save_text_format
from msa_jax.data.tokenizer import PACKAGED, Tokenizer
from msa_jax.engine import loading
from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.engine.loading import fingerprint, load_model, model_fingerprint
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.training.trainer import train
from tests.training.tiny import model_config, random_params, train_config

TOKENIZER = "docs-4k"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps with one checkpoint, and its final parameters."""
    checkpoint = CheckpointConfig(every=100)
    run = train_config(tmp_path_factory.mktemp("loading"), checkpoint=checkpoint)
    return run, jax.device_get(train(run).params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a model with random parameters, and its tokenizer."""
    folder = tmp_path_factory.mktemp("huggingface")
    config = model_config(vocab_size=4096)
    huggingface.save_params(folder, config, random_params(config))
    shutil.copy(PACKAGED / f"{TOKENIZER}.json", folder / "tokenizer.json")
    return folder


def copy_of(folder, tmp_path, **changes):
    """A copy of a Hugging Face folder with other values in config.json."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


def test_a_run_says_by_itself_how_its_text_is_written(trained):
    run, params = trained
    loaded = load_model(run.workdir)
    assert (loaded.template_name, loaded.max_document_tokens) == ("plain", 48)
    assert loaded.tokenizer.encode("value 3").tolist() == (
        Tokenizer.load(TOKENIZER).encode("value 3").tolist()
    )
    assert loaded.config == run.model and loaded.source == run.workdir
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    with pytest.raises(ConfigError, match="template must be one of plain, msa_4b, not 'other'"):
        load_model(run.workdir, template="other")


def test_a_run_loads_in_another_type(trained):
    run, _ = trained
    exact, rounded = load_model(run.workdir), load_model(run.workdir, dtype="bfloat16")
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y.astype(x.dtype)),
        rounded.params,
        exact.params,
    )
    types = {x.dtype.name for x in jax.tree.leaves(rounded.params)}
    assert types == {"bfloat16", "float32"}


def test_a_huggingface_folder_brings_its_tokenizer_and_template(folder, tmp_path):
    loaded = load_model(folder, dtype="float32")
    assert (loaded.template_name, loaded.max_document_tokens) == ("msa_4b", None)
    expected = random_params(loaded.config)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    assert load_model(folder, template="plain").template_name == "plain"

    config = model_config(vocab_size=4096)
    huggingface.save_params(tmp_path, config, random_params(config), backbone_only=True)
    assert load_model(tmp_path, TOKENIZER).template_name == "plain"


def test_a_model_may_come_with_what_suits_it(folder, tmp_path):
    assert load_model(folder).naming == Naming()
    copy_of(folder, tmp_path)
    save_text_format(tmp_path, Tokenizer.load(TOKENIZER), "plain", None, Naming(0.02, 0.05))
    loaded = load_model(tmp_path)
    assert loaded.naming == Naming(0.02, 0.05)
    assert fingerprint(loaded) == fingerprint(load_model(folder, template="plain"))
    asked = InterleaveConfig(max_rounds=1)
    suited = InterleaveConfig(max_rounds=1, router_temperature=0.02, margin=0.05)
    assert loaded.suit(asked) == suited
    for own in ({"router_temperature": 0.5}, {"margin": 0.0}, {"margin": 0.3}):
        assert loaded.suit(dataclasses.replace(asked, **own)) == dataclasses.replace(suited, **own)
    complete = dataclasses.replace(asked, router_temperature=0.5, margin=0.3)
    for kept in (complete, InterleaveConfig(constrain="existing")):
        assert loaded.suit(kept) == kept
    assert load_model(folder).suit(asked) == asked


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", Naming()),
        (', "router_temperature": 0.003', Naming(0.003)),
        (', "margin": 0', Naming(None, 0)),
        (', "router_temperature": null, "margin": 0.05', Naming(None, 0.05)),
        (', "router_temperature": 0.003, "margin": 0.05', Naming(0.003, 0.05)),
    ],
)
def test_what_suits_a_model_can_be_written_by_hand(tmp_path, settings, expected):
    text = f'{{"template": "plain", "max_document_tokens": 256{settings}}}'
    (tmp_path / "text.json").write_text(text)
    assert load_text_format(tmp_path) == TextFormat(False, "plain", 256, expected)


def test_a_huggingface_folder_loads_onto_a_mesh(folder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spread, whole = load_model(folder, mesh=mesh), load_model(folder)
    assert spread.params["embedder"]["embedding"].sharding.spec == P("tensor", "fsdp")
    jax.tree.map(np.testing.assert_array_equal, spread.params, whole.params)
    assert fingerprint(spread) == fingerprint(whole)


def test_parameters_for_inference_compute_the_same(folder):
    """Layers cast matrices to the compute type themselves, and norm scales never."""
    loaded = load_model(folder)
    params = random_params(loaded.config)
    hidden = jax.random.normal(jax.random.key(1), (3, loaded.config.embed_dim), jnp.bfloat16)
    logits = [
        loaded.model.apply({"params": x}, hidden, method="logits") for x in (params, loaded.params)
    ]
    np.testing.assert_array_equal(*logits)
    assert loaded.params["final_norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", "'nowhere' is neither the workdir of a training run .* nor a Hugging Face"),
        ("no tokenizer", "has no tokenizer.json; name the model's tokenizer"),
        ("small", r"tokenizer .*docs-4k\.json has token ids up to 4095, but .* vocab_size is 64"),
        ("text.json", "text.json does not say which template and max_document_tokens"),
        ("template", "text.json names the template 'x', but there are only plain, msa_4b"),
        *(
            (f'"router_temperature": {bad}', "text.json: router_temperature must be a positive num")
            for bad in ("0", "-0.1", "true", '"low"', "NaN", "Infinity")
        ),
        *(
            (f'"margin": {bad}', "text.json: margin must be a number from 0 on or None, not")
            for bad in ("-0.1", "false", '"low"', "NaN", "Infinity")
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(folder, tmp_path, where, message):
    tokenizer = None
    if where == "small":
        config, tokenizer = model_config(vocab_size=64), TOKENIZER
        huggingface.save_params(tmp_path, config, random_params(config))
    elif where != "nowhere":
        copy_of(folder, tmp_path)
    if where == "no tokenizer":
        (tmp_path / "tokenizer.json").unlink()
    elif where == "text.json":
        (tmp_path / "text.json").write_text("{}")
    elif where == "template":
        (tmp_path / "text.json").write_text('{"template": "x", "max_document_tokens": 8}')
    elif where.startswith('"'):
        settings = f'{{"template": "plain", "max_document_tokens": 8, {where}}}'
        (tmp_path / "text.json").write_text(settings)
    with pytest.raises(ConfigError, match=message):
        load_model("nowhere" if where == "nowhere" else tmp_path, tokenizer)


def test_the_fingerprint_says_what_differs(folder, tmp_path):
    first = fingerprint(load_model(folder))
    assert first.keys() == {"model", "tokenizer", "template"}
    assert fingerprint(load_model(folder)) == first

    def differing(loaded):
        return {name for name, value in fingerprint(loaded).items() if value != first[name]}

    assert differing(load_model(folder, template="plain")) == {"template"}
    assert differing(load_model(folder, dtype="float32")) == {"model"}
    assert differing(load_model(copy_of(folder, tmp_path / "eps", rms_norm_eps=0.1))) == {"model"}
    other = copy_of(folder, tmp_path / "tokenizer")
    values = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(values, indent=1))
    assert differing(load_model(other)) == set()
    values["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(values))
    assert differing(load_model(other)) == {"tokenizer"}


def test_the_fingerprint_is_of_documents_alone():
    """Settings of queries, and of how layers are compiled, leave a bank as it is."""
    config = model_config()
    params = random_params(config)
    first = model_fingerprint(params, config)
    memory = dataclasses.replace(config.memory, top_k_docs=7)
    assert model_fingerprint(params, dataclasses.replace(config, memory=memory)) == first
    chunks = dataclasses.replace(config.memory, pooling_kernel_size=8)
    assert model_fingerprint(params, dataclasses.replace(config, memory=chunks)) != first
    assert model_fingerprint(params, dataclasses.replace(config, rope_theta=9.0)) != first

    layers = dict(params)
    run = layers.pop("routed_1")
    for layer in (1, 2):
        layers[f"routed_{layer}"] = jax.tree.map(lambda x, n=layer: x[n - 1 : n], run)
    unstacked = dataclasses.replace(config, scan_layers=False)
    assert model_fingerprint(layers, unstacked) == first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_bit_and_any_swap_changes_the_sums(dtype):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 7)).astype(dtype)
    sums = {tuple(loading._array_sums(jnp.asarray(values)).tolist())}
    bits = values.view(f"uint{8 * values.itemsize}")
    for bit in range(8 * values.itemsize):
        changed = bits.copy()
        changed[3, 4] ^= 1 << bit
        sums.add(tuple(loading._array_sums(jnp.asarray(changed.view(dtype))).tolist()))
    swapped = values.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    sums.add(tuple(loading._array_sums(jnp.asarray(swapped)).tolist()))
    assert len(sums) == 2 + 8 * values.itemsize
    assert all(len({part for part in parts}) == len(sums) for parts in zip(*sums, strict=True))


def test_a_tokenizer_whose_ids_have_gaps_is_measured_by_the_highest(folder, tmp_path):
    copy_of(folder, tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 5000
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"tokenizer\.json has token ids up to 5000, .* is 4096"):
        load_model(tmp_path)
