"""Needles are hidden whole, training never sees a held-out key, equal seeds give equal corpora."""

import random
import re

import pytest

from msa_jax.config import ConfigError
from msa_jax.data import needles, records
from msa_jax.data.demo import SPLITS, DemoConfig, build_demo_corpus, cut_units
from msa_jax.data.needles import ADJECTIVES, KINDS, NOUNS, hide, is_heldout, make_needles
from msa_jax.data.tokenizer import Tokenizer

NEEDLE = re.compile(r"One of the special magic numbers for ([a-z]+-[a-z]+) is: (\d{7})\.")
COUNTS = {"single": 40, "multi_key": 40, "multi_value": 40}
HOSTS = [f"Passage {i} begins. It goes on\n\nand on! Then it ends" for i in range(9)]


def make(split="train", seed=0, counts=COUNTS):
    """Needles as (key, value) by document id, and questions by kind."""
    documents, questions = make_needles(HOSTS, counts, split=split, seed=seed)
    found = {document.id: NEEDLE.findall(document.text) for document in documents}
    assert all(len(pairs) == 1 for pairs in found.values())
    by_kind = {kind: [q for q in questions if q.id.startswith(f"needle-{kind}-")] for kind in KINDS}
    assert {kind: len(by_kind[kind]) for kind in KINDS} == counts
    return {id_: pairs[0] for id_, pairs in found.items()}, by_kind


def test_there_are_enough_keys_and_both_words_of_one_are_known():
    assert len(ADJECTIVES) * len(NOUNS) > 40_000
    words = ADJECTIVES + NOUNS
    assert len(set(words)) == len(words)
    assert all(re.fullmatch("[a-z]+", word) for word in words)


def test_a_tenth_of_the_keys_is_held_out():
    keys = [f"{adjective}-{noun}" for adjective in ADJECTIVES[:100] for noun in NOUNS[:100]]
    assert 0.08 < sum(map(is_heldout, keys)) / len(keys) < 0.12


def test_keys_of_training_are_never_held_out_and_unique():
    keys = {}
    for split in SPLITS:
        found, questions = make(split)
        keys[split] = [key for key, _ in found.values()]
        assert all(is_heldout(key) == (split == "heldout") for key in keys[split])
        # Only the two documents of a multi_value question may share a key.
        assert len(set(keys[split])) == len(keys[split]) - len(questions["multi_value"])
    assert not set(keys["train"]) & set(keys["heldout"])


def test_every_question_names_the_key_of_its_positives_and_answers_their_values():
    found, by_kind = make()
    for kind, questions in by_kind.items():
        for question in questions:
            (key,) = {found[id_][0] for id_ in question.positive_ids}
            values = [found[id_][1] for id_ in question.positive_ids]
            assert f" for {key} " in question.question
            assert question.answers == (", ".join(values),)
            assert len(set(values)) == len(values) == (2 if kind == "multi_value" else 1)


def test_hard_negatives_share_exactly_one_word():
    found, by_kind = make()
    for question in by_kind["multi_key"]:
        words = set(found[question.positive_ids[0]][0].split("-"))
        others = [set(found[id_][0].split("-")) for id_ in question.negative_ids]
        assert [len(words & other) for other in others] == [1] * needles.HARD_NEGATIVES
    assert not any(q.negative_ids for kind in ("single", "multi_value") for q in by_kind[kind])


def test_needles_depend_on_the_seed_alone():
    assert make(seed=3) == make(seed=3)
    assert make(seed=3) != make(seed=4)


def test_too_many_questions_for_the_keys_is_an_error(monkeypatch):
    monkeypatch.setattr(needles, "NOUNS", NOUNS[:2])
    monkeypatch.setattr(needles, "ADJECTIVES", ADJECTIVES[:2])
    with pytest.raises(ValueError, match="no more keys"):
        make_needles(HOSTS, {"single": 5}, split="train", seed=0)


def test_needle_goes_to_every_sentence_boundary_and_leaves_the_text_as_it_was():
    text = "One. Two v1.5 here!\n\nThree"
    results = {hide("<needle>", text, random.Random(seed)) for seed in range(60)}
    assert results == {
        "<needle> One. Two v1.5 here!\n\nThree",
        "One. <needle> Two v1.5 here!\n\nThree",
        "One. Two v1.5 here!\n\n<needle> Three",
        "One. Two v1.5 here!\n\nThree <needle>",
    }


