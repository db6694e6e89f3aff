"""Questions of two steps, composed of two that have one: the answer of the first is in the second.

"Who wrote The Reed?" is answered by Ada Moor, and "Where was Ada Moor born?" is about her; so
"Where was the person who wrote The Reed born?" needs both documents, the first to find the second.
MuSiQue was made so (Trivedi et al., TACL 2022, arXiv 2108.00573), by people; here a few patterns
write it, for questions of which there are many (`msa_jax.write_questions`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from msa_jax.data.hops import names, plain_title, title_pattern
from msa_jax.data.records import Document, Question

# A title of few letters is found in questions about other things.
_LEAST_TITLE = 4
_BE = "is|are|was|were|has|have|had|will|can|could"
# How a question begins, and what is said instead of it, to speak of its answer. Auxiliaries that
# only ask are left out: "Which film did she make?" is about "the film that she make".
_PHRASES = tuple(
    (re.compile(pattern, re.IGNORECASE), phrase)
    for pattern, phrase in (
        (r"(?:what|which) (?:is|was|are|were) the name of (?=the )", ""),
        (r"who (?=\w)", "the person who "),
        (r"where (?:is|are|was|were) (.+) (located|born|held|found|based)$", r"where \1 was \2"),
        (r"(?:what|which) (?:is|was|are|were) the (?=\w)", "the "),
        (rf"(?:what|which) ((?:[\w'-]+ ){{1,4}}?)(?=(?:{_BE}) )", r"the \1that "),
        (r"(?:what|which) ((?:[\w'-]+ ){1,4}?)(?:did|do|does) ", r"the \1that "),
    )
)
# What a title and a phrase in its place both begin with.
_TWICE = re.compile(r"\bthe (?=the )", re.IGNORECASE)


def compose(documents: Mapping[str, Document], questions: Sequence[Question]) -> Iterator[Question]:
    """Joins questions whose answer is the title of a document with those about that document.

    Args:
        documents: by id.
        questions: with an answer and one positive.

    Yields:
        Questions with two hops, each first question with one second: the next that names its
        document, so that all are used.
    """
    titled = defaultdict(list)
    for document in documents.values():
        titled[plain_title(document).casefold()].append(document)
    about = defaultdict(list)
    for question in questions:
        document = documents[question.positive_ids[0]]
        if names(question.question, document):
            about[document.id].append(question)
    for first in questions:
        phrase = phrase_of(first.question)
        targets = titled[first.answers[0].casefold()]
        if phrase is None or len(first.answers[0]) < _LEAST_TITLE or len(targets) != 1:
            continue
        target = targets[0]
        if target.id not in first.positive_ids and about[target.id]:
            # The next one each time, so that all are used.
            about[target.id].append(second := about[target.id].pop(0))
            if composed := _composed(first, second, phrase, target):
                yield composed


def phrase_of(question: str) -> str | None:
    """How to speak of what a question asks for; None where no pattern fits."""
    asked = question.strip().removesuffix("?").rstrip()
    for pattern, phrase in _PHRASES:
        if pattern.match(asked):
            return pattern.sub(phrase, asked, count=1)
    return None


def _composed(first: Question, second: Question, phrase: str, target: Document) -> Question | None:
    """The second question with the phrase in place of the title of its document."""
    text = title_pattern(target).sub(lambda _: phrase, second.question, count=1)
    text = _TWICE.sub("", text)
    # What is to be found, and what leads there, must not be said.
    said = text.casefold()
    if any(answer.casefold() in said for answer in (first.answers[0], second.answers[0])):
        return None
    hops = (first.positive_ids, second.positive_ids)
    name = f"{first.id}+{second.id}"
    return Question(name, text, second.answers, hops[0] + hops[1], hops=hops)
