"""The protocol of rounds: a scripted model, of which every question follows its own script."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.core.segments import PADDING
from msa_jax.data.examples import Asked, Source, build_examples
from msa_jax.data.records import Question
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.interleave import InterleaveConfig, Library, interleave
from msa_jax.engine.names import NameTable
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.modules.state import Routing

TOKENIZER = Tokenizer.load("docs-4k")
HEAD_LEN = len(TOKENIZER.encode_template(TEMPLATES["plain"].head))
BUILDER = PromptBuilder(TEMPLATES["plain"], TOKENIZER, MemoryConfig(head_len=HEAD_LEN))
# Slot s of the memory holds document IDS[s].
IDS = np.array([41, 7, 12, 120, 9])
ALL_SLOTS = range(len(IDS))
DEFAULT, GREEDY = InterleaveConfig(), SamplingConfig()
TEXTS = {41: " amber river", 7: " stone", 12: " cloud " * 30, 120: " harbor", 9: " meadow"}


def original(doc_id):
    return TOKENIZER.encode(TEXTS[doc_id])


class Scripted:
    """A generator whose model names documents, stops and answers as it is told.

    `scripts` has, for each question, the documents to name in each round (none to stop) and the
    answer.
    """

    def __init__(self, scripts, routed=ALL_SLOTS, scores=0.0):
        self.scripts = scripts
        self.routed = np.array(routed)
        self.scores = scores
        self.sessions = []
        self.originals_read = []

    def start(self, prompts, memory, room, sampling, row_seeds, search_docs):
        session = ScriptedSession(self, prompts)
        self.sessions.append(session)
        return session

    def script_of(self, prompt):
        text = TOKENIZER.decode(prompt.tokens)
        return next(script for asked, script in self.scripts.items() if asked in text)


class ScriptedSession:
    def __init__(self, generator, prompts):
        self.prompts = prompts
        self.scripts = [generator.script_of(prompt) for prompt in prompts]
        self.written = [[] for _ in prompts]
        self.finished = set()
        self.choices = []  # Factor of each token that was allowed, by its text.
        slots = np.broadcast_to(generator.routed, (2, len(prompts), len(generator.routed)))
        scores = np.broadcast_to(np.float32(generator.scores), slots.shape)
        self.routing = Routing(scores, slots)

    def extend(self, tokens):
        for own, more in zip(self.written, tokens, strict=True):
            own += [int(token) for token in more]

    def choose(self, allowed, biases):
        for own, bias in zip(allowed, biases, strict=True):
            if bias is not None:
                texts = [TOKENIZER.decode([token]) for token in own]
                self.choices.append(dict(zip(texts, np.exp(bias), strict=True)))
        return [None if own is None else self._next(row, own) for row, own in enumerate(allowed)]

    def _next(self, row, allowed):
        names, _ = self.scripts[row]
        done = TOKENIZER.decode(self.prompts[row].tokens).count("<|object_ref_end|>") // 2
        wanted = BUILDER.retrieved(names[done]) if done < len(names) else BUILDER.stop()
        token = int(wanted.tokens[len(self.written[row])])
        assert token in allowed
        return token

    def decode(self, max_tokens, ends, rows):
        answers = {row: BUILDER.answer(self.scripts[row][1]).tokens[:max_tokens] for row in rows}
        for start in range(0, max_tokens, 3):
            block = [answers.get(row, [])[start : start + 3] for row in range(len(self.prompts))]
            block = [[] if row in self.finished else own for row, own in enumerate(block)]
            self.extend(block)
            if any(len(own) for own in block):
                yield [np.array(own, np.int32) for own in block]

    def finish(self, row):
        self.finished.add(row)


def ask(scripts, config=DEFAULT, sampling=GREEDY, **changes):
    """Runs all scripts together; also returns the generator."""
    generator = changes.pop("generator", None) or Scripted(scripts)
    given = changes.pop("given", None)

    def originals(ids):
        generator.originals_read.append(list(ids))
        return [original(doc_id) for doc_id in ids]

    library = Library(None, lambda slots: IDS[slots], originals, **changes)
    said = []
    answers = interleave(
        generator, BUILDER, library, list(scripts), config, sampling,
        on_text=lambda index, text: said.append((index, text)), given=given,
    )  # fmt: skip
    for index, answer in enumerate(answers):
        assert "".join(text for at, text in said if at == index) == answer.answer
    return answers, generator


def rounds_of(conversation):
    return [one.named for one in conversation.rounds]


SCRIPTS = {
    "Which river?": ([[41, 7], [9]], "amber 河"),
    "Which harbor?": ([[120]], "far away"),
    "Nothing to read?": ([], "no"),
}


def test_every_question_reads_as_often_as_it_needs():
    answers, generator = ask(SCRIPTS)
    assert [len(session.prompts) for session in generator.sessions] == [3, 2, 1]
    assert [rounds_of(one) for one in answers] == [[(41, 7), (9,), ()], [(120,), ()], [()]]
    assert [one.documents for one in answers] == [(41, 7, 9), (120,), ()]
    assert [one.answer for one in answers] == ["amber 河", "far away", "no"]
    assert [one.finished for one in answers] == ["end"] * 3
    assert generator.originals_read == [[41, 7, 120], [9]]
    assert set(answers[0].seconds) == {"prefill", "naming", "originals", "answer"}


@pytest.mark.parametrize("question", SCRIPTS)
def test_tokens_are_those_of_training(question):
    """Prompt of each round, and all tokens up to the answer's end, with roles and positions."""
    _, generator = ask(SCRIPTS)
    names, answer = SCRIPTS[question]
    hops = [[Source(doc_id, original(doc_id)) for doc_id in hop] for hop in names]
    record = Question("q", question, (answer,), ())
    for step in [*range(len(names)), None]:
        examples = build_examples(BUILDER, [Asked(record, hops, step)], 1000)
        example = jax.tree.map(lambda leaf: leaf[0], examples.active)
        total = int((example.doc_ids != PADDING).sum())
        session = generator.sessions[len(names) if step is None else step]
        row = [question in TOKENIZER.decode(p.tokens) for p in session.prompts].index(True)
        prompt = session.prompts[row]
        own = slice(len(prompt.tokens))
        for field in ("tokens", "doc_ids", "segment_pos"):
            np.testing.assert_array_equal(getattr(prompt, field), getattr(example, field)[own])
        rest = example.tokens[len(prompt.tokens) : total].tolist()
        # The end of a name that has no alternative is known without writing it.
        assert session.written[row] == rest[: len(session.written[row])]
        assert step is not None or session.written[row] == rest


