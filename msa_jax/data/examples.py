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
    """Active tokens of one query and what to learn from them; all arrays `[T]`.

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


def build_example(
    builder: PromptBuilder,
    question: Question,
    hops: Sequence[Sequence[Source]],
    step: int | None,
    active_tokens: int,
) -> Example:
    """Writes the conversation up to the end of a step, and marks what the step must learn.

    Text that does not fit is cut: originals first, then the middle of the question.

    Args:
        builder: encoder of the template.
        question: the question.
        hops: the documents to retrieve, by retrieval; earlier ones are context, with originals.
        step: the retrieval to learn, an index into `hops`; None to learn the answer.
        active_tokens: T, the length of the result.

    Raises:
        ConfigError: if `active_tokens` cannot hold the template and the targets.
    """

    def conversation(asked: str, original_tokens: int) -> list[Piece]:
        pieces = retrievals(builder, asked, hops[:step], original_tokens)
        if step is not None:
            return [*pieces, builder.retrieved([source.doc_id for source in hops[step]])]
        return [*pieces, *builder.closing(asked), builder.answer(question.answers[0])]

    pieces = _fit(builder, question, conversation, active_tokens)
    return _to_example(builder, pieces, active_tokens)


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
    for sources in _cap_texts(hops, original_tokens):
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


def _cap_texts(hops: Sequence[Sequence[Source]], budget: int) -> list[list[Source]]:
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
    tokens = np.concatenate([piece.tokens for piece in pieces])
    length = len(tokens) if length is None else length
    return TokenBlock(
        tokens=_padded(tokens, length, builder.tokenizer.pad_id, np.int32),
        doc_ids=_padded(_per_token(pieces, "role"), length, PADDING, np.int32),
        segment_pos=_padded(builder.positions(len(tokens)), length, 0, np.int32),
    )


def _to_example(builder: PromptBuilder, pieces: list[Piece], active_tokens: int) -> Example:
    active = token_block(builder, pieces, active_tokens)

    def of_next(values: np.ndarray, fill: int, dtype: type) -> np.ndarray:
        return _padded(values[1:], active_tokens, fill, dtype)

    return Example(
        active=active,
        targets=of_next(active.tokens, builder.tokenizer.pad_id, np.int32),
        target_mask=of_next(_per_token(pieces, "generated"), 0, np.bool_),
        answer_mask=of_next(_per_token(pieces, "answer"), 0, np.bool_),
    )


def _per_token(pieces: Sequence[Piece], field: str) -> np.ndarray:
    return np.repeat([getattr(piece, field) for piece in pieces], [len(x.tokens) for x in pieces])


def _padded(values: np.ndarray, length: int, fill: int, dtype: type) -> np.ndarray:
    out = np.full(length, fill, dtype)
    out[: len(values)] = values
    return out
