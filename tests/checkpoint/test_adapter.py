"""Adapters over a backbone: what they keep, how exactly, and what is refused."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from msa_jax.checkpoint import adapter as adapters
from msa_jax.checkpoint import changes
from msa_jax.checkpoint.adapter import DESCRIPTION, read_description
from msa_jax.checkpoint.huggingface import save_params, to_huggingface
from msa_jax.checkpoint.tensors import CheckpointError
from msa_jax.config import ConfigError
from msa_jax.data.text_format import Naming, TextFormat, load_text_format, save_text_format
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine import pretrained
from msa_jax.engine.pretrained import find_pretrained, load_pretrained, save_pretrained
from tests.training.tiny import model_config, random_params

CONFIG = model_config()
RANK = 4
KEY = jax.random.key(0)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Changes of one matrix.


@pytest.mark.parametrize("outlier", [1.0, 1e4])
def test_eight_bits_lose_a_fixed_part_of_every_row(outlier):
    change = normal((40, 600)) * np.geomspace(1e-6, 1e3, 40, dtype=np.float32)[:, None]
    change[:, 7] *= outlier
    change[3] = 0
    parts = changes.eight_bit(change)
    restored = changes.restore(parts, change.shape)
    assert not restored[3].any()
    rows = np.delete(np.arange(40), 3)
    lost = np.square(restored - change)[rows].mean(axis=1) ** 0.5
    size = np.square(change)[rows].mean(axis=1) ** 0.5
    # A step is 1/36 of the size; rounding to it loses 1/sqrt(12) of a step, and no more than half.
    np.testing.assert_allclose(
        (lost / size).mean(), 12**-0.5 / 36, rtol=0.05 if outlier == 1 else 1
    )
    assert np.abs((restored - change)[rows] / size[:, None]).max() <= 0.5001 / 36


def test_eight_bits_take_less_than_eight_bits():
    change = normal((500, 576))
    parts = changes.eight_bit(change)
    assert 8 * sum(part.nbytes for part in parts.values()) / change.size < 7.4


def test_a_change_of_low_rank_is_kept_as_such():
    change = normal((30, RANK)) @ normal((RANK, 50), seed=1)
    restored = changes.restore(changes.low_rank(change, RANK), change.shape)
    # What is lost is the rounding of the factors to bfloat16.
    assert np.linalg.norm(restored - change) < 4e-3 * np.linalg.norm(change)
    one_less = changes.restore(changes.low_rank(change, RANK - 1), change.shape)
    lost = np.linalg.svd(change, compute_uv=False)[RANK - 1]
    np.testing.assert_allclose(np.linalg.norm(one_less - change), lost, rtol=0.01)
    small = change[:, :2]
    parts = changes.low_rank(small, RANK)
    assert parts["lora_a"].shape == (2, 2) and parts["lora_b"].shape == (30, 2)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda parts: parts | {"lora_b": parts["lora_b"][1:]},
        lambda parts: parts | {"lora_a": parts["lora_a"].astype(np.float32)},
        lambda parts: {"lora_a": parts["lora_a"]},
        lambda parts: {"codes": np.zeros(9, np.uint8), "steps": np.zeros(6, np.float32)},
        lambda parts: changes.eight_bit(normal((6, 9))),
        lambda parts: changes.eight_bit(normal((8, 6))),
    ],
)
def test_parts_that_are_of_no_such_change_are_refused(spoil):
    with pytest.raises(ValueError):
        changes.restore(spoil(changes.low_rank(normal((6, 8)), RANK)), (6, 8))


# Models.


def trained_params(rank_one=False):
    """A backbone's parameters after some training: all but the embedding changed."""
    params = jax.device_get(random_params(CONFIG))
    flat = traverse_util.flatten_dict(params, sep="/")
    for seed, (path, leaf) in enumerate(flat.items()):
        if path.endswith("_proj/kernel") and rank_one:
            # Inputs are the first axis of a layer, but the first two (heads) of `o_proj`.
            num_inputs = 2 if "o_proj" in path else 1
            inputs, outputs = leaf.shape[1 : 1 + num_inputs], leaf.shape[1 + num_inputs :]
            of_inputs = normal((leaf.shape[0], *inputs, *[1] * len(outputs)), seed)
            flat[path] = leaf + 0.02 * of_inputs * normal((1, *outputs), seed + 99)
        elif "embedder" not in path:
            flat[path] = leaf + 0.02 * normal(leaf.shape, seed)
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    save_params(folder, CONFIG, random_params(CONFIG), backbone_only=True)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    save_text_format(folder, Tokenizer.load("docs-4k"), "plain", 48, Naming(0.02))
    return folder


