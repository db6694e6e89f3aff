"""RULER's needles against the published definition, which is written down here once more."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import uuid
from typing import NamedTuple

import hypothesis
import pytest
from hypothesis import strategies as st

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.data.needles import is_heldout
from msa_jax.data.parts import PartWriter
from msa_jax.data.records import Document, RecordError, write_documents
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.evaluation.ruler import haystack as haystacks
from msa_jax.evaluation.ruler import tasks
from msa_jax.evaluation.ruler.benchmark import Ruler, score
from msa_jax.evaluation.ruler.tasks import SUBTASKS, Needle, wording

MAX_DOCUMENT_TOKENS, NUM_SAMPLES, SIZE = 256, 6, 16_384
ONE_NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")
PATTERNS = {
    "words": r"[a-z]+-[a-z]+",
    "numbers": r"[1-9][0-9]{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


class Published(NamedTuple):
    """A line of the benchmark's table of subtasks."""

    name: str
    haystack: str
    keys: str
    values: str
    num_keys: int
    num_values: int
    num_queries: int


PUBLISHED = [
    Published("niah_single_1", "noise", "words", "numbers", 1, 1, 1),
    Published("niah_single_2", "essay", "words", "numbers", 1, 1, 1),
    Published("niah_single_3", "essay", "words", "uuids", 1, 1, 1),
    Published("niah_multikey_1", "essay", "words", "numbers", 4, 1, 1),
    Published("niah_multikey_2", "needle", "words", "numbers", 1, 1, 1),
    Published("niah_multikey_3", "needle", "uuids", "uuids", 1, 1, 1),
    Published("niah_multivalue", "essay", "words", "numbers", 1, 4, 1),
    Published("niah_multiquery", "essay", "words", "numbers", 4, 1, 4),
]
each_subtask = pytest.mark.parametrize("published", PUBLISHED, ids=lambda x: x.name)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def essay(rng: random.Random, num_sentences: int) -> str:
    words = [
        "river",
        "stone",
        "cloud",
        "amber",
        "violet",
        "copper",
        "engine",
        "meadow",
        "signal",
        "harbor",
        "lantern",
    ]
    sentences = (
        " ".join(rng.choices(words, k=rng.randrange(4, 12))).capitalize() + rng.choice(".!?")
        for _ in range(num_sentences)
    )
    return "".join(x + ("\n\n" if i % 9 == 8 else " ") for i, x in enumerate(sentences))


@pytest.fixture(scope="module")
def builder():
    return PromptBuilder(TEMPLATES["plain"], Tokenizer.load("docs-4k"), MemoryConfig())


