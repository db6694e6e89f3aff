"""`python -m msa_jax.encode`: banks made and updated, estimates, and errors in one line."""

import dataclasses
import io
import json
import re
import types

import pytest

from msa_jax import encode as program
from msa_jax.data.records import Document, write_documents
from msa_jax.memory.store import Store
from tests.engine.banks import numbered, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "docs.jsonl"
    write_documents(path, numbered(5))
    return path


@pytest.fixture
def run(run_program):
    """Runs the program; returns its exit code, what it printed, and its errors."""
    return lambda **flags: run_program(
        program, *(f"--{name}={value}" for name, value in flags.items())
    )


def test_a_bank_is_made_and_then_updated(run, model, documents, tmp_path):
    bank = tmp_path / "bank"
    code, out, err = run(checkpoint=model, documents=documents, bank=bank, max_document_tokens=40)
    assert code == 0, err
    assert re.match(r"5 documents added, 0 updated, 0 unchanged, 0 without text: \d+ tokens", out)
    assert "holds 5 documents in 5 parts" in out and "encode: " in err
    with Store.open(bank) as store:
        assert store.layout.max_document_tokens == 40 and store.num_documents == 5
        assert store.facts["checkpoint"] == str(model) and store.facts["template"] == "msa_4b"
        first_ids = set(store.parts().ids.tolist())

    changed = numbered(7)
    changed[0] = dataclasses.replace(changed[0], text="changed")
    write_documents(documents, changed)
    # The bank knows its model.
    code, out, err = run(documents=documents, bank=bank)
    assert code == 0, err
    assert out.startswith("2 documents added, 1 updated, 4 unchanged, 0 without text")
    with Store.open(bank) as store:
        assert store.num_documents == 7 and store.verify() == []
        assert len(first_ids & set(store.parts().ids.tolist())) == 4


def test_a_folder_and_standard_input_are_documents(run, model, tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.md").write_text("Some text.")
    (folder / "b.txt").write_text("")
    bank = tmp_path / "bank"
    code, out, err = run(
        checkpoint=model, documents=folder, bank=bank, key_dtype="int8", content_dtype="int8"
    )
    assert code == 0, err
    assert out.startswith("1 documents added, 0 updated, 0 unchanged, 1 without text")
    lines = io.BytesIO(json.dumps({"id": "c", "text": "More."}).encode())
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=lines))
    code, out, err = run(documents="-", bank=bank)
    assert code == 0, err
    with Store.open(bank) as store:
        assert list(store.keys()) == ["a.md", "c"]
        assert (store.layout.key_dtype, store.layout.content_dtype) == ("int8", "int8")


def test_what_is_not_given_stays_unless_it_is_to_go(run, model, documents, tmp_path):
    bank = tmp_path / "bank"
    run(checkpoint=model, documents=documents, bank=bank)
    write_documents(documents, numbered(2))
    code, out, _ = run(documents=documents, bank=bank)
    assert code == 0 and "holds 5 documents" in out and "removed" not in out
    code, out, _ = run(documents=documents, bank=bank, prune=True)
    assert code == 0 and out.startswith("0 documents added, 0 updated, 2 unchanged, 0 without text")
    assert ", 3 removed: 0 tokens" in out and "holds 2 documents" in out
    documents.write_text("")
    code, _, err = run(documents=documents, bank=bank, prune=True)
    assert code == 2 and err.endswith("error: there is no document; the bank is left as it was.\n")
    with Store.open(bank) as store:
        assert list(store.keys()) == ["d0", "d1"]


def test_a_title_is_the_text_of_a_document_without_one(run, model, tmp_path):
    path, bank = tmp_path / "docs.jsonl", tmp_path / "bank"
    long = " ".join(f"Part {n} of a long title." for n in range(20))
    write_documents(path, [Document("a", "", "Only"), Document("b", " \n", long)])
    code, out, err = run(checkpoint=model, documents=path, bank=bank, max_document_tokens=48)
    assert code == 0 and out.startswith("2 documents added"), err
    with Store.open(bank) as store:
        first, *rest = store.passages(store.parts().ids)
        assert (first.key, first.title, first.text) == ("a", "Only", "Only")
        assert len(rest) > 1 and " ".join(part.text for part in rest) == long


