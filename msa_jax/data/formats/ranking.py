"""BEIR and MS MARCO's passage ranking: a collection, queries, and judgements of both.

The collection is read once, from end to end; queries and judgements are held in memory. Judgements
of a query or a document that is not there or is empty, which some of the published files have, are
left out, and so are empty documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msa_jax.data.formats.reading import Record, question_metadata, read_lines, read_table
from msa_jax.data.records import Document, Question, RecordError

# By query, the grade of each document that was judged.
Judgements = Mapping[str, Mapping[str, float]]

_BEIR_FILES = ("corpus.jsonl", "queries.jsonl")
_BEIR_JUDGEMENTS = re.compile(r"(.+)\.tsv(?:\.gz|\.xz)?")
_MS_MARCO, _COLLECTION = "msmarco", "collection.tsv"
_MS_MARCO_JUDGEMENTS = re.compile(r"qrels\.(.+)\.tsv(?:\.gz|\.xz)?")


def beir(folder: Path) -> Iterator[Record]:
    """Reads `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

    The folder's name is that of the dataset.

    Raises:
        RecordError: for a folder that is not BEIR's.
    """
    dataset = folder.resolve().name
    corpus, queries = (find(folder, name) for name in _BEIR_FILES)
    judged = {
        split: _judgements(path, dataset, ("query", "document", "grade"))
        for split, path in _splits(folder / "qrels", _BEIR_JUDGEMENTS).items()
    }
    texts = {row.label("_id"): row.text("text") for row in read_lines(queries)}
    return _records(dataset, _beir_corpus(corpus, dataset), texts, judged)


def msmarco_ranking(folder: Path) -> Iterator[Record]:
    """Reads `collection.tsv`, and `queries.<split>.tsv` for each `qrels.<split>.tsv`.

    Raises:
        RecordError: for a folder that is not that of MS MARCO's passage ranking.
    """
    collection = find(folder, _COLLECTION)
    judged, texts = {}, {}
    for split, path in _splits(folder, _MS_MARCO_JUDGEMENTS).items():
        judged[split] = _judgements(path, _MS_MARCO, ("query", "", "document", "grade"))
        for _, (query_id, text) in read_table(find(folder, f"queries.{split}.tsv"), 2):
            texts[query_id] = text.strip()
    return _records(_MS_MARCO, _collection(collection), texts, judged)


def find(folder: Path, name: str) -> Path:
    """A file of a folder, plain or compressed.

    Raises:
        RecordError: if there is none.
    """
    for suffix in ("", ".gz", ".xz"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise RecordError(f"{folder}: the folder has no {name}, plain or as .gz or .xz.")


def _splits(folder: Path, pattern: re.Pattern) -> dict[str, Path]:
    """The files of judgements by split."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {match[1]: path for path in paths if (match := pattern.fullmatch(path.name))}
    if not found:
        raise RecordError(f"{folder}: there is no file of judgements ({pattern.pattern}).")
    return found


def _judgements(path: Path, dataset: str, columns: tuple[str, ...]) -> Judgements:
    judged: dict[str, dict[str, float]] = {}
    for number, (where, values) in enumerate(read_table(path, len(columns))):
        row = dict(zip(columns, values, strict=True))
        try:
            grade = float(row["grade"])
        except ValueError:
            if number == 0:
                continue  # The names of the columns.
            message = f"{where}: the grade must be a number, not {row['grade']!r}."
            raise RecordError(message) from None
        judged.setdefault(row["query"], {})[f"{dataset}-{row['document']}"] = grade
    return judged


def _beir_corpus(path: Path, dataset: str) -> Iterator[Document]:
    for row in read_lines(path):
        title = row.text("title") if "title" in row else ""
        doc_id = f"{dataset}-{row.label('_id')}"
        yield Document(doc_id, row.text("text"), title, {"source": dataset})


def _collection(path: Path) -> Iterator[Document]:
    for _, (passage_id, text) in read_table(path, 2):
        yield Document(f"{_MS_MARCO}-{passage_id}", text.strip(), "", {"source": _MS_MARCO})


def _records(
    dataset: str,
    corpus: Iterable[Document],
    queries: Mapping[str, str],
    judged: Mapping[str, Judgements],
) -> Iterator[Record]:
    wanted = {doc_id for split in judged.values() for grades in split.values() for doc_id in grades}
    present = set()
    for document in corpus:
        if not document.text.strip():
            continue
        if document.id in wanted:
            present.add(document.id)
        yield document
    for query_id, text in queries.items():
        # One that nobody judged has no positive.
        for split in [x for x in judged if query_id in judged[x]] or [None]:
            grades = judged[split][query_id] if split else {}
            yield Question(
                id=query_id,
                question=text,
                positive_ids=tuple(x for x in grades if x in present and grades[x] > 0),
                negative_ids=tuple(x for x in grades if x in present and grades[x] <= 0),
                metadata=question_metadata(dataset, split),
            )
