"""How retrieval holds as memory grows (the experiment of the paper's figure 1).

All documents are encoded once. Each question then gets a memory of its own for every size: its
positives, the negatives that were given with it, and other documents drawn at random until the
memory is full. Memories are nested, so a larger one only adds distractors.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from msa_jax.config import ConfigError
from msa_jax.data.examples import token_block
from msa_jax.data.pipeline import DataConfig, TextDataset
from msa_jax.engine.encode import encode_documents
from msa_jax.engine.generate import Generator
from msa_jax.fields import Count, Seed, check_fields
from msa_jax.memory.placement import place_memory
from msa_jax.modules.state import Memory
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    """What to measure on.

    Attributes:
        documents: held-out documents (JSON Lines); all of them are the largest memory.
        questions: held-out questions.
        kinds: prefixes of question ids that are reported apart; all other questions are together.
        memory_tokens: sizes of memory, ascending.
        batch_size: questions routed at once.
        rows_per_batch: memory rows encoded at once.
        seed: of the documents' ids and of the choice of distractors.
    """

    documents: str
    questions: str
    kinds: tuple[str, ...] = ()
    memory_tokens: tuple[Count, ...] = (16_384, 65_536, 262_144, 1_048_576)
    batch_size: Count = 32
    rows_per_batch: Count = 64
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class ScalingPoint:
    """Results for one kind of question at one size of memory.

    Attributes:
        kind: of question.
        memory_tokens: tokens of the memory.
        documents: documents in it, on average over questions.
        questions: how many were asked.
        recall: "recall@1" and "recall@k", each the mean per router layer.
        chance: recall@k of a router that chooses at random.
        id_accuracy: share of questions whose first generated id is that of a positive document.
    """

    kind: str
    memory_tokens: int
    documents: float
    questions: int
    recall: dict[str, dict[int, float]]
    chance: float
    id_accuracy: float

    def best_layer(self, metric: str) -> tuple[int, float]:
        """The router layer with the highest recall, and that recall."""
        return max(self.recall[metric].items(), key=lambda item: item[1])


def measure_scaling(
    config: ScalingConfig, data: DataConfig, model: Transformer, params: PyTree
) -> list[ScalingPoint]:
    """Encodes the held-out documents and asks every question at every size of memory.

    Raises:
        ConfigError: if the documents do not reach the largest memory.
    """
    data = dataclasses.replace(
        data, documents=config.documents, questions=config.questions, shuffle_labels=False
    )
    held_out = HeldOut(TextDataset.load(data, model.config.memory), config)
    total = int(held_out.lengths.sum())
    if total < max(config.memory_tokens):
        raise ConfigError(
            f"evaluation.documents {config.documents} hold {total} tokens, fewer than the "
            f"largest of evaluation.memory_tokens ({max(config.memory_tokens)})."
        )
    params = jax.device_put(params)
    with tqdm(total=total, desc="encode", unit="tok", unit_scale=True) as bar:
        memory = encode_documents(
            model, params, held_out.documents, data.row_tokens, config.rows_per_batch, bar.update
        )
    mesh = _mesh_of(params)
    memory = place_memory(memory, mesh)
    points = []
    batches = held_out.batches(config.batch_size)
    rounds = len(batches) * len(config.memory_tokens)
    generator = Generator(model, params, mesh)
    with tqdm(total=rounds, desc="ask", unit="batch") as bar:
        for memory_tokens in config.memory_tokens:
            answers = []
            for batch in batches:
                answers += held_out.ask(generator, memory, batch, memory_tokens)
                bar.update()
            points += _by_kind(memory_tokens, answers, model.config.router_layers)
    return points


def _mesh_of(params: PyTree) -> Mesh:
    """The mesh that parameters lie on, or one of the first device."""
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    return make_mesh(MeshConfig(), jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What came of one question: recall per layer, and whether the generated id was right."""

    kind: str
    documents: int
    chosen: int
    recall: dict[str, np.ndarray]
    id_is_right: bool


