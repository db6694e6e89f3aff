"""A workdir holds results of one model, one text and one set of settings, whoever measured what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from msa_jax.config import ConfigError
from msa_jax.data.text_format import Naming, save_text_format
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.evaluate import workdir_of
from msa_jax.evaluation.conditions import Provenance, digest_files
from msa_jax.evaluation.judging import GRADE
from msa_jax.evaluation.results import Results
from msa_jax.evaluation.suite import Suite
from msa_jax.evaluation.suite_conditions import _DEPENDS_ON
from msa_jax.evaluation.suite_config import MSA, SYSTEMS, suite_config
from tests.evaluation import small_suite

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files, a model, and a workdir that holds results of every system."""
    folder = tmp_path_factory.mktemp("conditions")
    small_suite.write_files(folder)
    small_suite.write_model(folder / "model")
    save_text_format(folder / "model", Tokenizer.load("docs-4k"), "plain", 64, Naming(0.05))
    measure(values_of(folder), *_DEPENDS_ON)
    return folder


def values_of(folder, **changes):
    values = {
        "checkpoint": str(folder / "model"),
        "dtype": "float32",
        "judge": {"url": "http://localhost", "model": "judge"},
    }
    values = small_suite.suite_values(folder, **values | changes)
    values["interleave"] = {"router_temperature": None, **values["interleave"]}
    return values


def suite_of(values):
    return Suite(suite_config(values))


def measure(values, *systems):
    """Writes something down for each system, as if it had been measured."""
    suite = suite_of(values)
    for system in systems:
        by = system if system == GRADE else None
        suite.results.add("animals", 200, system, {"recall@1": [1.0]}, by=by)
    return suite


def changed(values, path, value):
    """The configuration with another value for a field like "sets.animals.count"."""
    *sections, name = path.split(".")
    section = values
    for one in sections:
        section[one] = dict(section[one])
        section = section[one]
    section[name] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("dtype", "bfloat16"),
        ("template", "msa_4b"),
        ("key_dtype", "int8"),
        ("content_dtype", "int8"),
        ("distractors", ()),
        ("max_answer_tokens", 5),
        ("context_tokens", 361),
        ("dense_dtype", "bfloat16"),
        ("interleave.router_temperature", 0.06),
        ("interleave.margin", 0.1),
        ("interleave.max_rounds", 3),
        ("interleave.max_documents", 3),
        ("interleave.max_original_tokens", 100),
        ("interleave.constrain", "existing"),
        ("sets.animals.count", 5),
        ("sets.animals.answered", 2),
        ("sets.animals.split", None),
        ("corpus.seed", 1),
        ("corpus.id_space", 2000),
        ("corpus.max_document_tokens", 48),
        ("judge.model", "another"),
    ],
)
def test_another_setting_is_refused_by_name(folder, path, value):
    with pytest.raises(ConfigError) as error:
        suite_of(changed(values_of(folder), path, value))
    assert str(error.value).startswith(f"{folder / 'results'} holds results of another {path}")
    assert str(error.value).endswith("; name another workdir or remove it.")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("batch_size", 3),
        ("encode_batch_tokens", 2048),
        ("answer_batch_size", 3),
        ("content_tier", "host"),
        ("memory_tokens", (200, 400, 800)),
        ("key_dtype", "float32"),
        ("sets.animals.count", 500),
        ("interleave.router_temperature", 0.05),
    ],
)
def test_what_changes_no_result_is_not(folder, path, value):
    """Speed, further sizes, and values that come to the same."""
    values = changed(values_of(folder), path, value)
    if path == "memory_tokens":
        values["answer_memory_tokens"] = (200,)
    suite_of(values)


def test_another_checkpoint_is_refused_whatever_it_is_called(folder, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(folder / "model", other)
    suite_of(values_of(folder, checkpoint=str(other)))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors")
    with pytest.raises(ConfigError, match="results of another checkpoint; name"):
        suite_of(values_of(folder, checkpoint=str(other)))
    with pytest.raises(ConfigError, match="results of another seed and checkpoint; name"):
        suite_of(values_of(folder, checkpoint=str(other), seed=3))


def test_files_count_by_content(folder, tmp_path):
    def moved():
        values = values_of(tmp_path, workdir=str(folder / "results"))
        return values | {"checkpoint": str(folder / "model")}

    for name in ("zoo.jsonl", "others.jsonl", "questions.jsonl"):
        shutil.copy(folder / name, tmp_path)
    suite_of(moved())
    for name, field in (
        ("questions.jsonl", "sets.animals.questions"),
        ("zoo.jsonl", "corpus.documents and sets.animals.questions"),
    ):
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("otter", "other"), encoding="utf-8")
        with pytest.raises(ConfigError, match=f"results of another {field}; name"):
            suite_of(moved())


def test_documents_that_were_edited_are_not_measured_as_they_were_cut(folder, tmp_path):
    small_suite.write_files(tmp_path)
    values = small_suite.suite_values(tmp_path, systems=("chance",))
    suite_of(values)
    (tmp_path / "others.jsonl").write_text('{"id": "x", "text": "new"}\n' * 2, encoding="utf-8")
    with pytest.raises(ConfigError, match="corpus holds documents of another corpus.documents"):
        suite_of(values)


