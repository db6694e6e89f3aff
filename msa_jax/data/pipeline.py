"""From JSON Lines to training batches: deterministic, resumable, sharded by process."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.core.segments import TokenBlock, TrainingBatch
from msa_jax.data import packing, records
from msa_jax.data.examples import Example, Source, build_example, choose_step
from msa_jax.data.records import Document, Question
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer

# Assembling holds the interpreter lock most of the time: more threads would only contend for it.
_READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        documents: path of a documents file (`records.read_documents`).
        questions: path of a questions file (`records.read_questions`).
        tokenizer: packaged name or path (`Tokenizer.load`).
        template: name in `TEMPLATES`.
        row_tokens: S, tokens of a memory row.
        max_document_tokens: longer documents are split; counts the id and template tokens.
        id_space: each memory group calls its documents by random ids in [1, id_space).
        answer_fraction: share of samples that train the answer, where a question has one.
        negatives_per_question: given negatives that a question brings into memory, at most.
        shuffle_labels: label documents that were permuted at random, as a control that must not
            learn to retrieve, nor even what kind of document is asked for.
    """

    documents: str
    questions: str
    tokenizer: str = "docs-4k"
    template: str = "plain"
    row_tokens: int = 2048
    max_document_tokens: int = 512
    id_space: int = 10_000
    answer_fraction: float = 0.0
    negatives_per_question: int = 4
    shuffle_labels: bool = False

    def __post_init__(self):
        _require_at_least(self, row_tokens=1, max_document_tokens=1, id_space=2)
        _require_at_least(self, negatives_per_question=0)
        if self.template not in TEMPLATES:
            raise ConfigError(
                f"template must be one of {', '.join(TEMPLATES)}, not {self.template!r}."
            )
        if not 0 <= self.answer_fraction <= 1:
            raise ConfigError(
                f"answer_fraction must be between 0 and 1, not {self.answer_fraction!r}."
            )
        if self.max_document_tokens > self.row_tokens:
            raise ConfigError(
                f"max_document_tokens ({self.max_document_tokens}) must not exceed row_tokens "
                f"({self.row_tokens}): a document never crosses a row."
            )


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Sizes of one training step, over all processes.

    Attributes:
        groups: G, memories per step.
        queries_per_group: B, questions that share a memory.
        memory_tokens: R * S, tokens of a memory.
        active_tokens: T, tokens of a question with its context and targets.
    """

    groups: int
    queries_per_group: int
    memory_tokens: int
    active_tokens: int

    def __post_init__(self):
        names = [field.name for field in dataclasses.fields(self)]
        _require_at_least(self, **dict.fromkeys(names, 1))


@dataclasses.dataclass(frozen=True)
class TextDataset:
    """Documents and questions, tokenised and in memory.

    A *part* is a document, or one of the pieces of a document that was split.

    Attributes:
        data: the configuration.
        memory: the model's memory settings.
        builder: encoder of the template.
        questions: the questions.
        parts: token ids of every part's text.
        parents: id of the document that each part belongs to.
        hops: per question and retrieval, the parts to retrieve.
        negatives: per question, parts given as negatives.
    """

    data: DataConfig
    memory: MemoryConfig
    builder: PromptBuilder
    questions: Sequence[Question]
    parts: Sequence[np.ndarray]
    parents: Sequence[str]
    hops: Sequence[Sequence[Sequence[int]]]
    negatives: Sequence[np.ndarray]

    @classmethod
    def load(cls, data: DataConfig, memory: MemoryConfig) -> TextDataset:
        """Reads, checks and tokenises the files that `data` names.

        Raises:
            RecordError: for a bad record.
            ConfigError: if the settings cannot work together or with the tokenizer.
        """
        documents = records.read_documents(data.documents)
        questions = records.read_questions(data.questions)
        if not questions:
            raise ConfigError(f"questions file {data.questions} holds no question to train on.")
        records.check_references(documents, questions)
        _check_trainable(questions)
        builder = PromptBuilder(TEMPLATES[data.template], Tokenizer.load(data.tokenizer), memory)
        parts, parts_of = _split_documents(documents, builder, data)
        hops = [
            _relevant_parts(question, parts, parts_of, builder.tokenizer) for question in questions
        ]
        negatives = [
            np.array([part for doc_id in question.negative_ids for part in parts_of[doc_id]], int)
            for question in questions
        ]
        if data.shuffle_labels:
            order = np.random.default_rng(0).permutation(len(parts))
            hops = [[order[hop].tolist() for hop in of_question] for of_question in hops]
            negatives = [order[of_question] for of_question in negatives]
        parents = [doc_id for doc_id, its_parts in parts_of.items() for _ in its_parts]
        return cls(data, memory, builder, questions, parts, parents, hops, negatives)


def training_iterator(
    dataset: TextDataset,
    shape: BatchShape,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Yields `TrainingBatch`es of NumPy arrays without end.

    Step n depends on `seed` and n alone. Every question comes once per epoch. The processes'
    batches, joined along the group axis in order of `process_index`, are the batch that one
    process alone would get. `get_state` gives a JSON-able dict that `set_state` takes back.

    Args:
        dataset: what to train on.
        shape: sizes over all processes; this one gets `groups / process_count` of the groups.
        seed: in [0, 2**32).
        process_index: which process this is.
        process_count: how many share the groups.

    Raises:
        ConfigError: if the shape does not fit the dataset or the processes.
    """
    assembler = _GroupAssembler(dataset, shape)
    if shape.groups % process_count:
        raise ConfigError(
            f"groups ({shape.groups}) must be a multiple of the processes ({process_count})."
        )
    share = shape.groups // process_count
    mine = slice(process_index * share, (process_index + 1) * share)

    def build_step(question_indexes: np.ndarray, rng: np.random.Generator) -> TrainingBatch:
        # One seed per group, so that a process can skip the groups of the others.
        seeds = rng.integers(0, 2**63, size=shape.groups)
        by_group = question_indexes.reshape(shape.groups, shape.queries_per_group)
        groups = [
            assembler.assemble(indexes, np.random.default_rng(group_seed))
            for indexes, group_seed in zip(by_group[mine], seeds[mine], strict=True)
        ]
        return _stack(groups)

    steps = (
        grain.MapDataset.range(len(dataset.questions))
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(shape.groups * shape.queries_per_group, drop_remainder=True)
        .random_map(build_step)
    )
    return iter(steps.to_iter_dataset(_READING))