@pytest.fixture(scope="module", params=[None, 1], ids=["eight bits", "low rank"])
def saved(request, tmp_path_factory, backbone, text):
    """A pretrained model, the parameters that it should have, and what saving it reported."""
    folder = tmp_path_factory.mktemp("pretrained")
    params = trained_params(rank_one=request.param == 1)
    report = save_pretrained(folder, CONFIG, params, str(backbone), text, request.param)
    return folder, params, report


def test_a_model_is_its_backbone_and_its_adapter(saved, backbone, text):
    folder, params, report = saved
    loaded = traverse_util.flatten_dict(load_pretrained(folder, CONFIG, KEY), sep="/")
    expected = traverse_util.flatten_dict(params, sep="/")
    before = traverse_util.flatten_dict(jax.device_get(random_params(CONFIG)), sep="/")
    assert loaded.keys() == expected.keys()
    total = lost = 0.0
    for path, value in loaded.items():
        change = expected[path] - (0 if "/router/" in path else before[path])
        if path.endswith("_proj/kernel"):
            error = np.linalg.norm(value - expected[path]) / np.linalg.norm(change)
            assert 0 < error < 0.01, path
        else:
            np.testing.assert_array_equal(value, expected[path], err_msg=path)
        total, lost = (
            total + np.square(change, dtype=float).sum(),
            lost + np.square(value - expected[path], dtype=float).sum(),
        )
    assert report.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    files = [*folder.glob("adapter*")]
    assert report.num_bytes == sum(file.stat().st_size for file in files)
    described = read_description(folder)
    assert described.model == CONFIG and described.backbone == str(backbone)
    for file in ("tokenizer.json", "text.json"):
        assert (folder / file).read_text() == (text / file).read_text()


def test_what_suits_a_model_is_kept_or_given(tmp_path, backbone, text):
    def save(name, source, **given):
        save_pretrained(
            tmp_path / name, CONFIG, trained_params(), str(backbone), source, rank=1, **given
        )
        return load_text_format(tmp_path / name)

    assert save("first", text).naming == Naming(0.02)
    assert save("second", tmp_path / "first", margin=0.3).naming == Naming(0.02, 0.3)
    assert save("third", tmp_path / "second", router_temperature=0.5) == TextFormat(
        True, "plain", 48, Naming(0.5, 0.3)
    )
    for field in ("router_temperature", "margin"):
        with pytest.raises(ConfigError, match=f"^{field} must be .* not -1"):
            save("wrong", text, **{field: -1})
    assert not (tmp_path / "wrong").exists()


def test_what_did_not_change_takes_no_room(saved):
    folder, _, _ = saved
    kept = load_file(folder / "adapter.safetensors")
    names = {re.sub(r"(?<=weight)\.\w+$", "", name) for name in kept}
    everything = set(to_huggingface(random_params(CONFIG), CONFIG))
    assert everything - names == {"model.embed_tokens.weight"}


def test_an_adapter_loads_in_another_type_onto_devices(saved):
    folder, _, _ = saved
    exact = load_pretrained(folder, CONFIG, KEY)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=place), exact
    )
    loaded = load_pretrained(folder, CONFIG, KEY, abstract)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(x.dtype)), loaded, exact)
    assert all(leaf.sharding == place for leaf in jax.tree.leaves(loaded))


def test_a_large_adapter_lies_in_several_files(saved, tmp_path, backbone, text, monkeypatch):
    folder, params, report = saved
    monkeypatch.setattr(adapters, "_FILE_BYTES", 5_000)
    rank = 1 if report.error < 0.005 else None
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_pretrained(tmp_path, CONFIG, params, str(backbone), text, rank)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"adapter-00001-of-{len(files):05}.safetensors"
    assert all((tmp_path / file).stat().st_size < 20_000 for file in files)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_pretrained(tmp_path, CONFIG, KEY),
        load_pretrained(folder, CONFIG, KEY),
    )


# What is refused.


def rewrite_tensors(folder, change):
    path = folder / "adapter.safetensors"
    save_file(change(load_file(path)), path)


