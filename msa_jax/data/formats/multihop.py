"""HotpotQA, 2WikiMultiHopQA and MuSiQue: questions with paragraphs, of which some are needed.

The other paragraphs are the negatives. A question of which a needed paragraph is not there, as it
can be in HotpotQA's fullwiki files, has no positive; nor have those of test sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msa_jax.data.formats.reading import (
    Fields,
    Record,
    paragraph,
    question_metadata,
    read_lines,
    read_list,
    split_of,
)
from msa_jax.data.hops import infer_hops, names
from msa_jax.data.records import Document, Question

_HOTPOTQA, _TWO_WIKI, _MUSIQUE = "hotpotqa", "2wiki", "musique"
# Questions that name all the things that they ask about, which are therefore found at once.
_COMPARISON = "comparison"


def hotpotqa(path: Path) -> Iterator[Record]:
    """Reads `[{"_id", "question", "answer", "type", "supporting_facts", "context"}]`.

    The file does not tell which paragraph of a bridge question leads to which: see `infer_hops`.

    Raises:
        RecordError: for a file that is not HotpotQA's.
    """
    split = split_of(path)
    for entry in read_list(path):
        documents, needed = _context(entry, _HOTPOTQA)
        yield from documents
        question = _question(entry, "_id", documents, needed, _HOTPOTQA, split)
        is_bridge = question.metadata.get("type") != _COMPARISON
        yield infer_hops(question, needed) if is_bridge else question


def two_wiki(path: Path) -> Iterator[Record]:
    """Reads the fields of `hotpotqa` and `evidences`, `[[subject, relation, object]]`.

    The paragraph about what a triple has found is needed after the one about its subject.

    Raises:
        RecordError: for a file that is not 2WikiMultiHopQA's.
    """
    split = split_of(path)
    for entry in read_list(path):
        documents, needed = _context(entry, _TWO_WIKI)
        yield from documents
        hops = _hops_of_evidences(entry, needed)
        question = _question(entry, "_id", documents, needed, _TWO_WIKI, split, hops or ())
        yield infer_hops(question, needed) if hops is None else question


def musique(path: Path) -> Iterator[Record]:
    """Reads lines of `{"id", "question", "answer", "paragraphs", "question_decomposition"}`.

    Every step of the decomposition that needs a new paragraph is a retrieval.

    Raises:
        RecordError: for a file that is not MuSiQue's.
    """
    split = split_of(path)
    for entry in read_lines(path):
        by_index = {
            row.label("idx"): paragraph(_MUSIQUE, row.text("paragraph_text"), row.text("title"))
            for row in entry.rows("paragraphs")
        }
        documents = list(by_index.values())
        yield from documents
        needed = _found([by_index.get(index) for index in _supports(entry)])
        hops = [(document.id,) for document in needed]
        yield _question(entry, "id", documents, needed, _MUSIQUE, split, hops)


def _context(entry: Fields, dataset: str) -> tuple[list[Document], list[Document]]:
    """All paragraphs, and those of the supporting facts."""
    documents = [
        paragraph(dataset, " ".join(filter(None, row.texts("sentences"))), row.text("title"))
        for row in entry.tuples("context", ("title", "sentences"))
    ]
    by_title = {document.title: document for document in documents}
    if "supporting_facts" not in entry:
        return documents, []
    facts = entry.tuples("supporting_facts", ("title", "sentence"))
    return documents, _found([by_title.get(fact.text("title")) for fact in facts])


def _supports(entry: Fields) -> list[str]:
    """Indexes of the paragraphs that the steps of a question need."""
    if "question_decomposition" not in entry or ("answerable" in entry and not entry["answerable"]):
        return []
    return [step.label("paragraph_support_idx") for step in entry.rows("question_decomposition")]


def _found(needed: Sequence[Document | None]) -> list[Document]:
    """Each of the documents once; none if one of them is not there."""
    if None in needed:
        return []
    return list({document.id: document for document in needed}.values())


def _hops_of_evidences(entry: Fields, needed: Sequence[Document]) -> list[tuple[str, ...]] | None:
    """Ids of documents by step; None if the triples are not about all of them."""
    if "evidences" not in entry:
        return None
    triples = [
        (row.text("subject"), row.text("object"))
        for row in entry.tuples("evidences", ("subject", "relation", "object"))
    ]
    steps: dict[str, int] = {}
    for subject, found in triples:
        steps.setdefault(subject, 0)
        steps[found] = steps[subject] + 1
    by_step: dict[int, list[str]] = {}
    for document in needed:
        of_document = [steps[subject] for subject, _ in triples if names(subject, document)]
        if not of_document:
            return None
        by_step.setdefault(min(of_document), []).append(document.id)
    return [tuple(by_step[step]) for step in sorted(by_step)]


def _question(
    entry: Fields,
    id_name: str,
    documents: Sequence[Document],
    needed: Sequence[Document],
    dataset: str,
    split: str | None,
    hops: Sequence[tuple[str, ...]] = (),
) -> Question:
    answers = [entry.label("answer")] if "answer" in entry else []
    if "answer_aliases" in entry:
        answers += entry.texts("answer_aliases")
    positives = [document.id for document in needed]
    negatives = [document.id for document in documents if document.id not in positives]
    return Question(
        id=entry.label(id_name),
        question=entry.text("question"),
        answers=tuple(dict.fromkeys(filter(None, answers))),
        positive_ids=tuple(positives),
        negative_ids=tuple(dict.fromkeys(negatives)),
        hops=tuple(hops) if len(hops) > 1 else (),
        metadata=question_metadata(dataset, split, **_kinds(entry)),
    )


def _kinds(entry: Fields) -> Mapping[str, str]:
    return {name: entry.text(name) for name in ("type", "level") if name in entry}