def test_without_rounds_the_answer_comes_at_once():
    answers, generator = ask(SCRIPTS, InterleaveConfig(max_rounds=0))
    (session,) = generator.sessions
    assert [rounds_of(one) for one in answers] == [[()]] * 3
    assert [one.answer for one in answers] == [script[1] for script in SCRIPTS.values()]
    for prompt, question in zip(session.prompts, SCRIPTS, strict=True):
        expected = [*BUILDER.prompt(question), *BUILDER.closing(question)]
        np.testing.assert_array_equal(
            prompt.tokens, np.concatenate([piece.tokens for piece in expected])
        )


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"max_rounds": 1}, [(41, 7, 120), ()]),
        ({"max_documents": 3}, [(41, 7, 120), ()]),
        ({"max_documents": 4}, [(41, 7, 120), (9,), ()]),
    ],
)
def test_budgets_end_the_reading(budget, expected):
    scripts = {"All of it?": ([[41, 7, 120], [9], [12]], "x")}
    if "max_documents" not in budget:
        scripts["Stopped?"] = ([], "y")
    answers, _ = ask(scripts, InterleaveConfig(**budget))
    assert rounds_of(answers[0]) == expected
    assert answers[0].answer == "x" and answers[0].finished == "end"


def test_a_round_has_at_most_so_many_names():
    """The script would go on, but the end is all that is left, which nobody asks the model."""
    scripts = {"All of it?": ([[41, 7, 120], [9]], "x")}
    answers, _ = ask(scripts, InterleaveConfig(max_documents_per_round=2))
    assert rounds_of(answers[0]) == [(41, 7), (9,), ()]


