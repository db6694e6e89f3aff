"""A memory that lives: it is made, asked, added to, asked, taken from and asked again.

    python examples/living_memory.py --run=runs/tiny

makes a bank from held-out documents of a run of configs/tiny.py, with the needles of three
questions among them, and then adds and deletes a document with a needle of its own. Exit code 1
says that an answer did not show the change before it.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from msa_jax import cli
from msa_jax.data.needles import make_needles
from msa_jax.data.records import Document, read_documents, read_questions
from msa_jax.engine.answers import Answer, AskConfig
from msa_jax.engine.engine import Engine
from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.engine.snippets import snippet
from msa_jax.memory.store import Store

PASSAGES, QUESTIONS, LISTED, SNIPPET_WIDTH = 300, 3, 3, 66
NEW_KEY = "a-new-note"
NOTE = "Written on a rainy morning. Kept here so that nobody forgets it."

FLAGS = flags.FlagValues()
_RUN = flags.DEFINE_string("run", "runs/tiny", "Workdir of the trained model.", flag_values=FLAGS)
_BANK = flags.DEFINE_string(
    "bank", None, "Directory of the bank; by default in the workdir.", flag_values=FLAGS
)


def main(_: Sequence[str]) -> None:
    run = Path(_RUN.value)
    bank = _BANK.value or run / "bank"
    documents, questions = _corpus(run / "corpus")
    note, question = _note(questions)
    print(f"A memory in {bank}, encoded by the model of {run}")
    with _open(bank, run) as engine:
        if NEW_KEY in engine.store:  # Left behind when this was interrupted.
            engine.delete([NEW_KEY])
        counts = engine.add(documents)
        print(f"{counts.added} documents added, {counts.unchanged} were there already")
        config = _config(engine, questions)

        print(f"\n1. Questions that {QUESTIONS} of the documents answer")
        for answer in engine.ask_all(questions, config):
            _show(answer)
        print("\n2. One that none of them answers")
        before = engine.ask(question, config)
        _show(before)
        print(f"\n3. The same, after adding {NEW_KEY!r}: {note.text}")
        engine.add([note])
        with_note = engine.ask(question, config)
        _show(with_note)
        print(f"\n4. The same, after deleting {NEW_KEY!r}")
        engine.delete([NEW_KEY])
        after = engine.ask(question, config)
        _show(after)
    _check(_keys(before), _keys(with_note), _keys(after))


def _corpus(folder: Path) -> tuple[list[Document], list[str]]:
    """Passages with a few needles among them, and the questions for these."""
    documents = read_documents(folder / "heldout.documents.jsonl")
    questions = read_questions(folder / "heldout.questions.jsonl")
    asked = [x for x in questions if x.id.startswith("needle-single-")][:QUESTIONS]
    needles = {key for x in asked for key in x.positive_ids}
    passages = [x for x in documents if x.id.startswith("passage-")][:PASSAGES]
    return passages + [x for x in documents if x.id in needles], [x.question for x in asked]


def _note(questions: Sequence[str]) -> tuple[Document, str]:
    """A document with a needle of its own, and the question for it, which is none of these."""
    made = make_needles([NOTE], {"single": QUESTIONS + 1}, split="heldout", seed=1)
    pairs = zip(*made, strict=True)
    note, question = next(pair for pair in pairs if pair[1].question not in questions)
    return dataclasses.replace(note, id=NEW_KEY), question.question


def _open(bank: str | Path, run: Path) -> Engine:
    if Store.exists(bank):
        return Engine.open(bank, run, write=True)
    return Engine.create(bank, run)


def _config(engine: Engine, questions: Sequence[str]) -> AskConfig:
    """To abstain below half of what documents score that do answer."""
    best = statistics.mean(engine.retrieve(x, 1)[0].score for x in questions)
    print(
        f"The best documents for {len(questions)} questions that have an answer score {best:.3f} "
        f"on average.\nWhere none scores half of that, {best / 2:.3f}, there shall be no answer.\n"
        "Look at which documents are found: minutes of training are enough for that. The words "
        "that so\nsmall and young a model writes mean nothing."
    )
    return AskConfig(
        # To name documents and to write is learnt long after finding: answer at once, and briefly.
        interleave=InterleaveConfig(max_rounds=0),
        sampling=SamplingConfig(max_tokens=8),
        abstain_below=best / 2,
        num_documents=LISTED,
    )


def _show(answer: Answer) -> None:
    print(f"   {answer.question}")
    print("     no answer; found" if answer.abstained else f"     {answer.text!r}, from")
    for document in answer.documents:
        words = snippet(document.text, answer.question, SNIPPET_WIDTH)
        print(f"     {document.score:.3f}  {document.key}: {words}")


def _keys(answer: Answer) -> list[str]:
    return [document.key for document in answer.documents]


def _check(before: list[str], with_note: list[str], after: list[str]) -> None:
    if NEW_KEY in before or NEW_KEY not in with_note or after != before:
        sys.exit("The answers do not show the changes: the model has not learnt to find documents.")
    print(f"\n{NEW_KEY!r} was found while it was there, and at no other time.")


def run() -> None:
    """Runs the program."""
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