def rewrite_description(folder, **changed):
    path = folder / DESCRIPTION
    values = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({name: x for name, x in values.items() if x is not None}))


def without(fragment):
    return lambda tensors: {name: x for name, x in tensors.items() if fragment not in name}


ROUTER = "model.layers.1.self_attn.router_q_proj.0.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: rewrite_tensors(folder, without(ROUTER)),
            rf"does not hold its model; missing: {ROUTER}\.",
        ),
        (
            lambda folder: rewrite_tensors(folder, lambda x: x | {"other.weight": normal((2, 2))}),
            r"does not hold its model; unknown: other\.weight\.",
        ),
        (
            lambda folder: rewrite_tensors(folder, lambda x: x | {"model.norm.weight": normal(3)}),
            r"does not hold its model; wrong: model\.norm\.weight \(3,\)",
        ),
        (
            lambda folder: rewrite_tensors(folder, without("gate_proj.weight.steps")),
            r"gate_proj\.weight: .* are not the parts of a change .*; restore the file",
        ),
        (
            lambda folder: (folder / "adapter.safetensors").write_bytes(b"short"),
            r"adapter\.safetensors cannot be read",
        ),
        (lambda folder: (folder / "adapter.safetensors").unlink(), "cannot be read"),
        (lambda folder: rewrite_description(folder, format=2), "has the format 2, and this"),
        (lambda folder: rewrite_description(folder, backbone=None), "lacks 'backbone'; restore"),
    ],
)
def test_a_damaged_adapter_is_one_sentence(tmp_path, backbone, text, spoil, message):
    save_pretrained(tmp_path, CONFIG, trained_params(), str(backbone), text)
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path, CONFIG, KEY)


def test_another_backbone_is_refused(saved, tmp_path, backbone):
    folder, _, _ = saved
    shutil.copytree(folder, tmp_path / "adapter")
    params = random_params(CONFIG)
    params["embedder"]["embedding"] = params["embedder"]["embedding"].at[3, 4].add(1e-6)
    save_params(tmp_path / "similar", CONFIG, params, backbone_only=True)
    rewrite_description(tmp_path / "adapter", backbone=str(tmp_path / "similar"))
    with pytest.raises(CheckpointError, match="belongs to the backbone .*similar.* it is another"):
        load_pretrained(tmp_path / "adapter", CONFIG, KEY)

    other = model_config(hidden_dim=64)
    save_params(tmp_path / "other", other, random_params(other), backbone_only=True)
    rewrite_description(tmp_path / "adapter", backbone=str(tmp_path / "other"))
    with pytest.raises(
        CheckpointError, match=r"gate_proj\.weight \(64, 32\) instead of \(48, 32\)"
    ):
        load_pretrained(tmp_path / "adapter", CONFIG, KEY)


def test_a_backbone_may_repeat_its_tied_embedding(saved, tmp_path, backbone):
    folder, _, _ = saved
    shutil.copytree(folder, tmp_path / "adapter")
    shutil.copytree(backbone, tmp_path / "backbone")
    tensors = load_file(backbone / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "backbone" / "model.safetensors")
    rewrite_description(tmp_path / "adapter", backbone=str(tmp_path / "backbone"))
    jax.tree.map(
        np.testing.assert_array_equal,
        load_pretrained(tmp_path / "adapter", CONFIG, KEY),
        load_pretrained(folder, CONFIG, KEY),
    )


def test_a_run_without_its_text_cannot_be_saved(tmp_path, backbone):
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json; name the workdir"):
        save_pretrained(tmp_path / "new", CONFIG, trained_params(), str(backbone), tmp_path)
    assert not (tmp_path / "new").exists()


def test_names_are_looked_up_beside_the_package(saved, tmp_path, monkeypatch):
    folder, _, _ = saved
    monkeypatch.setattr(pretrained, "_HOME", tmp_path)
    shutil.copytree(folder, tmp_path / "mine")
    assert find_pretrained("mine") == tmp_path / "mine"
    assert find_pretrained(str(folder)) == folder
    with pytest.raises(ConfigError, match=r"'other' is neither one of those in .* \(mine\)"):
        find_pretrained("other")
    monkeypatch.setattr(pretrained, "_HOME", tmp_path / "site-packages" / "pretrained")
    with pytest.raises(ConfigError, match="a checkout of msa_jax, which this installation is not"):
        find_pretrained("mine")