class _GroupAssembler:
    """Builds one memory group: B questions and a memory that answers them."""

    def __init__(self, dataset: TextDataset, shape: BatchShape):
        self._dataset = dataset
        self._shape = shape
        self._alignment = dataset.memory.pooling_kernel_size
        self._row_tokens = dataset.data.row_tokens
        if self._row_tokens % self._alignment:
            raise ConfigError(
                f"row_tokens ({self._row_tokens}) must be a multiple of "
                f"memory.pooling_kernel_size ({self._alignment})."
            )
        if shape.memory_tokens % self._row_tokens:
            raise ConfigError(
                f"memory_tokens ({shape.memory_tokens}) must be a multiple of row_tokens "
                f"({self._row_tokens})."
            )
        self._num_rows = shape.memory_tokens // self._row_tokens
        self._max_documents = shape.memory_tokens // self._alignment
        self._part_tokens = np.array([len(part) for part in dataset.parts])
        # Twice what an average memory holds, since some will not fit where others left off.
        average = np.mean(packing.aligned(self._part_tokens + 1, self._alignment))
        num_drawn = int(2 * shape.memory_tokens / average) + 1
        self._num_drawn = min(num_drawn, len(dataset.parts))
        self._check_active_tokens()

    def assemble(self, question_indexes: np.ndarray, rng: np.random.Generator) -> TrainingBatch:
        """Returns one group: memory `[R, S]`, active `[B, T]`, positives `[B, M]`."""
        candidates, num_positives = self._candidates(question_indexes, rng)
        memory, parts, ids = self._fill_memory(candidates, num_positives, rng)
        ids_of = dict(zip(parts.tolist(), ids.tolist(), strict=True))
        column = {part: index for index, part in enumerate(ids_of)}
        positives = np.zeros((len(question_indexes), self._max_documents), np.bool_)
        examples = []
        for row, index in enumerate(question_indexes):
            question, hops = self._dataset.questions[index], self._dataset.hops[index]
            step = choose_step(question, len(hops), self._dataset.data.answer_fraction, rng)
            examples.append(self._example(index, step, ids_of))
            sought = hops if step is None else [hops[step]]
            positives[row, [column[part] for hop in sought for part in hop]] = True
        return TrainingBatch(memory, *_stack(examples), positives)

    def _example(self, index: int, step: int | None, ids_of: Mapping[int, int]) -> Example:
        dataset = self._dataset
        sources = [
            [Source(ids_of[part], dataset.parts[part]) for part in hop]
            for hop in dataset.hops[index]
        ]
        return build_example(
            dataset.builder, dataset.questions[index], sources, step, self._shape.active_tokens
        )

    def _check_active_tokens(self) -> None:
        """Builds the neediest examples, so that no run fails halfway at one of them."""
        questions, hops = self._dataset.questions, self._dataset.hops
        largest_ids = defaultdict(lambda: self._dataset.data.id_space - 1)
        most_parts = max(range(len(questions)), key=lambda index: sum(map(len, hops[index])))
        self._example(most_parts, len(hops[most_parts]) - 1, largest_ids)
        answered = [index for index, question in enumerate(questions) if question.answers]
        if self._dataset.data.answer_fraction and answered:
            longest = max(answered, key=lambda index: len(questions[index].answers[0]))
            self._example(longest, None, largest_ids)

    def _candidates(
        self, question_indexes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Parts by priority: positives, negatives, distractors; and how many are positives."""
        hops, negatives = self._dataset.hops, self._dataset.negatives
        given = dict.fromkeys(part for i in question_indexes for hop in hops[i] for part in hop)
        num_positives = len(given)
        for index in question_indexes:
            drawn = rng.permutation(negatives[index])[: self._dataset.data.negatives_per_question]
            given.update(dict.fromkeys(drawn.tolist()))
        drawn = rng.choice(len(self._part_tokens), size=self._num_drawn, replace=False)
        required = np.fromiter(given, int)
        return np.concatenate([required, drawn[~np.isin(drawn, required)]]), num_positives

    def _fill_memory(
        self, candidates: np.ndarray, num_positives: int, rng: np.random.Generator
    ) -> tuple[TokenBlock, np.ndarray, np.ndarray]:
        """Returns memory `[R, S]`, and the parts and the ids of its documents 1, 2, ..."""
        num_ids = self._dataset.data.id_space - 1
        ids = 1 + rng.choice(num_ids, size=min(num_ids, len(candidates)), replace=False)
        wraps = [self._dataset.builder.document_wrap(doc_id) for doc_id in ids.tolist()]
        usable = candidates[: len(ids)]
        lengths = self._part_tokens[usable] + [len(start) + len(end) for start, end in wraps]
        rows = packing.assign_rows(lengths, self._num_rows, self._row_tokens, self._alignment)
        self._check_placed(rows != packing.UNPLACED, num_positives, len(candidates))
        order, starts = packing.shuffle_places(
            rows, lengths, self._num_rows, self._row_tokens, self._alignment, rng
        )
        pieces = []
        for index in order.tolist():
            start, end = wraps[index]
            pieces += [start, self._dataset.parts[usable[index]], end]
        memory = packing.fill_rows(
            pieces,
            lengths[order],
            starts,
            self._num_rows,
            self._row_tokens,
            self._dataset.builder.tokenizer.pad_id,
        )
        return memory, usable[order], ids[order]

    def _check_placed(self, placed: np.ndarray, num_positives: int, num_candidates: int) -> None:
        ran_out_of_ids = len(placed) < num_candidates and placed.all()
        if ran_out_of_ids or len(placed) < num_positives:
            raise ConfigError(
                f"id_space ({self._dataset.data.id_space}) is too small for the documents of a "
                f"memory of {self._shape.memory_tokens} tokens; raise id_space."
            )
        if not placed[:num_positives].all():
            raise ConfigError(
                f"the documents that a group's {self._shape.queries_per_group} questions need do "
                f"not fit in memory_tokens ({self._shape.memory_tokens}); raise memory_tokens or "
                "lower queries_per_group."
            )


def _split_documents(
    documents: Sequence[Document], builder: PromptBuilder, data: DataConfig
) -> tuple[list[np.ndarray], dict[str, range]]:
    """Encodes documents and splits long ones; also says which parts each document became."""
    # Numbers of as many digits can take more tokens or fewer, so look at some of all sizes.
    some_ids = np.linspace(1, data.id_space - 1, num=256, dtype=int).tolist()
    wrap_tokens = max(sum(map(len, builder.document_wrap(doc_id))) for doc_id in some_ids)
    max_text = data.max_document_tokens - wrap_tokens
    if max_text < 1:
        raise ConfigError(
            f"max_document_tokens ({data.max_document_tokens}) must exceed the {wrap_tokens} "
            "tokens that the template puts around a document."
        )
    texts = builder.tokenizer.encode_batch(map(builder.document_text, documents))
    break_ranks = builder.tokenizer.break_ranks()
    parts: list[np.ndarray] = []
    parts_of = {}
    for document, tokens in zip(documents, texts, strict=True):
        first = len(parts)
        parts += packing.split_document(tokens, max_text, break_ranks)
        parts_of[document.id] = range(first, len(parts))
    return parts, parts_of


def _relevant_parts(
    question: Question,
    parts: Sequence[np.ndarray],
    parts_of: Mapping[str, range],
    tokenizer: Tokenizer,
) -> list[list[int]]:
    """Parts to retrieve, by hop: those of a split document with an answer in them, or all."""
    answers = [answer.casefold() for answer in question.answers]

    def relevant(doc_id: str) -> Sequence[int]:
        candidates = parts_of[doc_id]
        if len(candidates) == 1:
            return candidates
        texts = {part: tokenizer.decode(parts[part]).casefold() for part in candidates}
        return [p for p in candidates if any(a in texts[p] for a in answers)] or candidates

    hops = question.hops or (question.positive_ids,)
    return [[part for doc_id in hop for part in relevant(doc_id)] for hop in hops]


def _check_trainable(questions: Sequence[Question]) -> None:
    for question in questions:
        if not question.positive_ids:
            raise records.RecordError(
                f"{question.where}: positive_ids is empty, but training needs at least one."
            )


def _stack(trees: Sequence) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _require_at_least(config: Any, **minima: int) -> None:
    for name, minimum in minima.items():
        value = getattr(config, name)
        if not isinstance(value, int) or value < minimum:
            raise ConfigError(
                f"{name} must be a whole number of at least {minimum}, not {value!r}."
            )