class HeldOut:
    """Documents with their ids, and questions as prompts."""

    def __init__(self, dataset: TextDataset, config: ScalingConfig):
        rng = np.random.default_rng(config.seed)
        builder, count = dataset.builder, len(dataset.parts)
        if count >= dataset.data.id_space:
            raise ConfigError(
                f"data.id_space ({dataset.data.id_space}) is too small for the {count} documents "
                "of the evaluation; raise data.id_space."
            )
        ids = 1 + rng.choice(dataset.data.id_space - 1, size=count, replace=False)
        self.documents = [
            builder.document(doc_id, text)
            for doc_id, text in zip(ids.tolist(), dataset.parts, strict=True)
        ]
        self.lengths = np.array([len(tokens) for tokens in self.documents])
        self._dataset = dataset
        self._seed, self._kinds = config.seed, config.kinds
        self._names = [builder.retrieved([doc_id]).tokens[:-1] for doc_id in ids.tolist()]
        self.prompts = [
            token_block(builder, builder.prompt(question.question))
            for question in dataset.questions
        ]
        self.positives = [[part for hop in hops for part in hop] for hops in dataset.hops]

    def batches(self, batch_size: int) -> list[np.ndarray]:
        """Indexes of questions; the last batch is filled up with its last question."""
        indexes = np.arange(len(self.prompts))
        padded = np.append(indexes, np.repeat(indexes[-1], -len(indexes) % batch_size))
        return list(padded.reshape(-1, batch_size))

    def ask(
        self, generator: Generator, memory: Memory, batch: np.ndarray, memory_tokens: int
    ) -> list[_Answer]:
        """Routes and generates an id for a batch of questions."""
        doc_mask = np.stack([self.memory_of(index, memory_tokens) for index in batch])
        index = dataclasses.replace(memory.index, doc_mask=doc_mask[None])
        prompts = [self.prompts[question] for question in batch]
        longest_name = max(len(name) for name in self._names)
        session = generator.start(prompts, Memory(memory.layers, index), room=longest_name)
        top_docs, generated = session.routing.top_docs, session.complete(longest_name)
        answers = [
            self._grade(question, generated[row], top_docs[:, row], int(doc_mask[row].sum()))
            for row, question in enumerate(batch)
        ]
        return answers[: len(np.unique(batch))]

    def kind(self, question: int) -> str:
        """What the question is reported under."""
        question_id = self._dataset.questions[question].id
        return next((kind for kind in self._kinds if question_id.startswith(kind)), "question")

    def memory_of(self, question: int, memory_tokens: int) -> np.ndarray:
        """`[M]` the documents of a question's memory; nested over `memory_tokens`."""
        count = len(self.documents)
        rng = np.random.default_rng((self._seed, question))
        own = np.concatenate([self.positives[question], self._dataset.negatives[question]])
        order = np.concatenate([own.astype(int), rng.permutation(count)])
        _, first = np.unique(order, return_index=True)
        order = order[np.sort(first)]
        fits = np.cumsum(self.lengths[order]) <= memory_tokens
        allowed = np.zeros(count, np.bool_)
        allowed[order[fits]] = True
        return allowed

    def _grade(
        self, question: int, generated: np.ndarray, top_docs: np.ndarray, documents: int
    ) -> _Answer:
        positives = self.positives[question]
        found = np.isin(top_docs, positives)
        recall = {
            f"recall@{n}": found[:, :n].sum(axis=1) / len(positives)
            for n in (1, top_docs.shape[-1])
        }
        names = [self._names[part] for part in positives]
        is_right = any(np.array_equal(generated[: len(name)], name) for name in names)
        return _Answer(self.kind(question), documents, top_docs.shape[-1], recall, is_right)


def _by_kind(
    memory_tokens: int, answers: Sequence[_Answer], router_layers: Sequence[int]
) -> list[ScalingPoint]:
    kinds = defaultdict(list)
    for answer in answers:
        kinds[answer.kind].append(answer)
    points = []
    for kind, members in sorted(kinds.items()):
        recall = {
            metric: dict(
                zip(
                    router_layers,
                    np.mean([x.recall[metric] for x in members], axis=0).tolist(),
                    strict=True,
                )
            )
            for metric in members[0].recall
        }
        points.append(
            ScalingPoint(
                kind=kind,
                memory_tokens=memory_tokens,
                documents=float(np.mean([x.documents for x in members])),
                questions=len(members),
                recall=recall,
                chance=float(np.mean([min(1.0, x.chosen / x.documents) for x in members])),
                id_accuracy=float(np.mean([x.id_is_right for x in members])),
            )
        )
    return points