@pytest.fixture(scope="module")
def essays(tmp_path_factory):
    """A folder with less text than the smallest memory."""
    folder, rng = tmp_path_factory.mktemp("essays"), random.Random(0)
    for name, num_sentences in (("a.txt", 40), ("b.md", 3), ("c.txt", 200)):
        (folder / name).write_text(essay(rng, num_sentences), encoding="utf-8")
    (folder / "empty.txt").write_text(" \n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def ruler(builder, essays):
    return Ruler(builder, MAX_DOCUMENT_TOKENS, NUM_SAMPLES, seed=42, essays=essays)


def needles_of(task, sample):
    """Key and value of all needles in the documents that are the sample's own, by hand."""
    texts = [x.text for x in sample.documents]
    if task.subtask.haystack == "needle":
        rest = {line for i in sample.replaced for line in task.haystack[i].text.split("\n")}
        texts = ["\n".join(x for x in text.split("\n") if x not in rest) for text in texts]
    return [ONE_NEEDLE.findall(text) for text in texts]


def test_there_are_the_eight_published_subtasks():
    assert list(SUBTASKS) == [published.name for published in PUBLISHED]


@each_subtask
def test_a_sample_hides_and_asks_what_was_published(ruler, published):
    task = ruler.task(published.name, SIZE)
    assert len(task.samples) == NUM_SAMPLES
    for sample in task.samples:
        found = needles_of(task, sample)
        assert all(len(one) == 1 for one in found), "a needle in each document"
        needles = [one[0] for one in found]
        assert len(needles) == published.num_keys * published.num_values
        by_key = {}
        for kind, key, value in needles:
            assert kind == published.values
            assert re.fullmatch(PATTERNS[published.keys], key)
            assert re.fullmatch(PATTERNS[published.values], value)
            by_key.setdefault(key, set()).add(value)
        assert len(by_key) == published.num_keys
        assert {len(values) for values in by_key.values()} == {published.num_values}
        asked = [key for key in by_key if key in sample.question.question]
        assert len(asked) == published.num_queries
        assert set(sample.references) == set().union(*(by_key[key] for key in asked))
        assert len(sample.references) == published.num_queries * published.num_values
        positive = [x.id for x, (n,) in zip(sample.documents, found, strict=True) if n[1] in asked]
        assert list(sample.question.positive_ids) == positive
        others = {document.id for document in sample.documents} - set(positive)
        assert set(sample.question.negative_ids) == others
        if published.keys == "words":
            assert all(map(is_heldout, by_key)), "no training has seen them"
        else:
            assert all(uuid.UUID(key).version == 4 for key in by_key)


def test_questions_are_worded_as_published():
    single, number = SUBTASKS["niah_single_3"], SUBTASKS["niah_multikey_1"]
    assert wording(single, ["old-cat"]) == (
        "A special magic uuid is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the uuid afterwards.",
        "What is the special magic uuid for old-cat mentioned in the provided text?",
        "The special magic uuid for old-cat mentioned in the provided text is",
    )
    assert wording(number, ["old-cat"]).question == (
        "What is the special magic number for old-cat mentioned in the provided text?"
    )
    assert wording(SUBTASKS["niah_multivalue"], ["old-cat"]) == (
        "Some special magic numbers are hidden within the following text. Make sure to memorize "
        "it. I will quiz you about the numbers afterwards.",
        "What are all the special magic numbers for old-cat mentioned in the provided text?",
        "The special magic numbers for old-cat mentioned in the provided text are",
    )
    assert wording(SUBTASKS["niah_multiquery"], ["a-b", "c-d", "e-f", "g-h"]).question == (
        "What are all the special magic numbers for a-b, c-d, e-f, and g-h mentioned in the "
        "provided text?"
    )


@each_subtask
def test_haystacks_are_of_the_published_kind(ruler, essays, published):
    texts = [document.text for document in ruler.task(published.name, SIZE).haystack]
    if published.haystack == "noise":
        assert {line for text in texts for line in text.split("\n")} == {NOISE}
    elif published.haystack == "needle":
        found = [ONE_NEEDLE.fullmatch(line) for text in texts for line in text.split("\n")]
        assert all(found) and {one[1] for one in found} == {published.values}
        assert all(re.fullmatch(PATTERNS[published.keys], one[2]) for one in found)
        assert all(re.fullmatch(PATTERNS[published.values], one[3]) for one in found)
        assert len({one[0] for one in found}) == len(found)
    else:
        files = sorted(path for path in essays.iterdir())
        words = " ".join(path.read_text(encoding="utf-8") for path in files).split()
        ours = " ".join(texts).split()
        assert len(ours) > len(words), "text is repeated"
        assert ours == list(itertools.islice(itertools.cycle(words), len(ours)))


@each_subtask
def test_each_needle_is_in_the_memory_of_its_sample_once(ruler, published):
    task = ruler.task(published.name, SIZE)
    for sample in task.samples:
        memory = "\n".join(document.text for document in task.memory(sample))
        for ((_, key, value),) in needles_of(task, sample):
            assert memory.count(value) == 1
            assert memory.count(f" for {key} is: ") == published.num_values
        kept = set(range(len(task.haystack))) - set(sample.replaced)
        ids = [document.id for document in task.memory(sample)]
        assert {task.haystack[i].id for i in kept} == set(ids) - {x.id for x in sample.documents}
        assert len(set(ids)) == len(ids) == len(kept) + len(sample.documents)
    ids = [document.id for document in task.documents]
    assert len(set(ids)) == len(ids)


@each_subtask
@pytest.mark.parametrize("size", [SIZE, 3 * SIZE + 1000])
def test_sizes_are_hit_to_a_document(ruler, builder, published, size):
    task = ruler.task(published.name, size)
    writer = PartWriter(builder, MAX_DOCUMENT_TOKENS)
    for sample in task.samples[:3]:
        parts = writer.split(list(task.memory(sample)))
        assert all(len(own) == 1 for own in parts), "a bank would cut no document again"
        num_tokens = sum(len(own[0].tokens) for own in parts)
        assert num_tokens == sample.num_tokens
        assert size - MAX_DOCUMENT_TOKENS < num_tokens <= size


@pytest.mark.parametrize("max_document_tokens", [MAX_DOCUMENT_TOKENS, 4096])
def test_essays_hide_needles_at_distinct_ones_of_40_depths(builder, essays, max_document_tokens):
    ruler = Ruler(builder, max_document_tokens, NUM_SAMPLES, seed=42, essays=essays)
    seen = set()
    for name in ("niah_multiquery", "niah_single_2"):
        task = ruler.task(name, 4 * SIZE)
        for sample in task.samples:
            memory = "\n".join(document.text for document in task.memory(sample))
            found = [match.start() / len(memory) for match in ONE_NEEDLE.finditer(memory)]
            nearest = [min(range(40), key=lambda step: abs(step / 39 - x)) for x in found]
            assert len(set(nearest)) == len(found)
            for step, depth in zip(nearest, found, strict=True):
                assert abs(step / 39 - depth) < 0.012
            seen.update(nearest)
    assert len(seen) > 10


def test_a_document_with_two_needles_is_cut_halfway_between_them():
    text = "One. Two is it. Three. Four was it. Five. Six. Seven. Eight."
    first, last = Needle("a-b", "1", "numbers"), Needle("c-d", "2", "numbers")
    assert haystacks.hide(text, [first, last], [0.25, 0.75], is_essay=True) == [
        f"One. Two is it. {first} Three. Four was it.",
        f"Five. Six. {last} Seven. Eight.",
    ]
    assert haystacks.hide("one\ntwo", [first], [0.5], is_essay=False) == [f"one\n{first}\ntwo"]


def reader(task, sample, memory):
    """Reads the documents, and finds what the question names by its words alone."""
    names = re.search(r" for (.*) mentioned", sample.question.question)[1]
    asked = names.replace(", and ", ", ").split(", ")
    found = [x for document in memory for x in ONE_NEEDLE.findall(document.text)]
    return "They are " + " and ".join(value.upper() for _, key, value in found if key in asked)


@each_subtask
def test_a_reader_that_finds_everything_scores_100_and_a_silent_one_0(ruler, published):
    task = ruler.task(published.name, SIZE)
    answers = [reader(task, sample, task.memory(sample)) for sample in task.samples]
    assert score(task, answers) == 100.0
    assert score(task, [""] * NUM_SAMPLES) == 0.0
    assert score(task, answers[1:] + answers[:1]) == 0.0
    assert score(task, answers[:1] + [""] * (NUM_SAMPLES - 1)) == round(100 / NUM_SAMPLES, 2)
    without = [reader(task, sample, task.haystack) for sample in task.samples]
    assert score(task, without) == 0.0, "answers are in the documents of the sample"
    with pytest.raises(ValueError):
        score(task, answers[1:])


def digest(task):
    records = [[x.id, x.text] for x in task.documents]
    for x in task.samples:
        records.append([x.question.id, x.question.question, x.references, x.replaced, x.num_tokens])
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:16]