def test_systems_share_a_workdir_and_none_depends_on_what_it_does_not_use(folder, tmp_path):
    model = str(folder / "model")
    alone = values_of(folder, workdir=str(tmp_path), systems=("chance", "bm25"), checkpoint=None)
    measure(alone, "chance", "bm25")
    routed = alone | {"systems": ("msa",), "checkpoint": model}
    measure(routed, "msa")
    with pytest.raises(ConfigError, match="another dtype"):
        suite_of(routed | {"dtype": "bfloat16"})
    suite_of(alone | {"dtype": "bfloat16", "interleave": {"max_rounds": 5}})
    # Nothing was answered, so that nothing about answers was said.
    measure(changed(dict(routed), "sets.animals.answered", 1), "msa")
    suite_of(routed | {"systems": ("msa answers",), "max_answer_tokens": 7})


def test_only_what_is_there_counts(folder, tmp_path):
    """Not what a run that measured nothing has said."""
    suite_of(values_of(folder, workdir=str(tmp_path)))
    with pytest.raises(ConfigError, match="corpus holds documents of another template"):
        suite_of(values_of(folder, workdir=str(tmp_path), template="msa_4b"))
    suite_of(values_of(folder, workdir=str(tmp_path), dtype="bfloat16"))


def test_results_that_say_nothing_of_themselves_are_refused(folder, tmp_path):
    Results(tmp_path, {}).add("animals", 200, MSA, {"recall@1": [1.0]})
    with pytest.raises(ConfigError, match="holds results, but no conditions.json"):
        suite_of(values_of(folder, workdir=str(tmp_path)))


def test_every_system_says_what_it_depends_on():
    assert set(SYSTEMS) < set(_DEPENDS_ON)


def test_the_template_is_that_of_the_model(folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    save_text_format(model, Tokenizer.load("docs-4k"), "msa_4b", 64)
    for named in ({"checkpoint": str(model)}, {"tokenizer": str(model), "checkpoint": None}):
        values = values_of(folder, workdir=str(tmp_path / "results"), **named)
        if named["checkpoint"]:
            assert suite_of(values).loaded.template_name == "msa_4b"
            values |= {"tokenizer": None}
        suite = suite_of(values | {"systems": ("bm25",)})
        assert "Please answer" in suite.builder.template.query
    plain = {"systems": ("bm25",), "template": "plain", "workdir": str(tmp_path / "plain")}
    assert "Please answer" not in suite_of(values | plain).builder.template.query


def test_a_configuration_names_no_template_and_a_workdir_for_every_model():
    for path in (ROOT / "configs" / "eval").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "c.template = config_dict.placeholder(str)" in text
        assert f'c.workdir = "runs/{path.stem}/{{model}}"' in text
    names = {
        "runs/100m": "runs/ruler/100m",
        "pretrained:smollm2-135m-msa": "runs/ruler/smollm2-135m-msa",
        None: "runs/ruler/baselines",
    }
    assert {x: workdir_of("runs/ruler/{model}", x) for x in names} == names
    assert workdir_of("mine", "runs/100m") == "mine"


def test_conditions_are_kept_one_by_one(tmp_path):
    own = {"a": {"x": 1, "y": (1, 2)}, "b": {"z": None}}
    Provenance(tmp_path, own).keep("a")
    assert json.loads((tmp_path / "conditions.json").read_text()) == {"a": {"x": 1, "y": [1, 2]}}
    Provenance(tmp_path, own | {"b": {"z": 5}}).keep("b")
    assert list(Provenance(tmp_path, {}).by_key) == ["a", "b"]
    with pytest.raises(ConfigError, match="another x, y and z; name"):
        Provenance(tmp_path, {"c": {"x": 2, "y": [], "z": None, "new": 3}})


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_a_file_that_says_nothing_is_refused(tmp_path, text):
    (tmp_path / "conditions.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="conditions.json does not say what the results"):
        Provenance(tmp_path, {})


def test_what_is_left_of_a_corpus_that_was_not_finished_is_not_read(folder, tmp_path):
    values = small_suite.suite_values(folder, systems=("chance",), workdir=str(tmp_path))
    corpus = suite_of(values).corpus
    (tmp_path / "corpus" / "conditions.json").unlink()
    shutil.copy(tmp_path / "corpus" / "tokens-00.xz", tmp_path / "corpus" / "tokens-01.xz")
    suite_of(values)
    assert len(suite_of(values).corpus.tokens) == len(corpus.tokens)


def test_folders_are_known_by_what_is_in_them(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "one.txt").write_text("one")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert digest_files(tmp_path / "a") == digest_files(tmp_path / "b")
    (tmp_path / "b" / "deep" / "one.txt").rename(tmp_path / "b" / "one.txt")
    assert digest_files(tmp_path / "a") != digest_files(tmp_path / "b")
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        digest_files(tmp_path / "c")
