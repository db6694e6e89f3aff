"""Made queries of two steps: one passage names another, which says what is asked for."""

from __future__ import annotations

import random
import re

from msa_jax.config import ConfigError
from msa_jax.data.cloze import Cloze, make_cloze
from msa_jax.data.passages import Passage, Passages
from msa_jax.data.queries import Query
from msa_jax.data.records import Question
from msa_jax.data.words import WORD

# A word that may begin a title, and the one after it.
_CAPITALISED = re.compile(r"(?<!\w)[^\W_a-z][\w'’.-]*(?: [\w'’.-]+)?")
# Passages that lead nowhere are passed over; a collection of such passages is refused.
_MOST_TRIES = 64
_CUE_WORDS = 18
_UNNAMED = ("it", "this one", "someone or something", "the one in question")


class ChainQueries:
    """Queries whose first passage, which they describe, names the second, which they do not."""

    def __init__(self, name: str, passages: Passages, queries_per_document: int = 1):
        self._name, self._passages = name, passages
        self._queries_per_document = queries_per_document
        self._targets = {
            title: index
            for title, index in passages.by_title.items()
            if len(title.split()) > 1 or passages.is_specific(title)
        }
        # Most places in a text are ruled out by their first two words.
        self._longest_by_start: dict[str, int] = {}
        for title in self._targets:
            start = _CAPITALISED.match(title)
            if start is not None:
                longest = max(len(title), self._longest_by_start.get(start[0], 0))
                self._longest_by_start[start[0]] = longest
        if not len(passages) or self._try_from(0, random.Random(0)) is None:
            raise ConfigError(
                f"data.sources.{name} has queries 'chains', but its documents do not name one "
                "another by their titles; use 'synthetic'."
            )

    def __len__(self) -> int:
        return len(self._passages) * self._queries_per_document

    def draw(self, index: int, rng: random.Random) -> Query:
        """A query that begins at one of the passages, or at another if that one leads nowhere."""
        query = None
        while query is None:
            query = self._try_from(index // self._queries_per_document, rng)
        return query

    def _try_from(self, index: int, rng: random.Random) -> Query | None:
        for _ in range(_MOST_TRIES):
            passage = self._passages[index]
            titles = self._named_in(passage)
            if titles:
                title = rng.choice(titles)
                target = self._passages[self._targets[title]]
                made = _two_steps(passage, target, rng)
                if made is not None:
                    question = Question(f"{self._name}/{index}", made.question, (made.answer,))
                    return Query(question, [[passage.part], [target.part]])
            index = rng.randrange(len(self._passages))
        return None

    def _named_in(self, passage: Passage) -> list[str]:
        """Titles of other documents that a passage names, the longest at each place."""
        text, found, done = passage.text, {}, 0
        for match in _CAPITALISED.finditer(text):
            start = match.start()
            longest = self._longest_by_start.get(match[0], 0)
            if longest and start >= done:
                ends = [end.end() for end in WORD.finditer(text, start, start + longest)]
                titles = (text[start:end] for end in reversed(ends))
                title = next((x for x in titles if x in self._targets), passage.title)
                if title != passage.title:
                    found[title] = None
                done = start + len(title)
        return list(found)


def _two_steps(passage: Passage, target: Passage, rng: random.Random) -> Cloze | None:
    """Joins a cue to a passage with a question on the target, whose name is in neither."""
    cloze = make_cloze(rng.choice(target.sentences()), "", rng)
    cue = _cue(passage, target.title, rng)
    if cloze is None or cloze.answer.casefold() in cue.casefold():
        return None
    asked = _without_name(cloze.question, target.title, rng)
    if rng.random() < 0.5:
        return Cloze(f"{cue}: {asked}", cloze.answer)
    return Cloze(f"{asked.removesuffix('?')}, {cue}?", cloze.answer)


def _cue(passage: Passage, name: str, rng: random.Random) -> str:
    """The passage's title, or what it says of what it names, or both."""
    said = next((x for x in passage.sentences() if name in x), "")
    # The words around the name, so that a long sentence keeps its point.
    before, _, after = said.partition(name)
    before, after = before.split()[-_CUE_WORDS // 2 :], after.split()[: _CUE_WORDS // 2]
    fact = " ".join([*before, rng.choice(_UNNAMED), *after]).strip(" .,;:")
    fact = _without_name(fact, name, rng)
    if not passage.title or (said and rng.random() < 0.4):
        return fact
    return f"{passage.title}, {fact}" if said and rng.random() < 0.3 else passage.title


def _without_name(text: str, name: str, rng: random.Random) -> str:
    """Replaces a name, and its last word by itself, as in a surname."""
    unnamed, last = rng.choice(_UNNAMED), WORD.findall(name)[-1]
    text = text.replace(name, unnamed)
    if len(last) <= 3:
        return text
    return WORD.sub(lambda word: unnamed if word[0].partition("'")[0] == last else word[0], text)