def test_cut_units_fills_runs_and_leaves_out_what_fits_in_none():
    runs = [list(range(9))[run] for run in cut_units([3, 3, 3, 4, 11, 2, 2, 10, 1], limit=10)]
    assert runs == [[0, 1, 2], [3], [5, 6], [7], [8]]
    assert list(cut_units([], 10)) == []


CORPUS = DemoConfig(
    packages=("ml_collections", "absl", "etils"),
    train_needles=40,
    train_docstrings=20,
    heldout_needles=12,
    heldout_docstrings=5,
    heldout_tokens=3000,
)


def read_corpus(folder):
    return {
        split: (
            records.read_documents(folder / f"{split}.documents.jsonl"),
            records.read_questions(folder / f"{split}.questions.jsonl"),
        )
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    counts = build_demo_corpus(folder, CORPUS)
    return folder, counts, read_corpus(folder)


def test_corpus_has_the_questions_that_were_asked_for(corpus):
    _, counts, splits = corpus
    expected = {
        "train": {"needle-single": 20, "needle-multi_key": 10, "needle-multi_value": 10}
        | {"docstring": 20},
        "heldout": {"needle-single": 6, "needle-multi_key": 3, "needle-multi_value": 3}
        | {"docstring": 5},
    }
    for split, (documents, questions) in splits.items():
        records.check_references(documents, questions)
        kinds = [question.id.partition(f"-{split}-")[0] for question in questions]
        assert {kind: kinds.count(kind) for kind in set(kinds)} == expected[split]
        assert counts[f"{split}_documents"] == len(documents)
        assert counts[f"{split}_questions"] == len(questions)
    assert counts["heldout_passage_tokens"] >= CORPUS.heldout_tokens


def test_splits_share_no_docstring_no_text_and_no_key(corpus):
    _, _, splits = corpus
    train, heldout = (splits[split][0] for split in SPLITS)
    for what in (
        lambda document: document.id,
        lambda document: document.text,
        lambda document: document.metadata.get("source"),
    ):
        assert not ({what(d) for d in train} & {what(d) for d in heldout}) - {None}
    train_text = "\n".join(document.text for document in train)
    heldout_keys = NEEDLE.findall("\n".join(document.text for document in heldout))
    assert heldout_keys
    assert not any(key in train_text for key, _ in heldout_keys)


def test_documents_have_the_length_that_was_asked_for(corpus):
    tokenizer = Tokenizer.load(CORPUS.tokenizer)
    for documents, _ in corpus[2].values():
        lengths = [len(ids) for ids in tokenizer.encode_batch([d.text for d in documents])]
        # White space at the ends, and beside a needle, may count one or two tokens differently.
        assert max(lengths) <= CORPUS.document_tokens + 2
        assert min(lengths) >= CORPUS.min_document_tokens - 2


def test_summary_of_a_docstring_is_not_in_the_documents_that_answer_it(corpus):
    for documents, questions in corpus[2].values():
        texts = {document.id: document.text for document in documents}
        for question in questions:
            if question.id.startswith("docstring-"):
                assert len(question.question.split()) >= 5
                body = " ".join(" ".join(texts[id_] for id_ in question.positive_ids).split())
                assert body and question.question not in body


def test_equal_configurations_give_equal_files(corpus, tmp_path):
    folder, counts, _ = corpus
    assert build_demo_corpus(tmp_path, CORPUS) == counts
    assert len(list(folder.iterdir())) == 5
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_corpus_is_built_again_only_when_something_changed(corpus, tmp_path, monkeypatch):
    for file in corpus[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def fail(*_):
        raise InterruptedError

    monkeypatch.setattr("msa_jax.data.demo.write_questions", fail)
    assert build_demo_corpus(tmp_path, CORPUS) == corpus[1]
    (tmp_path / "train.questions.jsonl").unlink()
    with pytest.raises(InterruptedError):
        build_demo_corpus(tmp_path, CORPUS)
    assert not (tmp_path / "corpus.json").exists()  # an interrupted build never counts as done


def test_installed_documentation_that_does_not_suffice_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no_such_package: too little documentation"):
        build_demo_corpus(tmp_path, DemoConfig(packages=("no_such_package",)))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"document_tokens": 50}, "document_tokens \\(50\\) must be at least"),
        ({"single": 0, "multi_key": 0, "multi_value": 0}, "are weights"),
        ({"single": -1}, "single must be a number from 0 on"),
    ],
)
def test_unusable_configurations_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DemoConfig(**fields)