def test_an_estimate_makes_nothing(run, model, documents, tmp_path):
    bank = tmp_path / "bank"
    code, out, err = run(checkpoint=model, documents=documents, bank=bank, estimate=True)
    assert code == 0, err
    assert not bank.exists()
    estimated = re.search(r"5 documents in 5 parts, (\d+) tokens: (\d+) chunks of up to 4", out)
    assert "routing keys" in out and "in use here, beside" in out and "room for" in out
    run(checkpoint=model, documents=documents, bank=bank)
    with Store.open(bank) as store:
        assert estimated.groups() == (str(store.num_tokens), str(store.num_chunks))


def test_an_estimate_of_a_number_of_tokens(run, model):
    """Two layers of 16 numbers of keys, and twice that of content, per chunk of 4 tokens."""
    code, out, _ = run(
        checkpoint=model, estimate=True, memory_tokens=100_000_000, key_dtype="float32"
    )
    assert code == 0
    assert out.startswith("100,000,000 tokens: 25,000,000 chunks")
    assert (
        "routing keys 3.2 GB (float32), content 3.2 GB (bfloat16), together on disk 6.4 GB" in out
    )
    code, out, _ = run(checkpoint=model, estimate=True, memory_tokens=10**14)
    assert code == 0 and "does not fit" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--bank is missing; name the directory of the bank"),
        ({"bank": "b"}, "--documents is missing; name a JSON Lines file, a folder or -"),
        ({"bank": "b", "documents": "none"}, "none: there is no such file or folder"),
        ({"bank": "b", "documents": "DOCS"}, "--checkpoint is missing; name a training run"),
        ({"estimate": True, "checkpoint": "MODEL"}, "--estimate needs --documents, or --memory_to"),
        ({"bnak": "b"}, "Unknown command line flag 'bnak'.*bank"),
        ({"key_dtype": "int4"}, "key_dtype=int4.*one of"),
    ],
    ids=str,
)
def test_what_the_user_can_mend_is_one_line(run, model, documents, tmp_path, flags, message):
    places = {"DOCS": documents, "MODEL": model, "b": tmp_path / "bank"}
    code, _, err = run(**{name: places.get(value, value) for name, value in flags.items()})
    assert code == 2
    assert re.fullmatch(f"error: .*{message}.*\n", err)


def test_a_bad_record_leaves_a_sound_bank(run, model, documents, tmp_path):
    with documents.open("a") as file:
        file.write('{"id": "d1", "text": "again"}\n')
    bank = tmp_path / "bank"
    code, _, err = run(checkpoint=model, documents=documents, bank=bank)
    assert code == 2 and "docs.jsonl:6: id 'd1' is already used at" in err.splitlines()[-1]
    with Store.open(bank) as store:
        assert store.num_documents == 0 and store.verify() == []


def test_a_bank_is_not_mixed(run, model, documents, tmp_path, tmp_path_factory):
    bank = tmp_path / "bank"
    run(checkpoint=model, documents=documents, bank=bank)
    code, _, err = run(documents=documents, bank=bank, key_dtype="int8")
    assert code == 2 and "--key_dtype=int8 is not what the bank was made with (bfloat16)" in err
    code, _, err = run(documents=documents, bank=bank, template="plain")
    assert code == 2 and "template" in err.splitlines()[-1]
    other = save_model(tmp_path_factory.mktemp("other"), rope_theta=77.0)
    code, _, err = run(documents=documents, bank=bank, checkpoint=other)
    assert code == 2 and "the bank was encoded with model" in err
    with Store.open(bank, write=True):
        code, _, err = run(documents=documents, bank=bank)
    assert code == 2 and len(err.splitlines()) == 1
