"""The commands of README.md, and of the pages that go on from there, run as a reader runs them.

Each is taken from its page and started in a folder with the reader's files. Overrides that come
after it, which a program heeds instead of its own, make the work small.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import jax
import pytest

from msa_jax.checkpoint.adapter import read_description
from msa_jax.checkpoint.backbones import fetch
from msa_jax.checkpoint.huggingface import CheckpointError
from msa_jax.config import ConfigError
from msa_jax.data.records import Document, Question, write_documents, write_questions
from msa_jax.engine.pretrained import find_pretrained
from tests.doc_commands import ROOT, runnable

SMALL_TRAINING = (
    "--config.model.embed_dim=32",
    "--config.model.hidden_dim=32",
    "--config.model.head_dim=8",
    "--config.stages.retrieval.steps=2",
    "--config.stages.retrieval.warmup_steps=1",
    "--config.stages.retrieval.memory_tokens=1024",
    "--config.stages.retrieval.queries_per_group=4",
    "--config.demo.packages=('json', 'logging')",
    "--config.demo.train_needles=8",
    "--config.demo.train_docstrings=4",
    "--config.demo.heldout_needles=4",
    "--config.demo.heldout_docstrings=1",
    "--config.demo.heldout_tokens=2000",
    "--config.evaluation.memory_tokens=(1024,)",
)
SMALL_SUITE = ("--config.memory_tokens=(1024,)", "--config.encode_batch_tokens=1024")
SMALL_RULER = (
    "--config.memory_tokens=(1024,)",
    "--config.num_samples=1",
    "--config.subtasks=('niah_single_2',)",
    "--config.max_document_tokens=128",
    "--config.encode_batch_tokens=1024",
    "--config.interleave.max_rounds=1",
)
SMALLER = {
    "--config=configs/tiny.py": SMALL_TRAINING,
    "--config=configs/eval/files.py": SMALL_SUITE,
    "--config=configs/eval/ruler.py": SMALL_RULER,
}


def start(place, command):
    """Runs a command in a folder, made small; returns what it printed."""
    _, *arguments = shlex.split(command, comments=True)
    arguments += [x for argument in arguments for x in SMALLER.get(argument, ())]
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "MSA_JAX_CACHE": str(place / "cache"),
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def small_files(folder, name):
    """Documents, and questions about them."""
    write_documents(
        folder / f"{name}documents.jsonl",
        [Document(f"{name}{i}", f"The value of item {i} is x{i}. " * 8) for i in range(40)],
    )
    write_questions(
        folder / f"{name}questions.jsonl",
        [Question(f"q{i}", f"item {i}?", (f"x{i}",), (f"{name}{i}",)) for i in range(20)],
    )


def write_bank_page(folder):
    """A folder of texts with one that the question of README.md is about."""
    folder.mkdir()
    (folder / "bank.md").write_text("A bank holds documents and their pooled keys.")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkout as far as the commands need it, with files where the pages have them."""
    place = tmp_path_factory.mktemp("place")
    (place / "configs").symlink_to(ROOT / "configs")
    write_bank_page(place / "docs")
    shutil.copy(ROOT / "docs" / "performance.md", place / "docs")
    (place / "essays").mkdir()
    (place / "essays" / "essay.txt").write_text("It is a long way to the lighthouse. " * 200)
    small_files(place, "")
    small_files(place, "heldout.")
    (place / "runs").mkdir()
    (place / "runs" / "100m").symlink_to("tiny")
    return place


@pytest.fixture(scope="module")
def readme(place):
    """What the commands of README.md print that need no pretrained model."""
    return [start(place, x) for x in runnable(ROOT / "README.md") if "--pretrained" not in x]


@pytest.mark.slow
def test_the_quick_start(readme, place):
    trained, encoded, asked, measured = readme
    assert (place / "runs" / "tiny" / "results.json").is_file() and "recall" in trained
    assert "2 documents added" in encoded
    assert re.findall(r"^ +-?[\d.]+  \[\d+\] (bank|performance)", asked, re.MULTILINE)
    assert " bm25 " in measured and " msa " in measured
    assert (place / "runs" / "files" / "tiny" / "recall.png").is_file()


@pytest.mark.slow
def test_the_pretrained_model_of_the_readme(tmp_path):
    (command,) = [x for x in runnable(ROOT / "README.md") if "--pretrained" in x]
    name = re.search(r"--pretrained=(\S+)", command)[1]
    try:
        backbone = fetch(read_description(find_pretrained(name)).backbone)
    except (ConfigError, CheckpointError) as error:
        pytest.skip(str(error))
    # Where the program looks for it, beside a bank that is for this test alone.
    (tmp_path / "cache" / "backbones").mkdir(parents=True)
    (tmp_path / "cache" / "backbones" / backbone.name).symlink_to(backbone)
    write_bank_page(tmp_path / "docs")
    assert re.findall(r"^ +-?[\d.]+  \[\d+\] bank", start(tmp_path, command), re.MULTILINE)


def test_the_demo_page_shows_commands_of_the_readme():
    page = runnable(ROOT / "docs" / "demo.md")
    assert page and set(page) <= set(runnable(ROOT / "README.md"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation", "performance", "training"])
def test_the_commands_of_a_page(name, readme, place):
    lines = runnable(ROOT / "docs" / f"{name}.md")
    assert lines
    for line in lines:
        start(place, line)