DIGESTS = {
    "niah_single_1": "3d4cbfe7507e0325",
    "niah_single_2": "be7d8ffa8e8f2352",
    "niah_single_3": "f6d333cf31f8f93f",
    "niah_multikey_1": "80e34872c4c3793e",
    "niah_multikey_2": "498eaaeb33ac0883",
    "niah_multikey_3": "3120e46204235cc4",
    "niah_multivalue": "f480484bc277c06b",
    "niah_multiquery": "a73ea294189865af",
}


@each_subtask
def test_equal_seeds_give_equal_bytes_on_every_machine(ruler, builder, essays, published):
    assert digest(ruler.task(published.name, SIZE)) == DIGESTS[published.name]
    again = Ruler(builder, MAX_DOCUMENT_TOKENS, NUM_SAMPLES, seed=42, essays=essays)
    again.task(published.name, SIZE // 2)  # Whatever was asked for before.
    assert digest(again.task(published.name, SIZE)) == DIGESTS[published.name]
    other = Ruler(builder, MAX_DOCUMENT_TOKENS, NUM_SAMPLES, seed=43, essays=essays)
    other = other.task(published.name, SIZE)
    assert digest(other) != DIGESTS[published.name]
    ours = {text for x in ruler.task(published.name, SIZE).samples for text in x.references}
    assert not ours & {text for x in other.samples for text in x.references}


def test_samples_are_the_same_at_every_size_and_of_any_number(ruler, builder, essays):
    large, small = (ruler.task("niah_multikey_1", size) for size in (2 * SIZE, SIZE))
    fewer = Ruler(builder, MAX_DOCUMENT_TOKENS, 2, seed=42, essays=essays)
    few = fewer.task("niah_multikey_1", SIZE)
    for a, b in zip(large.samples, small.samples, strict=True):
        assert (a.question.question, a.references) == (b.question.question, b.references)
    for a, b in zip(few.samples, small.samples, strict=False):
        assert (a.question.question, a.references) == (b.question.question, b.references)


def test_subtasks_and_sizes_share_a_haystack(ruler):
    large = ruler.task("niah_multikey_1", 2 * SIZE).haystack
    small = ruler.task("niah_single_3", SIZE).haystack
    assert len(small) < len(large)
    assert all(a is b for a, b in zip(small, large, strict=False))


def test_no_needle_of_a_haystack_has_the_key_of_a_sample(builder, monkeypatch):
    # So few keys that most of them would be in every haystack.
    for words in ("ADJECTIVES", "NOUNS"):
        monkeypatch.setattr(tasks, words, getattr(tasks, words)[:24])
    ruler = Ruler(builder, MAX_DOCUMENT_TOKENS, NUM_SAMPLES, seed=0)
    task = ruler.task("niah_multikey_2", 4 * SIZE)
    haystack = "\n".join(document.text for document in task.haystack)
    keys = {key for sample in task.samples for ((_, key, _),) in needles_of(task, sample)}
    assert len(keys) > NUM_SAMPLES // 2
    assert not keys & {key for _, key, _ in ONE_NEEDLE.findall(haystack)}


def test_no_needle_of_a_haystack_has_a_value_of_a_sample(builder):
    writer = PartWriter(builder, MAX_DOCUMENT_TOKENS)

    def values(taken):
        subtask = SUBTASKS["niah_multikey_2"]
        texts = haystacks.needle_texts(writer, builder, subtask, taken, seed=0)
        text = "\n".join(x.text for x in itertools.islice(texts, 50))
        return {value for _, _, value in ONE_NEEDLE.findall(text)}

    taken = set(itertools.islice(sorted(values(())), 50))
    assert not taken & values(taken)


def test_essays_can_be_json_lines(builder, essays, tmp_path):
    paths = sorted(essays.iterdir())
    texts = [(x.name, x.read_text(encoding="utf-8")) for x in paths]
    documents = [Document(name, text, "a title" if text.strip() else "") for name, text in texts]
    write_documents(tmp_path / "essays.jsonl", documents)
    ruler = Ruler(
        builder, MAX_DOCUMENT_TOKENS, NUM_SAMPLES, seed=42, essays=tmp_path / "essays.jsonl"
    )
    assert digest(ruler.task("niah_single_2", SIZE)) == DIGESTS["niah_single_2"]


@hypothesis.given(
    text=st.text("ab. \n", max_size=60).map(str.strip),
    depths=st.lists(st.integers(0, 8).map(lambda x: x / 8), min_size=1, max_size=4, unique=True),
    is_essay=st.booleans(),
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_hidden_needles_leave_the_text_as_it_was(text, depths, is_essay):
    needles = [Needle(f"key-{i}", str(i), "numbers") for i in range(len(depths))]
    texts = haystacks.hide(text, needles, sorted(depths), is_essay)
    assert len(texts) == len(needles)
    rest = []
    for needle, one in zip(needles, texts, strict=True):
        assert one.count("One of the special") == 1 and one == one.strip()
        before, after = one.split(str(needle))
        assert before == "" or before[-1] in " \n"
        assert after == "" or after[0] in " \n"
        rest += [before, after]
    assert "".join("".join(rest).split()) == "".join(text.split())
    assert " ".join(rest).split() == text.split()
    if depths == [0.0]:
        assert texts[0].startswith(str(needles[0]))
    if depths == [1.0]:
        assert texts[0].endswith(str(needles[0]))


@pytest.mark.parametrize(
    ("changes", "name", "size", "error", "message"),
    [
        ({}, "niah_single_4", SIZE, ConfigError, "subtask 'niah_single_4' is not one of"),
        ({"essays": None}, "niah_single_2", SIZE, ConfigError, "name a folder of text files"),
        ({"essays": "nowhere"}, "niah_single_2", SIZE, RecordError, "no such file or folder"),
        ({}, "niah_multivalue", 200, ConfigError, "no room for a document beside"),
        ({"max_document_tokens": 100}, "niah_single_1", SIZE, ConfigError, "beside a needle of"),
        ({"max_document_tokens": 130}, "niah_multikey_3", SIZE, ConfigError, "a line of the"),
    ],
)
def test_what_cannot_be_is_an_error(builder, essays, changes, name, size, error, message):
    arguments = {
        "max_document_tokens": MAX_DOCUMENT_TOKENS,
        "num_samples": NUM_SAMPLES,
        "seed": 0,
        "essays": essays,
    } | changes
    with pytest.raises(error, match=message):
        Ruler(builder, **arguments).task(name, size)


def test_essays_without_text_are_an_error(builder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    ruler = Ruler(builder, MAX_DOCUMENT_TOKENS, 1, seed=0, essays=tmp_path)
    with pytest.raises(ConfigError, match="haystack essay: all documents are without text"):
        ruler.task("niah_single_2", SIZE)