@pytest.mark.parametrize("constrain", ["routed", "existing"])
def test_no_document_is_named_twice_in_a_conversation(monkeypatch, constrain):
    """By a model that names all it can, preferring the same ones in every round."""
    closings = {int(piece.tokens[0]) for piece in (BUILDER.retrieved([]), BUILDER.stop())}
    monkeypatch.setattr(
        ScriptedSession,
        "_next",
        lambda session, row, allowed: int(min(token for token in allowed if token not in closings)),
    )
    scripts = {"From the start?": ([], "x"), "Having read?": ([], "y")}
    config = InterleaveConfig(9, max_documents_per_round=2, constrain=constrain)
    given = [[], [[Source(12, original(12))]]]
    answers, generator = ask(scripts, config, names=NameTable(BUILDER, IDS), given=given)
    for answer, already, sizes in zip(answers, ((), (12,)), ([2, 2, 1, 0], [2, 2, 0]), strict=True):
        rounds = rounds_of(answer)
        assert [len(named) for named in rounds] == sizes, "the last has nothing left to name"
        assert answer.documents == (*already, *sum(rounds, ()))
        assert sorted(answer.documents) == sorted(IDS)
    last = TOKENIZER.decode(generator.sessions[-1].prompts[0].tokens)
    assert [last.count(f"[{doc_id}].") for doc_id in IDS] == [1] * len(IDS)


def test_originals_share_their_budget():
    scripts = {"All of it?": ([[12, 41], [7]], "x")}
    _, generator = ask(scripts, InterleaveConfig(max_original_tokens=20))
    shown = TOKENIZER.decode(generator.sessions[-1].prompts[0].tokens)
    assert TEXTS[41] in shown and TEXTS[7] in shown and TEXTS[12] not in shown
    assert " cloud" in shown


def test_only_what_was_routed_to_can_be_named():
    scripts = {"Which?": ([[12, 41]], "x")}
    generator = Scripted(scripts, routed=[0, -1, 2])
    answers, _ = ask(scripts, generator=generator)
    first = answers[0].rounds[0]
    assert first.ids.tolist() == [[41, -1, 12]] * 2 and first.slots.tolist() == [[0, -1, 2]] * 2
    # All of them are named: nothing but the end may follow.
    assert first.named == (12, 41)


def test_what_was_not_attended_to_cannot_be_named():
    """Once a name has begun there is one way to go on, since 7 is listed too far down."""
    scripts = {"Which?": ([[7]], "x")}
    routed = [0] * BUILDER.memory.top_k_docs + [1]
    answers, _ = ask(scripts, generator=Scripted(scripts, routed))
    assert rounds_of(answers[0]) == [(41,), ()]
    assert answers[0].rounds[0].ids[0, -1] == 7


