"""The three stages behind one object: a model, a bank, questions.

    with Engine.open("bank") as engine:
        answer = engine.ask("Who repaired the lighthouse?")
        print(answer.text, [document.title for document in answer.documents])

What can be asked for, and what comes back, is in `answers.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from msa_jax.data.examples import token_block
from msa_jax.data.records import Document
from msa_jax.engine.answers import Answer, AskConfig, Found, found
from msa_jax.engine.attribution import Attribution, attribute
from msa_jax.engine.conversation import Conversation, Find, Library
from msa_jax.engine.encode import Encoder
from msa_jax.engine.finding import Finding
from msa_jax.engine.fusion import Listing
from msa_jax.engine.generate import Generator
from msa_jax.engine.ingest import Counts, Ingestor, create_bank, new_layout, part_text
from msa_jax.engine.interleave import interleave
from msa_jax.engine.loading import LoadedModel, fingerprint, load_model
from msa_jax.engine.names import NameTable
from msa_jax.engine.ranking import LISTED, rank_documents
from msa_jax.memory.bank import Bank
from msa_jax.memory.compaction import BackgroundCompaction
from msa_jax.memory.store import Passage, Store, StoreError
from msa_jax.modules.state import Memory
from msa_jax.modules.transformer import Transformer
from msa_jax.modules.unstack import unstack_layers

_AS_USUAL = AskConfig()


class Engine:
    """A model with a bank of documents.

    What other processes change in the bank counts from the next question on.

    Attributes:
        loaded: the model.
        store: the bank on disk.
        bank: its documents on the devices.
        generator: continues prompts.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        store: Store,
        mesh: Mesh | None = None,
        content_tier: str | None = None,
        on_load: Callable[[int, int], None] = lambda done, total: None,
    ):
        """Loads the bank onto the devices.

        Args:
            loaded: the model that encoded the bank, on the devices of `mesh`.
            store: open; for writing if documents are to be added or deleted.
            mesh: devices to share the work; None for one.
            content_tier: see `Bank`.
            on_load: see `Bank`.

        Raises:
            ConfigError: if it does not fit.
        """
        config, params = unstack_layers(loaded.config, loaded.params)
        model = Transformer(config)
        self.loaded = dataclasses.replace(loaded, config=config, params=params)
        self.store = store
        self.bank = Bank(store, mesh, content_tier, on_load=on_load)
        self.generator = Generator(model, params, mesh)
        self._ingestor = Ingestor(self.loaded, Encoder(model, params, store.layout, mesh), store)
        self._compaction = BackgroundCompaction(store)
        self._names: NameTable | None = None
        self._finding = Finding(loaded, store, self._originals, mesh)

    @classmethod
    def create(
        cls,
        bank: str | os.PathLike,
        checkpoint: str | os.PathLike,
        *,
        tokenizer: str | None = None,
        template: str | None = None,
        max_document_tokens: int | None = None,
        key_dtype: str | None = None,
        content_dtype: str | None = None,
        mesh: Mesh | None = None,
        content_tier: str | None = None,
    ) -> Engine:
        """Makes an empty bank for a model, and opens it for writing.

        Args:
            bank: a directory that is empty or does not exist.
            checkpoint: workdir of a training run, or a Hugging Face folder.
            tokenizer: packaged name or path; the checkpoint's own by default.
            template: how text is written; by default as in training.
            max_document_tokens: longer documents are split (`ingest.new_layout`).
            key_dtype: of routing keys; by default the model's compute type.
            content_dtype: of content; by default likewise.
            mesh: devices to share the work; None for one.
            content_tier: see `Bank`.

        Raises:
            StoreError: if no bank can be made there.
            ConfigError: if the model is not there.
        """
        loaded = load_model(checkpoint, tokenizer, template, mesh=mesh)
        layout = new_layout(loaded, max_document_tokens, key_dtype, content_dtype)
        return cls._of(loaded, create_bank(bank, loaded, layout), mesh, content_tier)

    @classmethod
    def open(
        cls,
        bank: str | os.PathLike,
        checkpoint: str | os.PathLike | None = None,
        *,
        mesh: Mesh | None = None,
        content_tier: str | None = None,
        write: bool = False,
        on_load: Callable[[int, int], None] = lambda done, total: None,
    ) -> Engine:
        """Opens a bank with the model that encoded it.

        Args:
            bank: its directory.
            checkpoint: where the model is now; by default where it was when the bank was made.
            mesh: devices to share the work; None for one.
            content_tier: see `Bank`.
            write: whether to add and delete documents.
            on_load: see `Bank`.

        Raises:
            StoreError: if the bank cannot be opened, or was encoded by another model.
            ConfigError: if the model is not there, or does not fit.
        """
        with Store.open(bank) as store:
            facts = store.facts
        loaded = load_model(
            facts["checkpoint"] if checkpoint is None else checkpoint,
            facts["tokenizer"],
            facts["template"],
            dtype=facts["dtype"],
            mesh=mesh,
        )
        store = Store.open(bank, write=write, fingerprint=fingerprint(loaded))
        return cls._of(loaded, store, mesh, content_tier, on_load)

    @classmethod
    def _of(cls, loaded: LoadedModel, store: Store, *placement: Any) -> Engine:
        """The engine, or a closed store if there is none."""
        with contextlib.ExitStack() as undo:
            undo.enter_context(store)
            engine = cls(loaded, store, *placement)
            undo.pop_all()
        return engine

    def close(self) -> None:
        """Closes the bank, after a compaction that may be under way."""
        self._compaction.wait()
        self._finding.close()
        self.store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self,
        question: str,
        config: AskConfig = _AS_USUAL,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> Answer:
        """Answers one question.

        Args:
            question: in words.
            config: how.
            on_text: called with the answer, piece by piece, while it is written.
        """
        return self.ask_all([question], config, lambda _, text: on_text(text))[0]

    def ask_all(
        self,
        questions: Sequence[str],
        config: AskConfig = _AS_USUAL,
        on_text: Callable[[int, str], None] = lambda index, text: None,
    ) -> list[Answer]:
        """Answers several questions at once; each answer is what it would be alone.

        Args:
            questions: in words.
            config: how; the same for all.
            on_text: called with the index of a question and the next text of its answer.
        """
        if not questions:
            return []
        start = time.perf_counter()
        self.bank.refresh()
        find = self._finding.start(questions, config.filters, config.looks)
        library = self._library(config)
        seconds = {"refresh": time.perf_counter() - start}
        answers: dict[int, Answer] = {}
        if config.abstain_below is not None:
            start = time.perf_counter()
            rankings = self._rank(library.memory, questions, config.num_documents, find)
            seconds["retrieve"] = time.perf_counter() - start
            for i, ranking in enumerate(rankings):
                if not ranking or ranking[0].score < config.abstain_below:
                    answers[i] = Answer(
                        questions[i], "", True, tuple(ranking), (), "abstained", 0, seconds
                    )
        asked = [i for i in range(len(questions)) if i not in answers]
        if find is not None:
            library = dataclasses.replace(
                library, find=lambda rows, routers: find([asked[row] for row in rows], routers)
            )
        conversations = interleave(
            self.generator,
            self.loaded.builder,
            library,
            [questions[i] for i in asked],
            self.loaded.suit(config.interleave),
            config.sampling,
            max(config.num_documents, LISTED),
            lambda index, text: on_text(asked[index], text),
        )
        for i, conversation in zip(asked, conversations, strict=True):
            answers[i] = self._answer(conversation, config, seconds)
        return [answers[i] for i in range(len(questions))]

    def retrieve(
        self,
        question: str,
        num_documents: int = 16,
        filters: Mapping[str, Any] | None = None,
        looks: int | None = None,
    ) -> list[Found]:
        """The best documents for a question, best first, without generating.

        Args:
            question: in words.
            num_documents: how many.
            filters: as in `AskConfig`.
            looks: as in `AskConfig`.
        """
        self.bank.refresh()
        find = self._finding.start([question], filters, looks)
        return self._rank(self._memory(filters), [question], num_documents, find)[0]

    def attribute(self, answer: Answer, config: AskConfig = _AS_USUAL) -> Attribution:
        """Says which documents and chunks each token of an answer attends to.

        Args:
            answer: of this engine; the bank must be what it was then.
            config: how it was asked for.

        Raises:
            ValueError: if there is no answer, because the engine abstained, say.
        """
        return attribute(
            self.generator,
            self.loaded.builder,
            self._library(config),
            answer.question,
            answer.text,
            [one.named for one in answer.rounds],
            answer.finished == "end",
            config.interleave.max_original_tokens,
        )

    def add(self, documents: Iterable[Document]) -> Counts:
        """Adds documents, or replaces those with the same key; the next question can use them."""
        counts = self._ingestor.add(documents)
        self.bank.refresh()
        self._compaction.note_removed(counts.updated)
        return counts

    def delete(self, keys: Sequence[str]) -> None:
        """Removes documents; the next question does not find them."""
        self.store.commit(deletes=keys)
        self.bank.refresh()
        self._compaction.note_removed(len(keys))

    def _memory(self, filters: Mapping[str, Any] | None) -> Memory:
        memory = self.bank.memory
        if filters is None:
            return memory
        mask = self.bank.mask(self.store.select(filters))
        return Memory(memory.layers, dataclasses.replace(memory.index, doc_mask=mask))

    def _library(self, config: AskConfig) -> Library:
        names = self._name_table(config) if config.interleave.constrain == "existing" else None
        return Library(self._memory(config.filters), self.bank.ids, self._originals, names)

    def _name_table(self, config: AskConfig) -> NameTable:
        """Names of all documents that may be named; of the whole bank, kept and kept current."""
        if config.filters is not None:
            return NameTable(self.loaded.builder, self.store.select(config.filters))
        ids = self.store.parts().ids
        if self._names is None:
            self._names = NameTable(self.loaded.builder)
        self._names.remove(np.setdiff1d(self._names.ids, ids))
        self._names.add(ids)
        return self._names

    def _originals(self, ids: Sequence[int]) -> list[np.ndarray]:
        builder = self.loaded.builder
        texts = {passage.id: part_text(builder, passage) for passage in self._passages(ids)}
        return builder.tokenizer.encode_batch(texts.get(part_id, "") for part_id in ids)

    def _passages(self, ids: Sequence[int]) -> list[Passage]:
        """Originals, but for those that were removed and compacted away meanwhile."""
        try:
            return self.store.passages(ids)
        except StoreError:
            is_live = self.store.parts().find(np.array(ids)) >= 0
            if is_live.all():
                raise
            return self._passages(np.array(ids)[is_live].tolist())

    def _rank(
        self,
        memory: Memory,
        questions: Sequence[str],
        num_documents: int,
        find: Find | None,
    ) -> list[list[Found]]:
        builder = self.loaded.builder
        prompts = [token_block(builder, builder.prompt(question)) for question in questions]
        listed = max(num_documents, LISTED)
        routing = self.generator.start(prompts, memory, room=1, search_docs=listed).routing
        rows = range(len(questions))
        listings = [
            Listing(
                *rank_documents(self.bank.ids(routing.top_docs[:, row]), routing.top_scores[:, row])
            )
            for row in rows
        ]
        if find is not None:
            listings = find(rows, listings)
        return [self._listed(listing, num_documents) for listing in listings]

    def _listed(self, listing: Listing, num_documents: int) -> list[Found]:
        best, scores = listing.ids[:num_documents].tolist(), listing.scores[:num_documents].tolist()
        score_of = dict(zip(best, scores, strict=True))
        return [found(passage, score_of[passage.id]) for passage in self._passages(best)]

    def _answer(
        self, conversation: Conversation, config: AskConfig, seconds: Mapping[str, float]
    ) -> Answer:
        score_of: dict[int, float] = {}
        # Mean scores of the round of the answer are on another scale than probabilities.
        rounds = [one for one in conversation.rounds if one.found is not None]
        for one in rounds or conversation.rounds:
            for part_id, score in zip(*one.ranking, strict=True):
                score_of.setdefault(int(part_id), float(score))
        read = conversation.documents
        listed = list(dict.fromkeys([*read, *score_of]))[: max(config.num_documents, len(read))]
        documents = [
            found(x, score_of.get(x.id, -np.inf), was_read=x.id in read)
            for x in self._passages(listed)
        ]
        return Answer(
            question=conversation.question,
            text=conversation.answer,
            abstained=False,
            documents=tuple(documents),
            rounds=conversation.rounds,
            finished=conversation.finished,
            tokens=conversation.answer_tokens,
            seconds={**seconds, **conversation.seconds},
        )
