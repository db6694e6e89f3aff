"""Every program over file names, texts and metadata that nobody expects.

Whatever comes: what was asked for, whole, or one line that says what is wrong; never a traceback,
nothing that drives a terminal, and no document lost without a word. Models are stubs; readers,
tokenizers, splitters, banks and printers are the real ones.
"""

from __future__ import annotations

import copy
import io
import json
import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from msa_jax import ask, bank, compose_questions, encode, evaluate, mine, train
from msa_jax.data import convert
from msa_jax.data.dataset import TextDataset
from msa_jax.data.formats import FORMATS
from msa_jax.data.records import read_documents
from msa_jax.engine.answers import Answer, Found
from msa_jax.engine.engine import Engine
from msa_jax.engine.loading import load_model
from msa_jax.evaluation.suite import Suite
from msa_jax.memory.chunks import Chunks
from msa_jax.memory.store import Store
from msa_jax.training.trainer import TrainResult
from tests.data import published
from tests.engine.banks import save_model
from tests.evaluation.small_suite import suite_values
from tests.hostile import (
    DRIVES,
    call,
    check_refusal,
    clean_texts,
    documents,
    few,
    rows,
    texts,
    values,
)
from tests.memory.banks import FINGERPRINT, LAYOUT
from tests.test_configs import load as load_config

NAMES = clean_texts.map(lambda x: x.replace("/", "_").replace("\0", "_").replace(",", "_")[:40])
DOCUMENTS = [{"id": f"d{n}", "text": f"value {n} is x{n}", "title": f"Tower {n}"} for n in range(9)]
QUESTION = {"id": "q", "question": "Which is value 1?", "answers": ["x1"], "positive_ids": ["d1"]}


def asked(words, metadata):
    """Questions made of such words, with such metadata."""
    return st.fixed_dictionaries(
        {"id": words, "question": words.map(lambda x: f"{x}?"), "positive_ids": st.just(["d1"])},
        optional={"answers": st.none() | st.lists(words, max_size=2), "dataset": metadata},
    )


