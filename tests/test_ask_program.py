"""`python -m msa_jax.ask`: answers, rankings and prompts, for people and for programs."""

import io
import json
import math
import re
import sys

import jax
import numpy as np
import pytest

from msa_jax import ask as program
from msa_jax.data.records import Document
from msa_jax.engine.answers import Answer, AskConfig, Found
from msa_jax.engine.engine import Engine
from msa_jax.engine.interleave import InterleaveConfig, Round
from msa_jax.engine.sampling import SamplingConfig
from tests.engine.banks import numbered, save_model

DOCUMENTS = [
    *numbered(4),
    Document("harbor", "The tower was repaired by Ada. It rained.", "A tower", {"year": 1901}),
]
BRIEF = {"max_rounds": 0, "max_tokens": 3}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ask")
    save_model(folder)
    with Engine.create(folder / "bank", folder, max_document_tokens=64) as engine:
        engine.add(DOCUMENTS)
    return folder / "bank"


@pytest.fixture
def run(bank, monkeypatch, capsys):
    """Runs the program; returns its exit code, what it printed, and its errors."""

    def run(*questions, stdin=b"", **flags):
        options = [f"--{name}={value}" for name, value in ({"bank": bank} | flags).items()]
        monkeypatch.setattr(sys, "argv", ["ask", *options, *questions])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as stop:
            program.run()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def objects(out):
    return [json.loads(line) for line in out.splitlines()]


def test_an_answer_its_documents_and_what_it_took(run):
    code, out, err = run("Who repaired the tower?", **BRIEF)
    assert code == 0, err
    plan, *_ = out.splitlines()
    assert plan.startswith("5 documents, ") and "room for" in plan and "beside them" in plan
    assert re.search(r"^ +-?[\d.]+  \[5\] A tower$", out, re.MULTILINE)
    assert re.search(r"^ +The tower was repaired by Ada\.$", out, re.MULTILINE)
    assert out.count("value ") == 4
    assert re.search(r"^seconds: refresh [\d.]+, prefill .*; 3 tokens, length$", out, re.MULTILINE)


def test_what_was_read_says_so(run, monkeypatch):
    unlisted = Found(7, "d7", "", "Some text.", {"n": 7}, -math.inf, was_read=True)
    listed = Found(5, "harbor", "A tower", "Other text.", {}, 0.5)
    ids, scores = np.array([[5, -1]]), np.array([[0.5, -math.inf]], np.float32)
    rounds = (Round(ids, ids, scores, named=(7,)), Round(ids, ids, scores, named=()))
    answer = Answer("Who?", "Ada", False, (unlisted, listed), rounds, "end", 2, {"prefill": 0.25})
    monkeypatch.setattr(Engine, "ask_all", lambda *_: [answer, answer])
    assert run("Who?", "Who?")[1].split("\n", 1)[1] == 2 * (
        "\nWho?\nAda\n"
        "     -inf  [7] d7, read\n           Some text.\n"
        "    0.500  [5] A tower\n           Other text.\n"
        "seconds: prefill 0.250; 2 tokens, end\n"
    )
    routed = [{"id": 5, "score": 0.5}]
    of_listed = {"id": 5, "key": "harbor", "title": "A tower", "text": "Other text.", "score": 0.5}
    of_unlisted = {"id": 7, "key": "d7", "title": "", "text": "Some text.", "score": None}
    expected = {
        "question": "Who?",
        "text": "Ada",
        "abstained": False,
        "documents": [
            of_unlisted | {"metadata": {"n": 7}, "was_read": True, "snippet": "Some text."},
            of_listed | {"metadata": {}, "was_read": False, "snippet": "Other text."},
        ],
        "rounds": [{"routed": routed, "named": [7]}, {"routed": routed, "named": []}],
        "finished": "end",
        "tokens": 2,
        "seconds": {"prefill": 0.25},
    }
    code, out, err = run("Who?", "Who?", json=True)
    assert code == 0 and objects(out) == [expected, expected] and "room for" in err


def test_a_single_answer_is_shown_while_it_is_written(run, monkeypatch):
    shown = []
    monkeypatch.setattr(program, "_print_now", shown.append)
    several = {"max_rounds": 0, "max_tokens": 20}
    (expected,) = objects(run("Who?", json=True, **several)[1])
    assert not shown
    out = run("Who?", **several)[1]
    assert len(shown) > 1 and "".join(shown) == expected["text"] and expected["text"] not in out


def test_several_questions_are_answered_as_each_alone(run):
    questions = ("Who repaired the tower?", "What is value 2?")
    together = objects(run(*questions, json=True, **BRIEF)[1])
    alone = [objects(run(question, json=True, **BRIEF)[1])[0] for question in questions]
    assert [x["question"] for x in together] == list(questions)
    assert [x["text"] for x in together] == [x["text"] for x in alone]
    assert [x["documents"][0]["id"] for x in together] == [x["documents"][0]["id"] for x in alone]


def test_ranking_writes_no_answer(run):
    code, out, _ = run("tower", "value", retrieve=True, json=True)
    assert code == 0
    rankings = objects(out)
    assert [list(ranking) for ranking in rankings] == [["question", "documents"]] * 2
    for ranking in rankings:
        scores = [document["score"] for document in ranking["documents"]]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    out = run("tower", retrieve=True)[1]
    assert [int(x) for x in re.findall(r"\[(\d+)\]", out)] == [
        document["id"] for document in rankings[0]["documents"]
    ]
    assert "seconds" not in out


