"""README.md and docs/: their commands exist, their links lead somewhere, and the site builds.

Every command is run by the test of its page, or `doc_commands.py` says why not. Here commands are
only read: the module, its flags, and the fields of its configuration.
"""

import dataclasses
import importlib
import importlib.util
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from msa_jax import ask
from msa_jax.config_file import CONFIG, parse_flags
from msa_jax.data.config import DataConfig, SourceConfig
from msa_jax.evaluation.ruler.run import ruler_config
from msa_jax.evaluation.suite_config import suite_config
from msa_jax.training.config import train_config
from msa_jax.training.curriculum import LookStage, StageConfig
from tests.doc_commands import (
    PAGES,
    ROOT,
    RUN_BY,
    commands,
    prose,
    runnable,
    unused_reasons,
    why_not_run,
)

REFERENCE = ROOT / "docs" / "reference"

# For a configuration that a page lets its reader write.
MY_CONFIG = """
import runpy

def get_config():
    config = runpy.run_path("{tiny}")["get_config"]()
    config.stages.sft = config.stages.retrieval
    return config
"""


COMMANDS = {
    command: page.name
    for page in PAGES
    for command in commands(page)
    if command.startswith("python -m ")
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_run_by_a_test_or_has_a_reason(page):
    test = RUN_BY.get(str(page.relative_to(ROOT)))
    assert runnable(page) == [] or test, "name the test in doc_commands.RUN_BY, or give a reason"
    assert test is None or page.stem in (ROOT / test).read_text(encoding="utf-8")


def test_what_a_new_command_needs():
    assert why_not_run("make demo") and unused_reasons() == []
    assert why_not_run("python -m msa_jax.ask --bank=bank 'Who?'") is None
    assert why_not_run("curl https://example.org") is None


def check_own_flags(program, arguments):
    """Parses the arguments of a program that keeps its flags to itself."""
    saved = flagsaver.save_flag_values(program.FLAGS)
    try:
        program.FLAGS(["program", *arguments])
    finally:
        flagsaver.restore_flag_values(saved, program.FLAGS)


def check_configuration(name, arguments, monkeypatch):
    """Loads the configuration that a command names, with its overrides."""
    # Where ml_collections looks for overrides.
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with flagsaver.flagsaver():
        assert parse_flags(sys.argv) == [name]
        values = CONFIG.value.to_dict()
    if name == "msa_jax.train":
        train_config({x: values[x] for x in values if x not in ("demo", "evaluation")})
    elif values.pop("benchmark", None) == "ruler":
        ruler_config(values)
    else:
        suite_config(values)


@pytest.fixture
def my_config(tmp_path):
    """A folder with what configurations of the pages read when they are loaded."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("runs/tiny/corpus/heldout.documents", "data/squad/documents"):
        file = tmp_path / f"{name}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text('{"id": "d1", "text": "A document."}\n')
    path = tmp_path / "my_config.py"
    path.write_text(MY_CONFIG.format(tiny=ROOT / "configs" / "tiny.py"))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_there_is(command, my_config, monkeypatch):
    _, _, name, *arguments = shlex.split(command, comments=True)
    assert importlib.util.find_spec(name), f"{COMMANDS[command]}: there is no module {name}"
    if not name.startswith("msa_jax."):
        source = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
        switches = re.findall(r'"--([\w-]+)",\s+action=argparse.BooleanOptionalAction', source)
        known = {f"--no-{x}" for x in switches} | set(re.findall(r'"(--[\w-]+)"', source))
        assert {x.partition("=")[0] for x in arguments if x.startswith("--")} <= known
    elif hasattr(program := importlib.import_module(name), "FLAGS"):
        check_own_flags(program, arguments)
    elif arguments:
        monkeypatch.chdir(my_config.parent)
        mine = [x.replace("=my_config.py", f"={my_config}") for x in arguments]
        check_configuration(name, mine, monkeypatch)


def test_what_is_unknown_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(flags.Error):
        check_own_flags(ask, ["--bank=bank", "--no_such_flag=1"])
    with pytest.raises(ValueError, match="no_such_field"):
        wrong = ["--config=configs/tiny.py", "--config.data.no_such_field=1"]
        check_configuration("msa_jax.train", wrong, monkeypatch)


def test_every_program_has_a_command():
    programs = {x.stem for x in (ROOT / "msa_jax").glob("*.py") if "__main__" in x.read_text()}
    named = {shlex.split(x, comments=True)[2].removeprefix("msa_jax.") for x in COMMANDS}
    assert programs and programs <= named


def anchors(page):
    """Anchors of the headings of a page, as Markdown makes them."""
    text = prose(page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", x).strip().lower()) for x in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    text = prose(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


def test_every_folder_has_a_page_of_the_reference():
    folders = {path.parent.name for path in (ROOT / "msa_jax").glob("*/__init__.py")}
    pages = {path.stem for path in REFERENCE.glob("*.md")}
    assert pages == folders | {"msa_jax", "programs"}


def test_modules_of_the_pages_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = re.findall(r"`(msa_jax(?:\.\w+)+)`", text) + re.findall(r"^::: (\S+)", text, re.M)
    assert len(names) > 30
    for name in dict.fromkeys(names):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize(
    ("section", "config"),
    [
        ("a stage", StageConfig),
        ("a look stage", LookStage),
        ("`data`", DataConfig),
        ("a source", SourceConfig),
    ],
)
def test_fields_of_the_training_page_are_those_of_the_configuration(section, config):
    paragraphs = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split("\n\n")
    tables = [x for x in paragraphs if x.startswith(f"| field of {section} |")]
    rows = [row for table in tables for row in table.splitlines()[2:]]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {x.name for x in dataclasses.fields(config)} - {"name"}


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    for tool in ("mkdocs", "material", "mkdocstrings_handlers"):
        pytest.importorskip(tool, reason="needs `pip install '.[docs]'` (make docs)")
    # Not `--quiet`: what is not printed does not count as a warning.
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    # Docstrings are there, and so is what pages link to outside docs/.
    reference = (tmp_path / "reference" / "memory" / "index.html").read_text(encoding="utf-8")
    assert 'id="msa_jax.memory.store.Store.compact"' in reference
    assert (tmp_path / "launch" / "tpu_pod.sh").is_file()
