"""From a backbone by training and packing to answers: the whole way of a pretrained model."""

import io
import json
import re
import sys
from functools import partial

import jax
import numpy as np
import pytest

from msa_jax import ask
from msa_jax.checkpoint import huggingface
from msa_jax.data.records import write_documents
from msa_jax.engine import pretrained
from msa_jax.engine.encode import Encoder
from msa_jax.engine.loading import fingerprint, load_model
from msa_jax.engine.pretrained import save_pretrained
from msa_jax.memory.store import Store
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.training.trainer import train
from tests.doc_commands import ROOT
from tests.engine.banks import numbered, save_model
from tests.test_banks_page import run_code, run_commands
from tests.training.tiny import (
    model_config,
    random_batch,
    random_params,
    stage_config,
    train_config,
)

STAGES = (stage_config(name="lora", steps=2, trainable="lora", lora_rank=2, learning_rate=1e-2),)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A Hugging Face folder; its routers, which a backbone has not, are left behind."""
    folder = save_model(tmp_path_factory.mktemp("backbone"))
    config = model_config(vocab_size=4096)
    huggingface.save_params(folder, config, random_params(config), backbone_only=True)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, backbone):
    """A run of two steps from the backbone, and its parameters."""
    folder = tmp_path_factory.mktemp("trained")
    run = train_config(folder, stages=STAGES, init_from=str(backbone))
    return run, jax.device_get(train(run).params)


@pytest.fixture(scope="module", params=[2, None], ids=["low rank", "eight bits"])
def saved(request, tmp_path_factory, trained, backbone):
    run, params = trained
    home = tmp_path_factory.mktemp("pretrained")
    save_pretrained(home / "mine", run.model, params, str(backbone), run.workdir, request.param)
    return home


def outputs(model, params):
    """Logits of the active tokens, and scores of the documents."""

    @jax.jit
    def compute(params, batch):
        output = model.apply({"params": params}, batch.memory, batch.active, 8)
        logits = model.apply({"params": params}, output.hidden, method="logits")
        return logits, output.doc_scores

    return jax.device_get(compute(params, random_batch()))


def test_a_packed_run_computes_what_it_computed(saved, trained, backbone, monkeypatch):
    monkeypatch.setattr(pretrained, "_HOME", saved)
    run, params = trained
    loaded = load_model("pretrained:mine")
    assert loaded.config == run.model and loaded.source == str(saved / "mine")
    assert (loaded.template_name, loaded.max_document_tokens) == ("plain", 48)
    before = outputs(loaded.model, load_model(backbone, dtype="float32").params)
    after, packed = outputs(loaded.model, params), outputs(loaded.model, loaded.params)
    logits, scores = zip(before, after, packed, strict=True)
    assert largest(logits[2] - logits[1]) < 0.02 * largest(logits[1] - logits[0])
    # Routers are kept whole, so that what they lose is a part of all that they know.
    assert largest(scores[2] - scores[1]) < 0.02 < 0.5 * largest(scores[1] - scores[0])


def largest(difference):
    """Documents that are not there have no score."""
    return np.abs(difference)[np.isfinite(difference)].max()


def test_meshes_and_types_load_the_same(saved):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    marks = fingerprint(load_model(saved / "mine", dtype="bfloat16"))
    assert fingerprint(load_model(saved / "mine", dtype="bfloat16", mesh=mesh)) == marks


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs `msa_jax.ask`; returns its exit code, what it printed, and its errors."""
    monkeypatch.setenv("MSA_JAX_CACHE", str(tmp_path / "cache"))

    def run(*questions, **flags):
        options = [f"--{name}={value}" for name, value in flags.items()]
        monkeypatch.setattr(sys, "argv", ["ask", *options, *questions])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with pytest.raises(SystemExit) as stop:
            ask.run()
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("harbor", "tower", "mill"):
        (folder / f"{name}.md").write_text(f"Ada repaired the {name}.")
    return folder


def test_documents_are_asked_in_one_command(run, saved, folder, monkeypatch):
    lengths = []
    encode = Encoder.encode

    def counting(self, parts, *arguments):
        lengths.append(len(parts))
        return encode(self, parts, *arguments)

    monkeypatch.setattr(Encoder, "encode", counting)

    def asked():
        lengths.clear()
        code, out, err = run(
            "Who repaired it?",
            pretrained=saved / "mine",
            documents=folder,
            max_rounds=0,
            max_tokens=2,
        )
        assert code == 0, err
        return sum(lengths), sorted(re.findall(r"^ +-?[\d.]+  \[\d+\] (\w+)$", out, re.MULTILINE))

    assert asked() == (3, ["harbor", "mill", "tower"])
    assert asked() == (0, ["harbor", "mill", "tower"])
    (folder / "tower.md").write_text("Grace repaired the tower.")
    (folder / "mill.md").unlink()
    (folder / "bridge.md").write_text("Nobody repaired the bridge.")
    assert asked() == (2, ["bridge", "harbor", "tower"])
    (folder / "tower.md").write_text(" ")
    assert asked() == (0, ["bridge", "harbor"])


def test_a_model_without_an_adapter_can_be_asked_too(run, backbone, folder):
    documents = folder / "docs.jsonl"
    write_documents(documents, numbered(2))
    code, out, err = run("2?", checkpoint=backbone, documents=documents, retrieve=True, json=True)
    assert code == 0, err
    assert {found["key"] for found in json.loads(out)["documents"]} == {"d0", "d1"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"documents": "texts"}, "--documents needs a model; name one by --pretrained or --ch"),
        ({"documents": "texts", "bank": "b"}, "--bank and --documents exclude each other; give"),
        ({"pretrained": "a", "checkpoint": "b"}, "--checkpoint and --pretrained exclude each"),
        ({"pretrained": "nowhere", "documents": "texts"}, "pretrained model 'nowhere' is neither"),
        ({"pretrained": "mine", "documents": "nowhere"}, "there is no such file or folder"),
        ({"pretrained": "mine", "documents": "blank"}, "blank has no text to ask about; name"),
    ],
    ids=str,
)
def test_what_the_user_can_mend_is_one_line(run, saved, folder, monkeypatch, flags, message):
    monkeypatch.setattr(pretrained, "_HOME", saved)
    monkeypatch.chdir(folder.parent)
    (folder.parent / "blank").mkdir()
    (folder.parent / "blank" / "empty.txt").write_text("")
    code, out, err = run("Who?", **flags)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_the_page(saved, trained, backbone, folder, monkeypatch, capsys):
    """Runs the code and the commands of docs/adapters.md as they are."""
    run, params = trained
    place = folder.parent
    (place / "runs").mkdir()
    (place / "runs" / "mine").symlink_to(run.workdir)
    monkeypatch.chdir(place)
    monkeypatch.setenv("MSA_JAX_CACHE", str(place / "cache"))
    monkeypatch.setattr(pretrained, "_HOME", place / "pretrained")
    monkeypatch.setattr(pretrained, "fetch", lambda source: backbone)
    page = ROOT / "docs" / "adapters.md"
    names = run_code(page.read_text(encoding="utf-8"))
    assert names["saved"].error < 0.01 and "of the change is lost" in capsys.readouterr().out
    mean = load_model("pretrained/mean", dtype="float32").params
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-2), mean, params)
    assert len(run_commands(page, monkeypatch)) == 3
    with Store.open("bank") as store:
        assert len(list(store.keys())) == 3
    merged = load_model("merged", dtype="float32").params
    jax.tree.map(np.testing.assert_array_equal, merged, load_model("pretrained:mine").params)
