"""Composes questions of two steps from questions that one document answers.

    python -m msa_jax.compose_questions --documents=docs.jsonl --questions=written.jsonl \\
        --to=composed.jsonl

joins a question whose answer is the title of a document with one about that document
(`msa_jax.data.composing`). There are few such pairs among few questions: one of 25 of those that
`python -m msa_jax.write_questions` wrote about Wikipedia.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from msa_jax import cli
from msa_jax.config import ConfigError
from msa_jax.data.composing import compose
from msa_jax.data.config import SourceConfig
from msa_jax.data.corpus import read_corpus
from msa_jax.data.records import write_questions
from msa_jax.flag_types import define_overwrite, refuse_to_replace
from msa_jax.terminal import show

FLAGS = flags.FlagValues()
_DOCUMENTS = flags.DEFINE_list(
    "documents", None, "Documents, JSON Lines files with commas between them.", flag_values=FLAGS
)
_QUESTIONS = flags.DEFINE_list(
    "questions", None, "Questions, JSON Lines files with commas between them.", flag_values=FLAGS
)
_TO = flags.DEFINE_string("to", None, "The JSON Lines file to write.", flag_values=FLAGS)
_OVERWRITE = define_overwrite(FLAGS)


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    source = SourceConfig(
        documents=tuple(cli.given(_DOCUMENTS, "a JSON Lines file")),
        questions=tuple(cli.given(_QUESTIONS, "a JSON Lines file")),
    )
    to = cli.given(_TO, "the file to write")
    refuse_to_replace(Path(to), _OVERWRITE.value)
    corpus = read_corpus({"given": source})
    single = [x for x in corpus.questions["given"] if x.answers and len(x.positive_ids) == 1]
    composed = list(compose(corpus.documents, single))
    if not composed:
        raise ConfigError("--questions has no answer that is the title of a document asked about.")
    write_questions(to, composed)
    show(f"{len(composed):,} questions of two steps written to {to}.")


def run() -> None:
    """Runs the program."""
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
