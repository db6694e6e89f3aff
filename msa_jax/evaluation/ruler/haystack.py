"""What needles are hidden in: documents that are made or cut once, for all samples and sizes.

A haystack only ever grows, so that a small one is how a larger one starts.
"""

from __future__ import annotations

import bisect
import itertools
import os
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from tqdm import tqdm

from msa_jax.config import ConfigError
from msa_jax.data.documentation import SENTENCE_END
from msa_jax.data.parts import PartWriter
from msa_jax.data.records import Document
from msa_jax.data.sources import open_source
from msa_jax.data.templates import PromptBuilder
from msa_jax.evaluation.ruler.tasks import NOISE_LINE, Needle, Subtask, random_text

# Worked on at once: lines of a stretch of needles, and characters of texts to cut.
_LINES = 4096
_CHARACTERS = 2**22
_SILENT_SECONDS = 5


class Text(NamedTuple):
    """The text of a document and how many tokens it has, the names around it not counted."""

    text: str
    num_tokens: int


class Haystack:
    """Documents without needles, as many as were asked for.

    Attributes:
        name: how ids start.
        is_essay: whether needles go between sentences, not between lines.
        documents: so far.
        lengths: tokens of each.
    """

    def __init__(self, name: str, is_essay: bool, texts: Iterator[Text]):
        """Starts empty; `texts` go on for as long as somebody asks."""
        self.name, self.is_essay = name, is_essay
        self.documents: list[Document] = []
        self.lengths: list[int] = []
        self._texts = texts
        self._stops = [0]

    def count(self, num_tokens: int) -> int:
        """How many documents have at most `num_tokens` tokens; more are made if need be.

        Raises:
            ConfigError: if there is no text to make them of.
        """
        with tqdm(
            desc=self.name, total=num_tokens, unit="tok", unit_scale=True, delay=_SILENT_SECONDS
        ) as bar:
            while self._stops[-1] <= num_tokens:
                self._grow()
                bar.update(self._stops[-1] - bar.n)
        return bisect.bisect_right(self._stops, num_tokens) - 1

    def num_tokens(self, count: int) -> int:
        """Tokens of the first `count` documents."""
        return self._stops[count]

    def locate(self, depth: float, count: int) -> tuple[int, float]:
        """The document at a depth of the first `count`, by index, and the depth within it."""
        place = depth * self._stops[count]
        index = min(bisect.bisect_right(self._stops, place), count) - 1
        return index, (place - self._stops[index]) / self.lengths[index]

    def _grow(self) -> None:
        one = next(self._texts, None)
        if one is None:
            raise ConfigError(f"haystack {self.name}: all documents are without text; give others.")
        self.lengths.append(one.num_tokens)
        self._stops.append(self._stops[-1] + one.num_tokens)
        self.documents.append(Document(f"{self.name}-{len(self.documents):07d}", one.text))


def noise_texts(writer: PartWriter, builder: PromptBuilder) -> Iterator[Text]:
    """The same lines, over and over: all documents are alike."""
    one = next(_packed(itertools.repeat(NOISE_LINE), writer.max_text_tokens, builder))
    return itertools.repeat(one)


def needle_texts(
    writer: PartWriter, builder: PromptBuilder, subtask: Subtask, taken: Collection[str], seed: int
) -> Iterator[Text]:
    """Needles of the types of a subtask, a line each.

    Args:
        writer: says how long a document may be.
        builder: counts.
        subtask: whose types they have.
        taken: keys and values that they must not have, because samples do.
        seed: of all of them.
    """
    rng = random.Random(f"{seed}/ruler/{subtask.name}/haystack")

    def lines() -> Iterator[str]:
        while True:
            key, value = (random_text(x, rng) for x in (subtask.key_type, subtask.value_type))
            if key not in taken and value not in taken:
                yield str(Needle(key, value, subtask.value_type))

    return _packed(lines(), writer.max_text_tokens, builder)


def essay_texts(writer: PartWriter, path: str | os.PathLike) -> Iterator[Text]:
    """The texts of a folder or a JSON Lines file in order, cut as a bank cuts; repeated for ever.

    Args:
        writer: cuts.
        path: see `open_source`; titles are left out.

    Raises:
        RecordError: if there is nothing at `path`, and for a bad record when it is reached.
    """
    source = open_source(path)

    def once() -> Iterator[Text]:
        for some in _slices(source):
            for document, parts in zip(some, writer.split(some), strict=True):
                for part in parts:
                    yield Text(document.text[part.start : part.stop], len(part.tokens))

    return itertools.cycle(once())


def hide(
    text: str, needles: Sequence[Needle], depths: Sequence[float], is_essay: bool
) -> list[str]:
    """Puts needles between the sentences of a document, or between its lines.

    A document that gets several is cut halfway between them, so that each needle has one of its
    own, which is longer than the haystack's documents by one needle at most.

    Args:
        text: of the document.
        needles: to hide, in order.
        depths: of each, ascending, from 0 (before the text) to 1 (after it).
        is_essay: whether to look for sentences.

    Returns:
        The text of a document for each needle.
    """
    if is_essay:
        ends, between = [match.end() for match in SENTENCE_END.finditer(text)], " "
    else:
        ends, between = [i + 1 for i, x in enumerate(text) if x == "\n"], "\n"
    places = [0, *ends, len(text)]
    at = [int(depth * (len(places) - 1)) for depth in depths]
    cuts = [0, *((a + b) // 2 for a, b in itertools.pairwise(at)), len(places) - 1]
    texts = []
    for needle, place, (start, stop) in zip(needles, at, itertools.pairwise(cuts), strict=True):
        before, after = text[places[start] : places[place]], text[places[place] : places[stop]]
        pieces = (before.strip(), str(needle), after.strip())
        texts.append(between.join(piece for piece in pieces if piece))
    return texts


def _packed(lines: Iterable[str], max_tokens: int, builder: PromptBuilder) -> Iterator[Text]:
    """Documents of as many whole lines as fit."""
    tokenizer, lines = builder.tokenizer, iter(lines)
    most = max_tokens - len(tokenizer.encode(builder.document_text(Document("", ""))))
    document: list[str] = []
    length = 0
    while True:
        texts, some = [], list(itertools.islice(lines, _LINES))
        for line, count in zip(some, tokenizer.count_batch(x + "\n" for x in some), strict=True):
            if count > most:
                raise ConfigError(
                    f"a line of the haystack has {count} tokens, but a document has room for "
                    f"{most}; raise max_document_tokens."
                )
            if length + count > most:
                texts.append("\n".join(document))
                document, length = [], 0
            document.append(line)
            length += int(count)
        yield from with_counts(texts, builder)


def with_counts(texts: Sequence[str], builder: PromptBuilder) -> Iterator[Text]:
    """Counts the tokens of documents."""
    written = (builder.document_text(Document("", text)) for text in texts)
    yield from map(Text, texts, builder.tokenizer.count_batch(written).tolist())


def _slices(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents without titles, some at a time."""
    some, characters = [], 0
    for document in documents:
        some.append(Document(document.id, document.text))
        characters += len(document.text)
        if characters > _CHARACTERS:
            yield some
            some, characters = [], 0
    yield some
