"""Memory Interleave: name documents, read their originals, route again, and in the end answer.

One round of a question is a prefill that routes, and then either names of documents, whose
originals are in the next round's prompt, or `stop` and the answer. Every question of a batch takes
as many rounds as it needs. The conversations are those of training (`data.examples`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.core.segments import TokenBlock
from msa_jax.data.examples import Source, retrievals, token_block
from msa_jax.data.templates import Piece, PromptBuilder
from msa_jax.data.text_format import Naming
from msa_jax.engine.conversation import Conversation, Library, Round
from msa_jax.engine.generate import Generator, Session
from msa_jax.engine.names import NameTable, Speller
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.engine.streaming import TextStream
from msa_jax.fields import Count, CountOrZero, NonNegative, OneOf, Positive, check_fields
from msa_jax.modules.state import Memory

CONSTRAINTS = ("routed", "existing")
# Cache slots that naming a document takes at most, when tokens are added a few at a time.
_SLOTS_PER_NAME = 24


@dataclasses.dataclass(frozen=True)
class InterleaveConfig:
    """How much to read before the answer.

    Attributes:
        max_rounds: retrievals; 0 answers from the pooled memory at once.
        max_documents_per_round: documents that one retrieval may name.
        max_documents: originals in a conversation.
        max_original_tokens: of all originals together; the longest are cut until they fit.
        constrain: documents that may be named: "routed", those that some layer chose in this
            round, or "existing", all; in both cases but for those that have been read. Where
            routers, words and look make one ranking (`Library.find`), "routed" is the first of
            that ranking alone, and the next two settings do not count.
        router_temperature: tau: what is named follows not the model's probabilities but their
            product with the routers', a softmax over the mean scores of those documents divided by
            tau. The lower, the more the routers decide. None leaves it to the model, unless the
            engine has one that comes with the model (`LoadedModel.suit`).
        margin: a round that names a document must name all that may be named whose mean scores are
            at most this below the best one's, or the best of them if a limit leaves no room for
            all. Whether to name any, and which one first, stays the model's choice (`Speller`). 0
            leaves it to the model how many, and so does None, unless one comes with the model.
    """

    max_rounds: CountOrZero = 3
    max_documents_per_round: Count = 8
    max_documents: Count = 16
    max_original_tokens: Count = 4096
    constrain: Annotated[str, OneOf(CONSTRAINTS)] = "routed"
    router_temperature: Positive | None = None
    margin: NonNegative | None = None

    def __post_init__(self):
        check_fields(self)
        known = Naming(self.router_temperature, self.margin).known
        if known and self.constrain != "routed":
            raise ConfigError(
                f"{' and '.join(known)} must be None with constrain={self.constrain!r}: documents "
                "that no layer chose have no score."
            )


def interleave(
    generator: Generator,
    builder: PromptBuilder,
    library: Library,
    questions: Sequence[str],
    config: InterleaveConfig,
    sampling: SamplingConfig,
    search_docs: int = 0,
    on_text: Callable[[int, str], None] = lambda question, text: None,
    given: Sequence[Sequence[Sequence[Source]]] | None = None,
) -> list[Conversation]:
    """Answers questions over a memory, reading as many originals as each of them needs.

    Args:
        generator: the model.
        builder: encoder of the template.
        library: the documents.
        questions: asked together.
        config: how much to read.
        sampling: how names and answers are drawn. A question draws the same whatever is asked
            with it; one that is asked twice at once draws twice.
        search_docs: documents to list per router layer if more than `top_k_docs`.
        on_text: called with the index of a question and the next text of its answer.
        given: documents that each question has read before it starts, by retrieval.

    Returns:
        A conversation for each question.

    Raises:
        ConfigError: if `constrain="existing"` and the library has no names.
    """
    if config.constrain == "existing" and library.names is None:
        raise ConfigError('constrain="existing" needs library.names, a table of all documents.')
    loop = _Loop(generator, builder, library, config, sampling, search_docs, on_text)
    repeated = collections.Counter()
    asked = []
    for index, question in enumerate(questions):
        hops = [] if given is None else [list(hop) for hop in given[index]]
        closing = config.max_rounds == 0
        asked.append(_Asked(index, question, repeated[question], closing, hops))
        repeated[question] += 1
    waiting = asked
    while waiting:
        loop.run_round(waiting)
        waiting = [one for one in waiting if not one.finished]
    return [one.conversation() for one in asked]


@dataclasses.dataclass
class _Asked:
    """A question on its way.

    Attributes:
        repetition: how often the same question comes before it in the batch.
        closing: whether its next round is that of the answer.
        hops: documents that were read, by round.
    """

    index: int
    question: str
    repetition: int
    closing: bool
    hops: list[list[Source]] = dataclasses.field(default_factory=list)
    rounds: list[Round] = dataclasses.field(default_factory=list)
    answer: str = ""
    answer_tokens: int = 0
    finished: str = ""
    seconds: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @property
    def documents(self) -> tuple[int, ...]:
        return tuple(source.doc_id for hop in self.hops for source in hop)

    @property
    def seed(self) -> int:
        """Of the draws in its next round."""
        return zlib.crc32(repr((self.question, self.repetition, len(self.rounds))).encode())

    def conversation(self) -> Conversation:
        return Conversation(
            self.question,
            self.answer,
            self.finished,
            self.documents,
            tuple(self.rounds),
            self.answer_tokens,
            dict(self.seconds),
        )


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What rounds have in common; see `interleave`."""

    generator: Generator
    builder: PromptBuilder
    library: Library
    config: InterleaveConfig
    sampling: SamplingConfig
    search_docs: int
    on_text: Callable[[int, str], None]

    def run_round(self, asked: Sequence[_Asked]) -> None:
        """Prefills all; those that want documents get them, the others answer."""
        with _timed("prefill", asked):
            session = self._start(asked)
            routed = self._routed(session, len(asked))
        routed = self._found(asked, routed)
        with _timed("naming", asked):
            named = self._name(session, asked, routed)
        for one, routing, ids in zip(asked, routed, named, strict=True):
            one.rounds.append(dataclasses.replace(routing, named=ids))
        readers = [one for one in asked if one.rounds[-1].named]
        with _timed("originals", readers):
            self._read(readers)
        answering = [row for row, one in enumerate(asked) if not one.rounds[-1].named]
        with _timed("answer", [asked[row] for row in answering]):
            self._answer(session, asked, answering)

    def _start(self, asked: Sequence[_Asked]) -> Session:
        closing = max(len(_tokens(self.builder.closing(one.question))) for one in asked)
        room = self.sampling.max_tokens
        if not all(one.closing for one in asked):
            room += closing + _SLOTS_PER_NAME * self.config.max_documents_per_round
        return self.generator.start(
            [self._prompt(one) for one in asked],
            _of_rows(self.library.memory, [one.index for one in asked]),
            room,
            self.sampling,
            [one.seed for one in asked],
            self.search_docs,
        )

    def _prompt(self, one: _Asked) -> TokenBlock:
        budget = self.config.max_original_tokens
        pieces = retrievals(self.builder, one.question, one.hops, budget)
        if one.closing:
            pieces += self.builder.closing(one.question)
        return token_block(self.builder, pieces)

    def _routed(self, session: Session, count: int) -> list[Round]:
        """The round of each question before anything is named."""
        routing = session.routing
        if routing is None:
            nothing = np.zeros((0, 0), np.int32)
            return [Round(nothing, nothing, nothing.astype(np.float32), ())] * count
        slots, scores = routing.top_docs, routing.top_scores
        ids = np.full(slots.shape, -1, np.int64)
        ids[slots >= 0] = self.library.ids_of(slots[slots >= 0])
        return [Round(slots[:, row], ids[:, row], scores[:, row], ()) for row in range(count)]

    def _found(self, asked: Sequence[_Asked], routed: Sequence[Round]) -> list[Round]:
        """The rounds, with what is found for those that may name documents."""
        rows = [row for row, one in enumerate(asked) if not one.closing]
        if self.library.find is None or not rows:
            return list(routed)
        indexes, listings = zip(
            *((asked[row].index, routed[row].routed) for row in rows), strict=True
        )
        with _timed("finding", [asked[row] for row in rows]):
            found = dict(zip(rows, self.library.find(indexes, listings), strict=True))
        return [dataclasses.replace(one, found=found.get(row)) for row, one in enumerate(routed)]

    def _name(
        self, session: Session, asked: Sequence[_Asked], routed: Sequence[Round]
    ) -> list[tuple[int, ...]]:
        """Ids that each question names, none if it is ready for its answer."""
        rows = [row for row, one in enumerate(asked) if not one.closing]
        spellers = {row: self._speller(asked[row], routed[row]) for row in rows}
        # Tokens that are certain but not in the cache yet; most have no alternative and go there
        # several at a time.
        ahead = {row: speller.follow() for row, speller in spellers.items()}
        while going := [row for row in rows if not spellers[row].finished]:
            session.extend([ahead[row] if row in going else [] for row in range(len(asked))])
            allowed = {row: spellers[row].allowed() for row in going}
            biases = {row: spellers[row].biases() for row in going}
            chosen = session.choose(
                *([own.get(row) for row in range(len(asked))] for own in (allowed, biases))
            )
            for row in going:
                spellers[row].advance(chosen[row])
                ahead[row] = [chosen[row], *spellers[row].follow()]
        # Who named documents is prefilled anew; the others go on from `stop`.
        closings = {
            row: [*ahead[row], *_tokens(self.builder.closing(asked[row].question)[1:])]
            for row in rows
            if not spellers[row].named
        }
        session.extend([closings.get(row, []) for row in range(len(asked))])
        return [tuple(spellers[row].named) if row in spellers else () for row in range(len(asked))]

    def _speller(self, one: _Asked, routed: Round) -> Speller:
        table, log_weights, required = self.library.names, None, []
        ends = (x.tokens.tolist() for x in (self.builder.retrieved([]), self.builder.stop()))
        if routed.found is not None and self.config.constrain == "routed":
            unread = routed.found.ids[np.isin(routed.found.ids, one.documents, invert=True)]
            return Speller(NameTable(self.builder, unread[:1]), *ends, 1)
        if self.config.constrain == "routed":
            # Those that were listed beyond top_k_docs have not been attended to.
            attended = routed.ids[:, : self.builder.memory.top_k_docs]
            table = NameTable(self.builder, attended[attended >= 0])
        tau, margin = self.config.router_temperature, self.config.margin
        if tau is not None or margin:
            # Best first.
            mean_of = dict(zip(*routed.ranking, strict=True))
        if tau is not None:
            log_weights = np.array([mean_of[doc_id] for doc_id in table.ids], np.float64) / tau
        if margin:
            left = set(table.ids.tolist()).difference(one.documents)
            means = {doc_id: float(mean_of[doc_id]) for doc_id in mean_of if doc_id in left}
            least = max(means.values(), default=0.0) - margin
            required = [doc_id for doc_id in means if means[doc_id] >= least]
        max_names = min(
            self.config.max_documents_per_round, self.config.max_documents - len(one.documents)
        )
        return Speller(table, *ends, max_names, log_weights, one.documents, required)

    def _read(self, readers: Sequence[_Asked]) -> None:
        """Adds the originals that were named."""
        wanted = list(dict.fromkeys(doc_id for one in readers for doc_id in one.rounds[-1].named))
        texts = dict(zip(wanted, self.library.originals(wanted), strict=True)) if wanted else {}
        for one in readers:
            one.hops.append([Source(doc_id, texts[doc_id]) for doc_id in one.rounds[-1].named])
            one.closing = (
                len(one.rounds) >= self.config.max_rounds
                or len(one.documents) >= self.config.max_documents
            )

    def _answer(self, session: Session, asked: Sequence[_Asked], rows: Sequence[int]) -> None:
        end = self.builder.answer_end
        stops = [*self.sampling.stop, *([end] if end else [])]
        streams = {row: TextStream(self.builder.tokenizer, stops) for row in rows}
        ends = [self.builder.tokenizer.encode_template(end).tolist()] if end else []
        for block in session.decode(self.sampling.max_tokens, ends, rows) if rows else ():
            for row, stream in streams.items():
                asked[row].answer_tokens += len(block[row])
                self._say(asked[row], stream.push(block[row]))
                if stream.stopped_by is not None:
                    session.finish(row)
        for row, stream in streams.items():
            self._say(asked[row], stream.close())
            how = {None: "length", end: "end"}
            asked[row].finished = how.get(stream.stopped_by, "stop")

    def _say(self, one: _Asked, text: str) -> None:
        if text:
            one.answer += text
            self.on_text(one.index, text)


def _of_rows(memory: Memory | None, rows: Sequence[int]) -> Memory | None:
    """The memory with the rows of its `doc_mask` that belong to these questions."""
    mask = None if memory is None else memory.index.doc_mask
    if mask is None or mask.shape[1] == 1:
        return memory
    index = dataclasses.replace(memory.index, doc_mask=mask[:, np.array(rows)])
    return Memory(memory.layers, index)


def _tokens(pieces: Sequence[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.tokens.tolist()]


@contextlib.contextmanager
def _timed(stage: str, asked: Sequence[_Asked]) -> Iterator[None]:
    """Adds the seconds that pass to a stage of these questions."""
    start = time.perf_counter()
    yield
    for one in asked:
        one.seconds[stage] += time.perf_counter() - start
