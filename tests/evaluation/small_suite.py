"""A small suite on made-up documents, and a tiny model to measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msa_jax.data.records import Document, Question, write_documents, write_questions
from tests.engine.banks import save_model

ANIMALS = ("otter", "heron", "beaver", "falcon", "badger", "marten", "weasel", "plover")
DEEDS = ("guards the old mill", "sleeps under a boat", "paints the garden wall", "counts the stars")
SIZES = (200, 400, 1000)


def write_files(folder: Path, num_distractors: int = 120) -> None:
    """Documents about animals, which questions ask about, and others; a copy, a near copy."""
    documents = [
        Document(f"animal-{i}", f"The {animal} {DEEDS[i % 4]}.", animal.title(), {"source": "zoo"})
        for i, animal in enumerate(ANIMALS)
    ]
    documents.append(Document("copy", documents[0].text, documents[0].title, {"source": "zoo"}))
    write_documents(folder / "zoo.jsonl", documents)
    others = [
        Document(f"other-{i}", f"Value {i} of the series is {i * 7919 % 1000}.", f"Item {i}")
        for i in range(num_distractors)
    ]
    others.append(Document("near", "The heron is a bird of some rivers.", "heron"))
    others.append(Document("long", "A sentence about nothing at all. " * 60, "Long"))
    write_documents(folder / "others.jsonl", others)
    questions = [
        Question(
            f"q{i}",
            f"What does the {animal} do?" if i % 2 else f"The {animal}, and the {ANIMALS[i + 1]}?",
            (DEEDS[i % 4],),
            (f"animal-{i}",) if i % 2 else (f"animal-{i}", f"animal-{i + 1}"),
            metadata={"dataset": "zoo", "split": "dev" if i else "train"},
        )
        for i, animal in enumerate(ANIMALS)
    ]
    write_questions(folder / "questions.jsonl", questions)


def suite_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """A suite of these files, as a configuration file has it."""
    values = {
        "workdir": str(folder / "results"),
        "corpus": {
            "documents": (str(folder / "zoo.jsonl"), str(folder / "others.jsonl")),
            "max_document_tokens": 64,
            "id_space": 1000,
        },
        "sets": {
            "animals": {
                "questions": str(folder / "questions.jsonl"),
                "pools": ("zoo",),
                "dataset": "zoo",
                "split": "dev",
                "answered": 3,
            }
        },
        "distractors": (("others",),),
        "memory_tokens": SIZES,
        "answer_memory_tokens": SIZES,
        "tokenizer": "docs-4k",
        "encode_batch_tokens": 1024,
        "batch_size": 4,
        "answer_batch_size": 2,
        "interleave": {"max_rounds": 2, "max_documents_per_round": 1, "max_documents": 2},
        "max_answer_tokens": 4,
        "context_tokens": 360,
    }
    return values | changes


def write_model(folder: Path) -> str:
    """A random model; its folder."""
    folder.mkdir()
    return str(save_model(folder))
