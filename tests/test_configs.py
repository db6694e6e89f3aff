"""Every file in configs/ loads; the large models have their sizes and take a step when shrunk."""

import importlib.util
import math
from functools import partial
from pathlib import Path

import jax
import pytest

from msa_jax.data.records import Document, Question, write_documents, write_questions
from msa_jax.modules.init import init_params
from msa_jax.training.config import train_config
from msa_jax.training.curriculum import StageConfig
from msa_jax.training.metrics import read_metrics
from msa_jax.training.trainer import train

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(name, *arguments):
    """Runs the `get_config` of a file whose name need not be that of a module."""
    path = next(path for path in CONFIGS if path.stem == name)
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def training_values(config):
    """The sections of a config that describe training, and not what the program adds to it."""
    return {name: config[name] for name in config if name not in ("demo", "evaluation")}


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_every_file_is_a_run(name):
    run = train_config(training_values(load(name)))
    assert run.stages
    for stage in run.stages:
        if isinstance(stage, StageConfig):
            assert stage.memory_tokens % run.data.row_tokens == 0
    assert run.data.row_tokens % run.model.memory.pooling_kernel_size == 0


@pytest.mark.parametrize(
    ("name", "backbone", "routers"),
    [
        # Published sizes of the backbones; a router projects to N query and K key heads.
        ("100m", 134_515_008, 15 * 576 * (9 + 3) * 64),
        ("look", 134_515_008, 15 * 576 * (9 + 3) * 64),
        ("qwen3_4b", 4_022_468_096, 18 * 2560 * (32 + 8) * 128),
    ],
)
def test_geometry_is_that_of_the_backbone(name, backbone, routers):
    model = train_config(training_values(load(name))).model
    params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == backbone + routers
    assert model.router_layers == tuple(range(model.num_layers // 2, model.num_layers))


def shrink(config, directory):
    """Overrides sizes, never the recipe, until the run is a matter of seconds."""
    documents, questions = write_corpus(directory)
    shrink_model(config, directory)
    config.data.update(documents=documents, questions=questions)
    config.mesh.fsdp = 1
    # The last stage alone: it is the one with all three losses.
    config.curriculum = config.curriculum[-1:]
    config.stages[config.curriculum[0]].update(
        steps=1,
        warmup_steps=0,
        memory_tokens=256,
        active_tokens=128,
        groups=2,
        queries_per_group=2,
        cluster=1,
    )


def write_corpus(directory):
    """A documents and a questions file."""
    documents, questions = directory / "documents.jsonl", directory / "questions.jsonl"
    write_documents(documents, [Document(f"d{i}", f"value {i} is x{i}") for i in range(40)])
    write_questions(
        questions, [Question(f"q{i}", f"value {i}?", (f"x{i}",), (f"d{i}",)) for i in range(40)]
    )
    return str(documents), str(questions)


def shrink_model(config, directory):
    """Overrides sizes of the model, and of what its tokenizer makes of a document."""
    config.workdir = str(directory / "run")
    config.init_from = None  # A backbone has its own sizes.
    config.model.update(vocab_size=4096, num_layers=2, embed_dim=16, hidden_dim=16, head_dim=4)
    config.model.memory.pooling_kernel_size = 8
    config.model.dtype = "float32"  # On a CPU, bfloat16 takes twice as long to compile.
    config.data.update(tokenizer="docs-4k", row_tokens=128, max_document_tokens=64)


@pytest.mark.parametrize("name", ["100m", "qwen3_4b"])
def test_a_step_at_reduced_size(name, tmp_path):
    config = load(name)
    shrink(config, tmp_path)
    assert train(train_config(training_values(config))).step == 1
    (line,) = read_metrics(config.workdir)
    assert {"lm_loss", "aux_loss", "answer_loss"} < line.keys()
    assert math.isfinite(line["loss"]) and line["grad_norm"] > 0


def test_a_step_of_the_look_at_reduced_size(tmp_path):
    config = load("look")
    shrink_model(config, tmp_path)
    documents, questions = write_corpus(tmp_path)
    for source in config.data.sources.values():
        source.update(documents=documents, questions=questions)
    sizes = {"queries_per_group": 2, "candidates": 4, "row_tokens": (32, 64), "held_out_lists": 4}
    config.stages.look.update(steps=1, warmup_steps=0, **sizes)
    assert train(train_config(training_values(config))).step == 1
    step, held_out = read_metrics(config.workdir)
    assert step["loss"] == pytest.approx(math.log(5)) and step["grad_norm"] > 0
    assert math.isfinite(held_out["held_out/loss"])
    assert (tmp_path / "run" / "look.safetensors").is_file()


def test_the_sets_of_a_look_are_trained_on_or_held_out():
    run = train_config(training_values(load("look", "folder")))
    (stage,) = run.stages
    sources = run.data.all_sources()
    asked = {name for name, source in sources.items() if source.questions}
    assert {*stage.mixture} | {*stage.held_out} == asked
    assert sum(stage.mixture.values()) == pytest.approx(1, abs=0.05)
    for name in asked:
        assert sources[name].split == ("dev" if name in stage.held_out else "train")
