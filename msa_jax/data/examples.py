"""One training example: a question at one step of its chain of retrievals, or at its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.core.segments import PADDING, TokenBlock
from msa_jax.data.records import Question
from msa_jax.data.templates import Piece, PromptBuilder


class Example(NamedTuple):
    """Active tokens of one query and what to learn from them; all arrays `[T]`, or `[B, T]`.

    Attributes:
        active: tokens, roles and positions.
        targets: the token after each token.
        target_mask: where that token is one the model must write at this step.
        answer_mask: where it belongs to the answer itself.
    """

    active: TokenBlock
    targets: np.ndarray
    target_mask: np.ndarray
    answer_mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
    """A document of the memory group as an example cites it.

    Attributes:
        doc_id: the id that the group's memory gives it.
        tokens: its text.
    """

    doc_id: int
    tokens: np.ndarray


def choose_step(
    question: Question, num_hops: int, answer_fraction: float, rng: np.random.Generator
) -> int | None:
    """Draws the step of a question to train: one of its hops, or None for its answer.

    Args:
        question: the question.
        num_hops: how many retrievals it takes.
        answer_fraction: probability of the answer, if the question has one.
        rng: source of randomness.
    """
    wants_answer = rng.random() < answer_fraction
    hop = int(rng.integers(num_hops))
    return None if wants_answer and question.answers else hop


class Asked(NamedTuple):
    """What one example shows, and what it asks of the model.

    Attributes:
        question: the question.
        hops: the documents to retrieve, by retrieval; earlier ones are context, with originals.
        step: the retrieval to learn, an index into `hops`; None to learn the answer.
    """

    question: Question
    hops: Sequence[Sequence[Source]]
    step: int | None


def build_examples(builder: PromptBuilder, asked: Sequence[Asked], active_tokens: int) -> Example:
    """Writes each conversation up to the end of its step, and marks what the step must learn.

    Text that does not fit is cut: originals first, then the middle of the question.

    Args:
        builder: encoder of the template.
        asked: the examples.
        active_tokens: T, the length of each.

    Returns:
        `[B, T]` arrays.

    Raises:
        ConfigError: if `active_tokens` cannot hold the template and the targets of one of them.
    """
    builder.prepare("query", (x.question.question for x in asked))
    answered = [x.question for x in asked if x.step is None]
    builder.prepare("restatement", (question.question for question in answered))
    builder.prepare("answer", (question.answers[0] for question in answered))
    ids = {source.doc_id for x in asked for hop in x.hops for source in hop}
    builder.prepare("retrieved", ids)
    shown = {source.doc_id for x in asked for hop in x.hops[: x.step] for source in hop}
    builder.prepare("original_start", shown)
    return _to_examples(builder, [_pieces(builder, x, active_tokens) for x in asked], active_tokens)


def _pieces(builder: PromptBuilder, asked: Asked, active_tokens: int) -> list[Piece]:
    question, hops, step = asked

    def conversation(text: str, original_tokens: int) -> list[Piece]:
        pieces = retrievals(builder, text, hops[:step], original_tokens)
        if step is not None:
            return [*pieces, builder.retrieved([source.doc_id for source in hops[step]])]
        return [*pieces, *builder.closing(text), builder.answer(question.answers[0])]

    return _fit(builder, question, conversation, active_tokens)


def retrievals(
    builder: PromptBuilder,
    question: str,
    hops: Sequence[Sequence[Source]],
    original_tokens: int,
) -> list[Piece]:
    """The prompt and what has been retrieved so far.

    Args:
        builder: encoder of the template.
        question: the question.
        hops: documents that have been named, by retrieval.
        original_tokens: for all their texts together; the longest are cut until they fit.
    """
    pieces = builder.prompt(question)
    for sources in cap_texts(hops, original_tokens):
        ids = [source.doc_id for source in sources]
        pieces.append(builder.retrieved(ids, generated=False))
        pieces.append(builder.originals(ids, [source.tokens for source in sources]))
    return pieces


def _fit(
    builder: PromptBuilder,
    question: Question,
    conversation: Callable[[str, int], list[Piece]],
    active_tokens: int,
) -> list[Piece]:
    def excess(pieces: list[Piece]) -> int:
        return sum(len(piece.tokens) for piece in pieces) - active_tokens

    whole = conversation(question.question, original_tokens=active_tokens)
    if excess(whole) <= 0:
        return whole
    asked = question.question
    tokens = builder.tokenizer.encode(asked)
    kept = len(tokens)
    while (too_many := excess(conversation(asked, original_tokens=0))) > 0:
        if kept <= 1:
            raise ConfigError(
                f"question {question.id!r} needs {active_tokens + too_many} tokens with its text "
                f"cut to one token, but active_tokens is {active_tokens}; raise active_tokens."
            )
        kept = max(1, kept - too_many)
        ends = tokens[: (kept + 1) // 2], tokens[len(tokens) - kept // 2 :]
        asked = "".join(map(builder.tokenizer.decode, ends))
    return conversation(asked, original_tokens=-too_many)


def cap_texts(hops: Sequence[Sequence[Source]], budget: int) -> list[list[Source]]:
    """Shortens the longest texts until all of them together have at most `budget` tokens."""
    lengths = sorted(len(source.tokens) for hop in hops for source in hop)
    cap = 0
    for rank, length in enumerate(lengths):
        share = budget // (len(lengths) - rank)
        cap = min(length, share)
        if share <= length:
            break
        budget -= length
    return [[dataclasses.replace(s, tokens=s.tokens[:cap]) for s in hop] for hop in hops]


def token_block(
    builder: PromptBuilder, pieces: Sequence[Piece], length: int | None = None
) -> TokenBlock:
    """Pieces as one active sequence of `[length]` arrays, padded at the right if at all."""
    if length is None:
        length = sum(len(piece.tokens) for piece in pieces)
    block = _active(builder, _Places([pieces], length))
    return TokenBlock(block.tokens[0], block.doc_ids[0], block.segment_pos[0])


def _to_examples(
    builder: PromptBuilder, conversations: Sequence[Sequence[Piece]], active_tokens: int
) -> Example:
    places = _Places(conversations, active_tokens)
    return Example(
        active=_active(builder, places),
        targets=places.of_next(places.tokens, builder.tokenizer.pad_id, np.int32),
        target_mask=places.of_next(places.per_token("generated"), False, np.bool_),
        answer_mask=places.of_next(places.per_token("answer"), False, np.bool_),
    )


def _active(builder: PromptBuilder, places: _Places) -> TokenBlock:
    positions = builder.positions(places.length)[places.column]
    return TokenBlock(
        tokens=places.of_token(places.tokens, builder.tokenizer.pad_id, np.int32),
        doc_ids=places.of_token(places.per_token("role"), PADDING, np.int32),
        segment_pos=places.of_token(positions, 0, np.int32),
    )


class _Places:
    """Where the tokens of many conversations stand in `[B, T]` arrays; filled all at once."""

    def __init__(self, conversations: Sequence[Sequence[Piece]], length: int):
        self.length = length
        self._pieces = [piece for pieces in conversations for piece in pieces]
        self._lengths = [len(piece.tokens) for piece in self._pieces]
        self.tokens = np.concatenate([piece.tokens for piece in self._pieces])
        owner = np.repeat(np.arange(len(conversations)), [len(x) for x in conversations])
        totals = np.bincount(owner, self._lengths, len(conversations)).astype(int)
        self._num_rows, self._row = len(conversations), np.repeat(np.arange(len(totals)), totals)
        self.column = np.arange(len(self.tokens)) - np.repeat(np.cumsum(totals) - totals, totals)

    def per_token(self, field: str) -> np.ndarray:
        """A field of the piece that each token is of."""
        return np.repeat([getattr(piece, field) for piece in self._pieces], self._lengths)

    def of_token(self, values: np.ndarray, fill: int, dtype: type) -> np.ndarray:
        """`[B, T]` the value of each token at its place."""
        out = np.full((self._num_rows, self.length), fill, dtype)
        out[self._row, self.column] = values
        return out

    def of_next(self, values: np.ndarray, fill: int, dtype: type) -> np.ndarray:
        """`[B, T]` the value of each token at the place before it."""
        out = np.full((self._num_rows, self.length), fill, dtype)
        later = self.column > 0
        out[self._row[later], self.column[later] - 1] = values[later]
        return out
