"""A small tokenizer and a small corpus, made for the tests."""

import random

import pytest
import tokenizers

from msa_jax.config import MemoryConfig
from msa_jax.data.records import Document, Question, write_documents, write_questions
from msa_jax.data.tokenizer import Tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_end|>"]
WORDS = [
    *("river", "stone", "cloud", "amber", "violet", "copper", "engine", "meadow", "signal"),
    *("harbor", "lantern", "marble", "orchid", "pepper", "quartz", "saddle", "timber", "velvet"),
    *("walnut", "zephyr", "anchor", "basket", "candle", "dragon", "ember", "falcon"),
]


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory):
    """A byte-level BPE of 400 tokens; `<End-of-Retrieve>` is added but not marked special."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = " ".join(WORDS) + " user\n The answer to the question is: What is the"
    backend.train_from_iterator([text] * 3, trainer)
    backend.add_tokens(["<End-of-Retrieve>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path):
    return Tokenizer.load(tokenizer_path)


@pytest.fixture(scope="session")
def memory_config(tokenizer):
    head_len = len(tokenizer.encode_template("<|im_start|>user\n"))
    return MemoryConfig(pooling_kernel_size=8, top_k_docs=4, head_len=head_len)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Paths of 60 documents and 24 questions; every third question has two hops."""
    rng = random.Random(0)
    documents = [
        Document(
            id=f"doc-{index}",
            title=f"Note {index}" if index % 2 else "",
            text=f"code {index} opens. " + " ".join(rng.choices(WORDS, k=rng.randint(3, 20))),
        )
        for index in range(60)
    ]
    questions = []
    for index in range(24):
        positives = (f"doc-{index}", f"doc-{index + 24}") if index % 3 == 0 else (f"doc-{index}",)
        questions.append(
            Question(
                id=f"question-{index}",
                question=f"What is code {index}?",
                answers=(f"code {index}",),
                positive_ids=positives,
                negative_ids=(f"doc-{index + 30}", f"doc-{(index + 29)}"),
                hops=tuple((doc_id,) for doc_id in positives) if len(positives) > 1 else (),
            )
        )
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder / "documents.jsonl", documents)
    write_questions(folder / "questions.jsonl", questions)
    return folder / "documents.jsonl", folder / "questions.jsonl"


@pytest.fixture(scope="session")
def articles():
    """40 documents with titles of two words; each names the next one and says when it was found."""
    names = [
        f"{one.capitalize()} {other.capitalize()}" for one in WORDS[:8] for other in WORDS[8:13]
    ]
    rng = random.Random(1)
    return [
        Document(
            id=f"article-{index}",
            title=name,
            text=(
                f"The {name} is known for its {' and '.join(rng.sample(WORDS[13:], 3))}. "
                f"It was discovered by {rng.choice(WORDS).capitalize()} Quimby in "
                f"{1500 + 7 * index}. "
                f"Many travellers go on from there to {names[(index + 1) % len(names)]} by boat."
            ),
        )
        for index, name in enumerate(names)
    ]


@pytest.fixture(scope="session")
def articles_path(tmp_path_factory, articles):
    path = tmp_path_factory.mktemp("articles") / "articles.jsonl"
    write_documents(path, articles)
    return path
