"""`python -m msa_jax.bank`: what a bank holds, removing, compacting, verifying."""

import io
import json
from functools import partial

import pytest

from msa_jax import bank as program
from msa_jax.memory.store import Store
from tests.memory.banks import create, put_text


@pytest.fixture
def bank(tmp_path):
    with create(tmp_path / "bank") as store:
        for key in ("first", "second", "third"):
            put_text(store, key, f"the text of the {key}, cut into several parts")
    return tmp_path / "bank"


@pytest.fixture
def run(run_program):
    """Runs the program; returns its exit code, what it printed, and its errors."""
    return partial(run_program, program)


def test_it_says_what_a_bank_holds(run, bank):
    code, out, _ = run(f"--bank={bank}")
    assert code == 0 and out.startswith("3 documents in ") and "checkpoint: here" in out


def test_documents_are_removed_and_their_space_is_given_back(run, bank):
    code, out, _ = run(f"--bank={bank}", "--delete=first,third")
    assert code == 0 and out.startswith("1 documents") and " and 0 B of removed" not in out
    code, out, _ = run(f"--bank={bank}", "--compact")
    assert code == 0 and "reclaimed." in out and " and 0 B of removed" in out
    with Store.open(bank) as store:
        assert list(store.keys()) == ["second"]


def test_any_key_can_be_removed(run, bank, monkeypatch):
    strange = ["a,b", "a\nb", "a\0b", " ", '"', "é"]
    with Store.open(bank, write=True) as store:
        for key in strange:
            put_text(store, key, "text")
    (bank.parent / "keys.json").write_text(json.dumps(strange[:3]))
    code, out, _ = run(f"--bank={bank}", f"--delete_from={bank.parent / 'keys.json'}")
    assert code == 0 and out.startswith("6 documents")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(strange[3:])))
    code, _, _ = run(f"--bank={bank}", "--delete_from=-", "--delete=first")
    with Store.open(bank) as store:
        assert code == 0 and list(store.keys()) == ["second", "third"]


@pytest.mark.parametrize("text", ["first", '"first"', "[1]", "", '{"first": 1}'])
def test_what_is_no_list_of_keys_changes_nothing(run, bank, text):
    (bank.parent / "keys.json").write_text(text)
    code, _, err = run(f"--bank={bank}", f"--delete_from={bank.parent / 'keys.json'}")
    assert code == 2 and "keys.json" in err and err.count("\n") == 1
    with Store.open(bank) as store:
        assert store.num_documents == 3


def test_a_key_that_is_not_there_changes_nothing(run, bank):
    code, _, err = run(f"--bank={bank}", "--delete=first,fourth")
    assert code == 2 and "'fourth'" in err and err.count("\n") == 1
    with Store.open(bank) as store:
        assert store.num_documents == 3


def test_damage_is_found(run, bank):
    code, out, _ = run(f"--bank={bank}", "--verify")
    assert code == 0 and out.endswith("Every byte is as it was written.\n")
    (segment,) = (bank / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    code, out, _ = run(f"--bank={bank}", "--verify")
    assert code == 1 and segment.name in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "--bank is missing"),
        (("--bank=nowhere",), "there is no bank"),
        (("--bank=nowhere", "verify"), "'verify' is not a flag"),
    ],
)
def test_mistakes_are_one_line(run, arguments, problem):
    code, _, err = run(*arguments)
    assert code == 2 and problem in err and err.count("\n") == 1
