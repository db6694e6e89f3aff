"""LongMemEval: questions on the history of a user's chats with an assistant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msa_jax.data.formats.reading import (
    Fields,
    Record,
    paragraph,
    question_metadata,
    read_list,
)
from msa_jax.data.records import Document, Question, RecordError

_DATASET = "longmemeval"
_PARALLEL = ("haystack_session_ids", "haystack_dates", "haystack_sessions")
# The end of the ids of questions on what was never said.
_ABSTENTION = "_abs"


def longmemeval(path: Path) -> Iterator[Record]:
    """A document for each session, with its date as the title, and its turns in lines.

    The other sessions of a question's history are its negatives. A session that comes again with
    another date is another document, because questions ask about dates; for the same reason a
    question begins with the day on which it is asked. Questions on what was never said have no
    positive.

    Raises:
        RecordError: for a file that is not LongMemEval's.
    """
    for entry in read_list(path):
        sessions = _sessions(entry)
        yield from sessions
        yield _question(entry, sessions)


def _sessions(entry: Fields) -> list[Document]:
    ids, dates, sessions = (entry.items(name) for name in _PARALLEL)
    if not len(ids) == len(dates) == len(sessions):
        raise RecordError(f"{entry.where}: {', '.join(_PARALLEL)} must be equally long.")
    rows = [
        Fields({"id": ids[i], "date": dates[i], "turns": turns}, f"{entry.where}, session {i + 1}")
        for i, turns in enumerate(sessions)
    ]
    return [_session(row) for row in rows]


def _session(row: Fields) -> Document:
    turns = [f"{turn.text('role')}: {turn.text('content')}" for turn in row.rows("turns")]
    key = row.text("id")
    return paragraph(_DATASET, "\n".join(turns), row.text("date"), key, session_id=key)


def _question(entry: Fields, sessions: list[Document]) -> Question:
    question_id, date = entry.label("question_id"), entry.text("question_date")
    evidence = set(entry.texts("answer_session_ids"))
    found = {x.metadata["session_id"] for x in sessions} & evidence
    if question_id.endswith(_ABSTENTION) or found != evidence:
        evidence = set()
    ids = {True: [], False: []}
    for session in sessions:
        ids[session.metadata["session_id"] in evidence].append(session.id)
    return Question(
        id=question_id,
        question=f"Today is {date}. {entry.text('question')}",
        answers=(entry.label("answer"),),
        positive_ids=tuple(dict.fromkeys(ids[True])),
        negative_ids=tuple(dict.fromkeys(ids[False])),
        metadata=question_metadata(_DATASET, None, type=entry.text("question_type"), date=date),
    )
