"""A language model learns to write questions: it reads a text, then an answer in it is its own.

A router learns from questions, and people have asked few. A model that has seen some thousand of
them asks as they did about any text; that documents extended or trained with such questions are
found better is known as doc2query (Nogueira et al., arXiv 1904.08375).

The model learns `TEXT Answer: ANSWER Question: QUESTION`, of which only answer and question count
in the loss. The answer comes first, so that every sample asks about something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msa_jax.core.losses import chunked_lm_loss
from msa_jax.core.segments import RESPONSE, TokenBlock
from msa_jax.data.records import Document, Question
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.fields import Count, NonNegative, Seed, Within, check_fields
from msa_jax.modules.transformer import Transformer, init_cache
from msa_jax.typing import Array, Bool, Float, Int, PyTree

_ANSWER, _QUESTION = "\n\nAnswer:", "\nQuestion:"
# Longer ones are no phrases of the text, but say again what it says.
_MAX_ANSWER_WORDS = 12
_CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class WriterConfig:
    """How a model learns to write questions.

    Attributes:
        steps: of training.
        batch_size: questions a step.
        learning_rate: at its peak; it rises over a tenth of the steps and falls to zero.
        max_document_tokens: a text is cut after so many.
        max_tokens: of answer and question together.
        seed: of the order of questions.
    """

    steps: Annotated[int, Within(low=2)] = 480
    batch_size: Count = 64
    learning_rate: NonNegative = 1e-4
    max_document_tokens: Count = 256
    max_tokens: Count = 64
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)


class Format:
    """How a text and what is written about it become tokens, and back."""

    def __init__(self, tokenizer: Tokenizer, config: WriterConfig):
        self._tokenizer, self._config = tokenizer, config
        self._opening = tokenizer.encode(_ANSWER)
        self.end = [tokenizer.pad_id]

    def prompts(self, documents: Sequence[Document]) -> list[Int[np.ndarray, " T"]]:
        """What is written after: texts with their titles."""
        texts = [f"{document.title}\n{document.text}".strip() for document in documents]
        longest = self._config.max_document_tokens
        return [
            np.concatenate([tokens[:longest], self._opening])
            for tokens in self._tokenizer.encode_batch(texts)
        ]

    def written(self, answer: str, question: str) -> Int[np.ndarray, " T"]:
        """What is to be written, its end included."""
        tokens = self._tokenizer.encode(f" {answer.strip()}{_QUESTION} {question.strip()}")
        return np.concatenate([tokens, self.end])

    def read(self, tokens: Int[np.ndarray, " T"], document: Document) -> tuple[str, str] | None:
        """Answer and question; None if it is not a question that the text answers."""
        if not len(tokens) or tokens[-1] != self.end[0]:
            return None
        text = self._tokenizer.decode(tokens[:-1])
        answer, separator, question = (part.strip() for part in text.partition(_QUESTION))
        is_phrase = answer and len(answer.split()) <= _MAX_ANSWER_WORDS
        if not (separator and is_phrase and question.endswith("?") and "\n" not in question):
            return None
        said = answer.casefold()
        if said not in document.text.casefold() or said in question.casefold():
            return None
        return answer, question


def learn_to_write(
    model: Transformer,
    params: PyTree,
    form: Format,
    documents: Mapping[str, Document],
    questions: Sequence[Question],
    config: WriterConfig,
    on_step: Callable[[float], None] = lambda loss: None,
) -> PyTree:
    """Trains all parameters on questions that have an answer and one positive document.

    Args:
        model: without memory: its router layers attend to the text as others do.
        params: float32; they are taken over.
        form: of the samples.
        documents: by id.
        questions: to learn from.
        config: how.
        on_step: called with the loss of each step.

    Returns:
        The trained parameters.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(config.steps // 10, 1), config.steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(_CLIP_NORM), optax.adamw(rate))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, tokens, is_written):
        loss, gradient = jax.value_and_grad(partial(_loss, model))(params, tokens, is_written)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = jax.jit(optimizer.init)(params)
    for tokens, is_written in _batches(form, documents, questions, config):
        params, state, loss = step(params, state, tokens, is_written)
        on_step(float(loss))
    return params


def _loss(
    model: Transformer, params: PyTree, tokens: Int[Array, "B T"], is_written: Bool[Array, "B T"]
) -> Float[Array, ""]:
    """Mean cross-entropy of the tokens that are to be written."""
    size, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    block = TokenBlock(tokens, jnp.full_like(tokens, RESPONSE), positions)
    group = jax.tree.map(lambda x: x[None], block)
    cache = init_cache(model.config, 1, size, length)
    hidden, _, _ = model.apply({"params": params}, group, cache, method="prefill")
    unembedding = model.apply({"params": params}, method="unembedding")
    targets, counted = (jnp.roll(x, -1, axis=1) for x in (tokens, is_written))
    total, count = chunked_lm_loss(hidden[0], unembedding, targets, counted)
    return total / jnp.maximum(count, 1)


def _batches(
    form: Format,
    documents: Mapping[str, Document],
    questions: Sequence[Question],
    config: WriterConfig,
) -> Iterator[tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]]:
    """Tokens, padded at the right, and which of them are to be written."""
    prompts = form.prompts([documents[question.positive_ids[0]] for question in questions])
    written = [form.written(question.answers[0], question.question) for question in questions]
    length = -(-max(config.max_document_tokens + config.max_tokens, 32) // 32) * 32
    rng = np.random.default_rng(config.seed)
    waiting: list[int] = []
    for _ in range(config.steps):
        while len(waiting) < config.batch_size:
            waiting += rng.permutation(len(questions)).tolist()
        tokens = np.full((config.batch_size, length), form.end[0], np.int32)
        is_written = np.zeros(tokens.shape, bool)
        for row, mask, index in zip(tokens, is_written, waiting, strict=False):
            both = np.concatenate([prompts[index], written[index]])[:length]
            row[: len(both)] = both
            mask[len(prompts[index]) : len(both)] = True
        del waiting[: config.batch_size]
        yield tokens, is_written