@pytest.mark.parametrize(
    ("filters", "keys"),
    [
        (["year=1901"], {"harbor"}),
        (["n=1", "n=3"], {"d1", "d3"}),
        (["n=1", "key=d2"], set()),
        (["title=A tower", "key=harbor"], {"harbor"}),
        (["n=Infinity"], set()),
        (['{"n": [1, 3]}'], {"d1", "d3"}),
        (['{"n": 1}', "key=d1"], {"d1"}),
        (['{"n": "1"}'], set()),
        (['{"a=b": null}'], set()),
    ],
)
def test_filters(run, filters, keys):
    options = [f"--filter={text}" for text in filters]
    code, out, err = run(*options, "tower", retrieve=True, json=True)
    assert code == 0, err
    assert {document["key"] for document in objects(out)[0]["documents"]} == keys


def test_no_answer_where_nothing_scores_enough(run):
    code, out, _ = run("Who?", abstain_below=100, **BRIEF)
    assert code == 0 and "No answer: no document scores enough." in out
    assert "[" in out and out.rstrip().endswith("; 0 tokens, abstained")
    (answer,) = objects(run("Who?", abstain_below=100, json=True)[1])
    assert answer["abstained"] and answer["text"] == "" and answer["documents"]


def test_lines_of_standard_input_until_it_ends_whatever_they_hold(run):
    stdin = b"Who?\n\n  \nWho is \xff?\nAnd that?"
    code, out, err = run(stdin=stdin, json=True, **BRIEF)
    assert code == 0
    first, bad, last = objects(out)
    assert (first["question"], last["question"]) == ("Who?", "And that?")
    assert bad["error"] == "the question 'Who is \\udcff?' is not text in UTF-8."
    code, out, err = run(stdin=stdin, **BRIEF)
    assert code == 0 and out.count("seconds: ") == 2 and "> " not in out
    # Where loading takes long, its progress comes before.
    assert re.search(r"(^|\r *\r)error: the question .* is not text in UTF-8\.\n$", err)


def test_a_question_for_which_there_is_no_room(run, monkeypatch):
    def retrieve(self, question, *_):
        if question == "long":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nMore on it.")
        return []

    monkeypatch.setattr(Engine, "retrieve", retrieve)
    code, out, err = run(stdin=b"long\nshort", retrieve=True)
    assert code == 0 and "\nshort\n  no documents" in out and err.count("\n") == 1
    assert "no room in memory for this (RESOURCE_EXHAUSTED: Out of memory.); ask shorter" in err
    assert run("long", retrieve=True)[0] == 2


def test_devices_that_share_the_memory_find_the_same(run):
    (alone,), (shared,) = (
        objects(run("Who?", retrieve=True, json=True, memory_devices=n)[1]) for n in (1, 2)
    )
    for ours, theirs in zip(shared["documents"], alone["documents"], strict=True):
        assert ours["id"] == theirs["id"] and ours["score"] == pytest.approx(theirs["score"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"bank": ""}, "--bank is missing; name the directory of the bank."),
        ({"bank": "nowhere"}, "nowhere: there is no bank; python -m msa_jax.encode makes one."),
        ({"max_tokens": 0}, "max_tokens must be a positive whole number, not 0."),
        ({"filter": "year"}, "--filter=year must be field=value."),
        ({"content_tier": "moon"}, "flag --content_tier=moon: value should be one of"),
        ({"memory_devices": 3}, "which does not divide the 8 devices"),
        ({"checkpoint": "nowhere"}, "is neither the workdir of a training run"),
        ({"rounds": 1}, "Unknown command line flag 'rounds'"),
    ],
)
def test_what_the_user_can_mend_is_one_line(run, flags, message):
    code, out, err = run("Who?", **flags)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_flags_say_how_to_ask(run, monkeypatch):
    asked = []

    def ask(self, question, config, on_text):
        asked.append(config)
        return Answer(question, "", True, (), (), "abstained", 0, {})

    monkeypatch.setattr(Engine, "ask", ask)
    assert "  no documents\n" in run("Who?")[1]
    flags = {"max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 7}
    reading = {"max_rounds": 2, "router_temperature": 0.1, "margin": 0.0}
    run("Who?", "--stop=x", "--stop=y", num_documents=3, **reading, **flags)
    assert asked == [
        AskConfig(),
        AskConfig(
            interleave=InterleaveConfig(**reading),
            sampling=SamplingConfig(stop=("x", "y"), **flags),
            num_documents=3,
        ),
    ]


def test_what_an_answer_attends_to_is_drawn(run, tmp_path):
    path = tmp_path / "new" / "attention"
    options = BRIEF | {"attribution": path, "num_documents": 1}
    code, out, err = run("Who repaired the tower?", **options)
    assert code == 0, err
    assert out.endswith(f"attribution: {path}.png, {path}.svg\n")
    drawing = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert path.with_suffix(".png").stat().st_size and "<!-- Who repaired the tower? -->" in drawing
    assert re.search(r"<!-- \[5\] chunk \d: .+ -->", drawing)
    (answer,) = objects(run("Who repaired the tower?", json=True, **options)[1])
    assert answer["text"] in out


@pytest.mark.parametrize("change", [{"questions": ["Who?", "What?"]}, {"retrieve": True}])
def test_an_attribution_is_of_one_answer(run, tmp_path, change):
    questions = change.pop("questions", ["Who?"])
    code, _, err = run(*questions, attribution=tmp_path / "x.png", **change)
    assert code == 2 and "--attribution is of one answer; give one question" in err
    assert not list(tmp_path.iterdir())


def test_no_answer_attends_to_nothing(run, tmp_path):
    code, out, _ = run("Who?", attribution=tmp_path / "x.png", abstain_below=2.0)
    assert code == 0 and "No attribution: there is no answer." in out
    assert not list(tmp_path.iterdir())
