"""MS MARCO: the folder of passage ranking, or a file of question answering (v2.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from msa_jax.data.formats.ranking import msmarco_ranking
from msa_jax.data.formats.reading import (
    Fields,
    Record,
    head,
    paragraph,
    question_metadata,
    read_lines,
    read_whole,
    split_of,
)
from msa_jax.data.records import Question, RecordError

_DATASET = "msmarco"
_NO_ANSWER = "No Answer Present."
# An object that begins with an object: `{"answers": {"0": [...]}}`.
_COLUMNS = re.compile(r'\s*\{\s*"[^"]*"\s*:\s*\{')


def msmarco(path: Path) -> Iterator[Record]:
    """Reads a folder as `msmarco_ranking` does, and a file as questions with their passages.

    The file is the published object of columns, which is read whole, or has a line for each
    question, as the project's own tool writes it. Passages that were selected are positives.

    Raises:
        RecordError: for what is neither.
    """
    return msmarco_ranking(path) if path.is_dir() else _answering(path)


def _answering(path: Path) -> Iterator[Record]:
    split = split_of(path)
    for row in _columns(path) if _COLUMNS.match(head(path)) else read_lines(path):
        ids: dict[bool, list[str]] = {True: [], False: []}
        for passage in row.rows("passages"):
            document = paragraph(_DATASET, passage.text("passage_text"))
            yield document
            # Without the field, that of a test set.
            ids["is_selected" in passage and bool(passage["is_selected"])].append(document.id)
        positives = dict.fromkeys(ids[True])
        yield Question(
            id=row.label("query_id"),
            question=row.text("query"),
            answers=_answers(row),
            positive_ids=tuple(positives),
            negative_ids=tuple(x for x in dict.fromkeys(ids[False]) if x not in positives),
            metadata=question_metadata(_DATASET, split, type=row.text("query_type")),
        )


def _columns(path: Path) -> Iterator[Fields]:
    """The rows of an object `{field: {key: value}}`."""
    whole = read_whole(path).values
    columns = {name: column for name, column in whole.items() if isinstance(column, dict)}
    if "query_id" not in columns:
        raise RecordError(f"{path}: query_id is missing, or no object.")
    for key in columns["query_id"]:
        row = {name: column[key] for name, column in columns.items() if key in column}
        yield Fields(row, f"{path}, entry {key}")


def _answers(row: Fields) -> tuple[str, ...]:
    answers = row.texts("answers") if "answers" in row else []
    # Where there are none it is the text "[]".
    if "wellFormedAnswers" in row and isinstance(row["wellFormedAnswers"], list):
        answers += row.texts("wellFormedAnswers")
    return tuple(x for x in dict.fromkeys(answers) if x not in ("", _NO_ANSWER))