questions = st.lists(asked(clean_texts, clean_texts), max_size=2) | st.lists(
    asked(texts, values), max_size=2
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(save_model(tmp_path_factory.mktemp("model")), template="plain")


@pytest.fixture
def folder(tmp_path):
    """Folders, each new, of any name."""
    count = iter(range(10**6))

    def make(name=""):
        path = tmp_path / str(next(count)) / f"x{name}"
        path.mkdir(parents=True)
        return path

    return make


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check(code, out, err):
    """Either all is well, or one line says why not; true in the first case."""
    assert not DRIVES.search(out) and "Traceback" not in err
    if code:
        check_refusal(code, err)
    return not code


class StubEngine:
    """Finds and answers what it is told."""

    store = SimpleNamespace(num_documents=1, num_tokens=1)
    bank = SimpleNamespace(plan=SimpleNamespace(describe=lambda: "here"))

    def __init__(self, *documents, answer=None):
        self._documents, self._answer = documents, answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def retrieve(self, *_):
        return self._documents

    def ask(self, question, config, say):
        for token in self._answer.text:
            say(token)
        return self._answer

    def ask_all(self, questions, config):
        return [self._answer for _ in questions]


class StubEncoder:
    """Encodes everything as zeros."""

    def __init__(self, model, params, layout, mesh=None):
        self._layout = layout

    def encode(self, parts, on_batch):
        count = sum(-(-len(part) // self._layout.pooling_kernel_size) for part in parts)
        fields = self._layout.fields(count).items()
        return Chunks(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in fields})


@few(25)
@given(documents, NAMES)
def test_encode(loaded, folder, given_rows, name):
    place = folder(name)
    file, path = write(place / "d.jsonl", [DOCUMENTS[0], *given_rows]), place / "bank"
    with (
        mock.patch.object(encode, "_load", lambda facts: (loaded, None)),
        mock.patch.object(encode, "Encoder", StubEncoder),
    ):
        flags = (f"--bank={path}", f"--documents={file}", "--max_document_tokens=48")
        if not check(*call(encode, *flags)):
            return
        read = {x.id: x for x in read_documents(file)}
        assert len(read) == 1 + len(given_rows)
        said = {key: document for key, document in read.items() if document.text.strip()}
        assert held(path) == {key: "".join(x.text.split()) for key, x in said.items()}
        write(file, [DOCUMENTS[1]])
        code, out, err = call(encode, *flags, "--prune")
        assert code == 0 and f"{len(said)} removed" in out, err
        assert set(held(path)) == {"d1"}


def held(path):
    """The letters of every document of a bank."""
    found = {}
    with Store.open(path) as store:
        assert store.verify() == []
        for passage in store.passages(store.parts().ids):
            found[passage.key] = found.get(passage.key, "") + passage.text
    return {key: "".join(text.split()) for key, text in found.items()}


@few(40)
@given(texts, clean_texts, clean_texts, clean_texts, st.dictionaries(texts, values))
def test_ask(question, key, title, text, metadata):
    found = Found(7, key, title, text, metadata, -math.inf, was_read=True)
    question = question.replace("\0", "") or "?"
    answer = Answer(question, text, False, (found,), (), "end", 2, {"prefill": 0.25})
    engine = StubEngine(found, answer=answer)
    with mock.patch.object(Engine, "open", lambda *_, **__: engine):
        for arguments in (("--", question), ("--retrieve", "--", question), ("--", question, "?")):
            check(*call(ask, "--bank=bank", *arguments))
        code, out, err = call(ask, "--bank=bank", "--json", "--", question)
        if check(code, out, err):
            (document,) = json.loads(out)["documents"]
            assert (document["key"], document["title"], document["text"]) == (key, title, text)


@few(40)
@given(st.binary(max_size=20) | st.just(b"d1\nd2"), st.sampled_from(["", "\x1b[2J", "é", "\udcff"]))
def test_ask_reads_questions_from_any_input(given_bytes, name):
    stdin = io.TextIOWrapper(io.BytesIO(given_bytes))
    with (
        mock.patch.object(Engine, "open", lambda *_, **__: StubEngine()),
        mock.patch("sys.stdin", stdin),
    ):
        code, out, err = call(ask, f"--bank=bank{name}", "--retrieve")
    assert code == 0 and not DRIVES.search(out + err.replace("\r", ""))


@few(20)
@given(NAMES, st.dictionaries(clean_texts, clean_texts, max_size=2))
def test_bank(folder, name, facts):
    path = folder(name) / "bank"
    Store.create(path, LAYOUT, FINGERPRINT, facts).close()
    assert check(*call(bank, f"--bank={path}"))
    check_refusal(*call(bank, f"--bank={path.parent / 'other'}")[::2])


@few(25)
@given(documents, questions, st.booleans())
def test_mine(folder, given_rows, given_questions, made):
    pytest.importorskip("bm25s")
    place = folder()
    write(place / "d.jsonl", [*DOCUMENTS, *given_rows])
    write(place / "q.jsonl", [QUESTION, *given_questions])
    asked = ("--queries=synthetic",) if made else (f"--questions={place / 'q.jsonl'}",)
    flags = (f"--documents={place / 'd.jsonl'}", f"--to={place / 'm.jsonl'}")
    if check(*call(mine, *flags, *asked)) and not made:
        mined = (place / "m.jsonl").read_text(encoding="utf-8").split("\n")
        assert len(mined) == 2 + len(given_questions)


@few(25)
@given(documents, questions)
def test_compose_questions(folder, given_rows, given_questions):
    place = folder()
    leads_on = {
        "id": "p",
        "question": "Who painted x2?",
        "answers": ["Tower 1"],
        "positive_ids": ["d2"],
    }
    asks = {"id": "r", "question": "Is Tower 1 old?", "answers": ["Yes."], "positive_ids": ["d1"]}
    write(place / "d.jsonl", [*DOCUMENTS, *given_rows])
    write(place / "q.jsonl", [leads_on, asks, *given_questions])
    files = (f"--{name}={place / name[0]}.jsonl" for name in ("documents", "questions"))
    if check(*call(compose_questions, *files, f"--to={place / 'c.jsonl'}")):
        assert '"p+r"' in (place / "c.jsonl").read_text(encoding="utf-8")


@few(25)
@given(documents, questions)
def test_train(folder, given_rows, given_questions):
    place = folder()
    write(place / "d.jsonl", [*DOCUMENTS, *given_rows])
    write(place / "q.jsonl", [QUESTION, *given_questions])
    datasets = []

    def load(config):
        datasets.append(TextDataset.load(config.data, config.model.memory))
        return TrainResult(None, None, 0, interrupted=True)

    config = load_config("tiny")
    config.data.documents, config.data.questions = str(place / "d.jsonl"), str(place / "q.jsonl")
    config.workdir = str(place / "run")
    with (
        mock.patch.object(train, "CONFIG", SimpleNamespace(value=config)),
        mock.patch.object(train, "parse_flags", list),
        mock.patch.object(train, "train", load),
    ):
        result = call(train)
    if check(*result):
        (dataset,) = datasets
        assert all(len(part) for part in dataset.parts)
        shown = {x.shown for x in read_documents(place / "d.jsonl") if x.text.strip()}
        assert len(set(dataset.parents)) == len(shown)


@few(25)
@given(documents, questions)
def test_evaluate(folder, given_rows, given_questions):
    place = folder()
    write(place / "zoo.jsonl", [*DOCUMENTS, *given_rows])
    write(place / "others.jsonl", [{"id": "other", "text": "Other."}])
    write(place / "questions.jsonl", [QUESTION, *given_questions])
    sets = {"all": {"questions": str(place / "questions.jsonl"), "pools": ("zoo",)}}
    config = suite_values(
        place, sets=sets, systems=("chance",), memory_tokens=(60,), answer_memory_tokens=()
    )
    suites = []
    with (
        mock.patch.object(evaluate, "CONFIG", SimpleNamespace(value=ConfigDict(config))),
        mock.patch.object(evaluate, "parse_flags", list),
        mock.patch.object(Suite, "run", lambda suite: suites.append(suite)),
        mock.patch.object(evaluate, "write_curves", lambda *_: "\x1b"),
    ):
        result = call(evaluate)
    if check(*result):
        corpus = suites[0].corpus
        shown = {x.shown for x in read_documents(place / "zoo.jsonl") if x.text.strip()}
        assert len(set(corpus.document.tolist())) == len(shown) + 1


@few(60)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.one_of(
        st.binary(max_size=60),
        st.one_of(values, st.lists(rows, max_size=2)).map(lambda x: json.dumps(x).encode()),
        st.just(b"[" * 100_000),
        st.just(b'{"data": ' + b"[" * 100_000),
    ),
    st.sampled_from(["x.json", "x.json.gz", "x.jsonl.xz", "x.txt", "x\x1b[2J.json"]),
)
def test_convert_of_datasets(folder, name, content, file):
    place = folder()
    (place / file).write_bytes(content)
    check(
        *call(convert, f"--format={name}", f"--input={place / file}", f"--output={place / 'out'}")
    )


PUBLISHED = {
    "squad": published.SQUAD,
    "hotpotqa": published.HOTPOTQA,
    "2wiki": published.TWO_WIKI,
    "longmemeval": published.LONGMEMEVAL,
    "msmarco": published.MS_MARCO_COLUMNS,
}


@few(80)
@given(st.sampled_from(sorted(PUBLISHED)), st.data())
def test_convert_of_a_dataset_with_a_strange_value(folder, name, data):
    content = {"whole": copy.deepcopy(PUBLISHED[name])}
    inner, key = content, "whole"
    while isinstance(inner[key], dict | list) and inner[key] and data.draw(st.integers(0, 7)):
        inner = inner[key]
        is_list = isinstance(inner, list)
        key = data.draw(st.sampled_from(range(len(inner)) if is_list else sorted(inner)))
    inner[key] = data.draw(values)
    place = folder()
    (place / "x.json").write_text(json.dumps(content["whole"]), encoding="utf-8")
    output = place / "out"
    if check(
        *call(convert, f"--format={name}", f"--input={place / 'x.json'}", f"--output={output}")
    ):
        assert read_documents(output / "documents.jsonl")
