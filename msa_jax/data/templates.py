"""How documents, questions and answers are written for the model, as data.

A conversation is a list of `Piece`s. Training and inference build it from the same pieces, each
encoded on its own, so that a model sees the tokens that it was trained on:

    head, query, tail, response                   the prompt
    retrieved                                     the model names documents
    originals                                     their texts are appended (Memory Interleave)
    ... retrieved, originals ...                  more rounds
    stop                                          the model has seen enough
    restatement                                   the question again
    answer                                        the model answers
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.core.segments import QUERY, RESPONSE, TEMPLATE
from msa_jax.data.records import Document
from msa_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Template:
    """The words around documents, questions and answers; `{name}` marks a slot.

    A text's leading space belongs to `document_text` (slots title, text) and `answer`, since
    tokenizers join a space to the word after it.

    Attributes:
        head: opens the conversation, before memory; exactly `MemoryConfig.head_len` tokens.
        document_start: (slot id), before a document's text in memory.
        document_end: (slot id), after it.
        query: (slot question), the routing query.
        tail: closes the user's turn.
        response: opens the model's turn.
        retrieved: (slot id), one document that the model names.
        retrieved_end: after the last of them.
        original_start: (slot id), before the text of a named document.
        original_end: after it.
        originals_end: after the last of them.
        stop: what the model says instead of more names.
        restatement: (slot question), appended after `stop`.
        answer_start: words that open every answer.
        answer: (slot answer), the answer itself and its end.
    """

    head: str = "<|im_start|>user\n"
    document_start: str = "<|im_start|>[{id}]."
    document_text: str = " {title}{text}"
    document_end: str = "[{id}]<|im_end|>"
    query: str = "{question}"
    tail: str = "<|im_end|>\n"
    response: str = "<|im_start|>"
    retrieved: str = "[{id}]"
    retrieved_end: str = "<|object_ref_end|>"
    original_start: str = "[{id}]."
    original_end: str = "\n"
    originals_end: str = "<|object_ref_end|>"
    stop: str = "<End-of-Retrieve>"
    restatement: str = "<|im_start|>The user's question is: {question}\n<|object_ref_end|>"
    answer_start: str = "The answer to the question is:"
    answer: str = " {answer}<|im_end|>"

    @property
    def markers(self) -> list[str]:
        """What stands for a token in the words, such as "<|im_start|>"; no text may forge it."""
        return re.findall(r"<[^<>\s{}]+>", " ".join(dataclasses.astuple(self)))


TEMPLATES = {
    "plain": Template(),
    "msa_4b": Template(
        query=(
            "\nPlease answer the question based on the above historical document information\n\n"
            "{question}\nPlease return all documents related to the question\n"
        )
    ),
}


# Fields of a template with one slot whose encodings are kept, by slot.
_REMEMBERED = {
    "id": ("document_start", "document_end", "retrieved", "original_start"),
    "question": ("query", "restatement"),
    "answer": ("answer",),
}
_MOST_REMEMBERED = 2**17
# Tokens of a question in `PromptBuilder.pair`.
_MOST_LOOKED_AT = 256


class Piece(NamedTuple):
    """Consecutive active tokens of one role.

    Attributes:
        tokens: int32 ids.
        role: `QUERY`, `RESPONSE` or `TEMPLATE`.
        generated: whether the model writes them.
        answer: whether they are the answer itself.
    """

    tokens: np.ndarray
    role: int
    generated: bool = False
    answer: bool = False


class PromptBuilder:
    """Encodes the pieces of a template.

    Attributes:
        template: the words.
        tokenizer: the encoder, whose encodings of user text never hold the template's markers.
        memory: how the model remembers.
        head: tokens of the template head, int32 [head_len].
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, memory: MemoryConfig):
        """Encodes what does not depend on documents and questions.

        Raises:
            ConfigError: if the template head is not `memory.head_len` tokens long, or the tokenizer
                cannot tell a marker of the template from text.
        """
        self.template = template
        self.tokenizer = tokenizer = tokenizer.guarding(template.markers)
        self.memory = memory
        encode = tokenizer.encode_template
        self.head = encode(template.head)
        if len(self.head) != memory.head_len:
            raise ConfigError(
                f"memory.head_len is {memory.head_len}, but the template head {template.head!r} "
                f"has {len(self.head)} tokens with this tokenizer; set memory.head_len to that."
            )
        self._tail = encode(template.tail)
        self._response = encode(template.response)
        self._retrieved_end = encode(template.retrieved_end)
        self._original_end = encode(template.original_end)
        self._originals_end = encode(template.originals_end)
        self._stop = encode(template.stop)
        self._answer_start = encode(template.answer_start)
        # Ids and questions come back, and encoding one costs more than copying a document.
        self._encoded = {
            field: _Memo(tokenizer, getattr(template, field), slot)
            for slot, fields in _REMEMBERED.items()
            for field in fields
        }

    def document_text(self, document: Document) -> str:
        """The text to encode for a document, once, whatever its id will be."""
        has_more = document.text.strip() != document.title.strip()
        title = f"{document.title}\n" if document.title and has_more else ""
        return self.template.document_text.format(title=title, text=document.text)

    def prepare(self, field: str, values: Iterable[str | int]) -> None:
        """Encodes a field of the template for many values of its slot at once, for use soon."""
        self._encoded[field].fill(values)

    def document_wrap(self, doc_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens before and after the text of the document that is called `doc_id`."""
        return self._encoded["document_start"][doc_id], self._encoded["document_end"][doc_id]

    def document_wraps(self, doc_ids: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """`document_wrap` of many documents, faster."""
        self.prepare("document_start", doc_ids)
        self.prepare("document_end", doc_ids)
        return [self.document_wrap(doc_id) for doc_id in doc_ids]

    def document(self, doc_id: int, text_tokens: np.ndarray) -> np.ndarray:
        """A document as memory holds it: its text between two mentions of its id."""
        start, end = self.document_wrap(doc_id)
        return np.concatenate([start, text_tokens, end])

    def prompt(self, question: str) -> list[Piece]:
        """Head, question, and the opening of the response."""
        return [
            Piece(self.head, TEMPLATE),
            Piece(self._encoded["query"][question], QUERY),
            Piece(self._tail, TEMPLATE),
            Piece(self._response, RESPONSE),
        ]

    def pair(self, text_tokens: np.ndarray, question: str) -> np.ndarray:
        """A document's text and, after it, a question: what the second look scores.

        A question is cut after `_MOST_LOOKED_AT` tokens, because every document repeats it.
        """
        query = self._encoded["query"][question][:_MOST_LOOKED_AT]
        end = [self._original_end, query, self._tail, self._response]
        return np.concatenate([self.head, text_tokens, *end])

    def names(self, doc_ids: Sequence[int]) -> list[np.ndarray]:
        """The name of each document, as the model writes it."""
        return [self._encoded["retrieved"][doc_id] for doc_id in doc_ids]

    def retrieved(self, doc_ids: Sequence[int], generated: bool = True) -> Piece:
        """The names of documents and the end of them."""
        tokens = [*self.names(doc_ids), self._retrieved_end]
        return Piece(np.concatenate(tokens), RESPONSE, generated)

    def originals(self, doc_ids: Sequence[int], texts: Sequence[np.ndarray]) -> Piece:
        """The texts of the named documents; they join the routing query."""
        parts = []
        for doc_id, text in zip(doc_ids, texts, strict=True):
            parts += [self._encoded["original_start"][doc_id], text, self._original_end]
        return Piece(np.concatenate([*parts, self._originals_end]), QUERY)

    def stop(self) -> Piece:
        """What the model writes when it needs no more documents."""
        return Piece(self._stop, RESPONSE, generated=True)

    def closing(self, question: str) -> list[Piece]:
        """From `stop` to the words that open the answer."""
        return [
            self.stop(),
            Piece(self._encoded["restatement"][question], TEMPLATE),
            Piece(self._answer_start, RESPONSE, generated=True),
        ]

    def answer(self, answer: str) -> Piece:
        """The answer itself, as the model writes it, and its end."""
        return Piece(self._encoded["answer"][answer], RESPONSE, generated=True, answer=True)

    @property
    def answer_end(self) -> str:
        """The text that ends an answer."""
        return self.template.answer.partition("{answer}")[2]

    def positions(self, length: int) -> np.ndarray:
        """Rotary positions of `length` active tokens: the head's, then the query's onward."""
        positions = np.arange(length, dtype=np.int32)
        positions[len(self.head) :] += self.memory.top_k_docs
        return positions


class _Memo:
    """Encodings of a text with one slot, by the value of the slot."""

    def __init__(self, tokenizer: Tokenizer, text: str, slot: str):
        self._tokenizer, self._text, self._slot = tokenizer, text, slot
        self._known: dict[str | int, np.ndarray] = {}

    def __getitem__(self, value: str | int) -> np.ndarray:
        tokens = self._known.get(value)
        return self._encode([value])[0] if tokens is None else tokens

    def fill(self, values: Iterable[str | int]) -> None:
        """Encodes those of many values that are not known, together."""
        unknown = list(dict.fromkeys(value for value in values if value not in self._known))
        if unknown:
            self._encode(unknown)

    def _encode(self, values: list[str | int]) -> list[np.ndarray]:
        slots = [{self._slot: value} for value in values]
        encoded = self._tokenizer.encode_template_batch(self._text, slots)
        if len(self._known) + len(values) > _MOST_REMEMBERED:
            self._known = {}
        self._known.update(zip(values, encoded, strict=True))
        return encoded