def test_routers_count_as_a_softmax_of_their_mean_scores():
    """Of those attended to: 7 is listed too far down."""
    top_k = BUILDER.memory.top_k_docs
    slots = [0, 2, 3, *[4] * (top_k - 3), 1]
    scores = np.zeros((2, 1, len(slots)))
    scores[:, 0, :3] = [[0.9, 0.7, 0.1], [0.5, 0.1, 0.3]]
    scripts = {"Which?": ([[120, 41]], "x")}
    generator = Scripted(scripts, slots, scores)
    ask(scripts, InterleaveConfig(max_rounds=1, router_temperature=0.2), generator=generator)
    of_41, of_12, of_120, of_9 = np.exp(np.array([0.7, 0.4, 0.2, 0.0]) / 0.2)
    ones = of_12 + of_120
    first, second = ones + of_41 + of_9, of_12 + of_41 + of_9
    expected = [
        {"[": 1, BUILDER.template.stop: 1},
        {"1": ones / first, "4": of_41 / first, "9": of_9 / first},
        {"]": of_12 / ones, "0": of_120 / ones},
        {"[": 1, BUILDER.template.retrieved_end: 1},
        {"1": of_12 / second, "4": of_41 / second, "9": of_9 / second},
        {"[": 1, BUILDER.template.retrieved_end: 1},
    ]
    assert generator.sessions[0].choices == [pytest.approx(shares) for shares in expected]


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        ({}, [(120,), (12,), (41,), ()]),
        ({"margin": 0.0}, [(120,), (12,), (41,), ()]),
        # The first is the model's choice, and of the others, the order.
        ({"margin": 0.06}, [(120, 7, 9), (12,), (41,), ()]),
        ({"margin": 0.06, "router_temperature": 9.0}, [(120, 7, 9), (12,), (41,), ()]),
        # As far as there is room, the best.
        ({"margin": 0.2, "max_documents_per_round": 2}, [(120, 7), (12, 9), (41,), ()]),
        ({"margin": 0.2, "max_documents": 3}, [(120, 7, 9), ()]),
        # Of those not read yet: 41 is too far below the best of all.
        ({"margin": 0.31, "max_documents_per_round": 3}, [(120, 7, 9), (12, 41), ()]),
        ({"margin": 9.0, "max_rounds": 1}, [(120, 12, 41, 7, 9), ()]),
        ({"margin": 9.0, "max_documents_per_round": 1}, [(120,), (12,), (41,), ()]),
    ],
)
def test_what_is_within_the_margin_of_the_best_is_named_too(monkeypatch, reading, expected):
    """By a model that names a document in every round and ends it as soon as it may."""
    end, stop = (int(piece.tokens[0]) for piece in (BUILDER.retrieved([]), BUILDER.stop()))
    monkeypatch.setattr(
        ScriptedSession,
        "_next",
        lambda session, row, allowed: end if end in allowed else int(min(set(allowed) - {stop})),
    )
    mean_of = {41: 0.5, 7: 0.9, 12: 0.8, 120: 0.1, 9: 0.85}
    scores = np.array([mean_of[doc_id] for doc_id in IDS]) + [[[0.05]], [[-0.05]]]
    generator = Scripted({"Which?": ([], "x")}, scores=scores)
    answers, _ = ask(generator.scripts, InterleaveConfig(**reading), generator=generator)
    assert rounds_of(answers[0]) == expected


def test_any_document_that_exists_can_be_named():
    scripts = {"Which?": ([[7]], "x")}
    table = NameTable(BUILDER, IDS.tolist())
    config = InterleaveConfig(constrain="existing")
    answers, _ = ask(scripts, config, generator=Scripted(scripts, [0, 2]), names=table)
    assert answers[0].documents == (7,)
    with pytest.raises(ConfigError, match=r"needs library\.names"):
        ask(scripts, config)


def test_with_nothing_routed_to_the_model_stops():
    answers, _ = ask({"Which?": ([], "x")}, generator=Scripted({"Which?": ([], "x")}, [-1, -1]))
    assert rounds_of(answers[0]) == [()] and answers[0].answer == "x"


def test_a_stop_text_or_the_length_ends_an_answer():
    sampling = SamplingConfig(max_tokens=40, stop=("stone",))
    answers, generator = ask(
        {"One?": ([], "the amber stone falls"), "Two?": ([], "river " * 100)}, sampling=sampling
    )
    assert (answers[0].answer, answers[0].finished) == ("the amber", "stop")
    assert answers[1].finished == "length" and answers[1].answer_tokens == 40
    assert 0 in generator.sessions[0].finished


def test_no_questions_give_no_answers():
    assert ask({})[0] == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_rounds", -1, "max_rounds must be a whole number from 0 on"),
        ("max_documents", 0, "max_documents must be a positive whole number, not 0"),
        ("constrain", "any", "constrain must be one of routed, existing"),
        ("router_temperature", 0, "router_temperature must be a positive number or None, not 0"),
        ("router_temperature", float("nan"), "router_temperature must be a positive .* not nan"),
        ("router_temperature", float("inf"), "router_temperature must be a positive .* not inf"),
        ("margin", -0.1, "margin must be a number from 0 on or None, not -0.1"),
        ("margin", float("nan"), "margin must be a number from 0 on or None, not nan"),
        ("margin", float("inf"), "margin must be a number from 0 on or None, not inf"),
        ("margin", "wide", "margin must be a number from 0 on or None, not 'wide'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        InterleaveConfig(**{field: value})


@pytest.mark.parametrize("field", ["router_temperature", "margin"])
def test_routers_count_only_among_what_they_chose(field):
    with pytest.raises(ConfigError, match=f"{field} must be None with constrain='existing'"):
        InterleaveConfig(constrain="existing", **{field: 0.1})
