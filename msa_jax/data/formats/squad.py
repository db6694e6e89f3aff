"""SQuAD 1.1 and 2.0: `{"version", "data": [{"title", "paragraphs": [{"context", "qas"}]}]}`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from msa_jax.data.formats.reading import (
    Fields,
    Record,
    paragraph,
    question_metadata,
    read_whole,
    split_of,
)
from msa_jax.data.records import Question

_DATASET = "squad"


def squad(path: Path) -> Iterator[Record]:
    """A document for each paragraph; questions that are impossible have no positive.

    Raises:
        RecordError: for a file that is not SQuAD's.
    """
    split = split_of(path)
    for article in read_whole(path).rows("data"):
        title = unquote(article.text("title")).replace("_", " ")
        for row in article.rows("paragraphs"):
            document = paragraph(_DATASET, row.text("context"), title)
            yield document
            for asked in row.rows("qas"):
                yield _question(asked, document.id, split)


def _question(asked: Fields, doc_id: str, split: str | None) -> Question:
    is_answerable = not ("is_impossible" in asked and asked["is_impossible"])
    # Without the field, that of a test set.
    given = asked.rows("answers") if "answers" in asked else []
    answers = [answer.text("text") for answer in given] if is_answerable else []
    return Question(
        id=asked.label("id"),
        question=asked.text("question"),
        answers=tuple(dict.fromkeys(answers)),
        positive_ids=(doc_id,) if is_answerable else (),
        metadata=question_metadata(_DATASET, split),
    )
