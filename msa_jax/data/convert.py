"""Converts the files of a dataset, as its project publishes them, to our JSON Lines.

    python -m msa_jax.data.convert --format=squad --input=dev-v2.0.json --output=data/squad

writes `documents.jsonl` and `questions.jsonl` (`data.records`) into the output folder;
`--overwrite` replaces those that are there. Questions that no document answers are left out.
docs/data.md shows a command for each format. Inputs may be compressed (`.gz`, `.xz`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from msa_jax import cli
from msa_jax.config import ConfigError
from msa_jax.data.formats import FORMATS, Record, check_format
from msa_jax.data.records import (
    Document,
    Question,
    RecordError,
    write_documents,
    write_questions,
)
from msa_jax.flag_types import define_overwrite, refuse_to_replace
from msa_jax.terminal import show

DOCUMENTS, QUESTIONS = "documents.jsonl", "questions.jsonl"

FLAGS = flags.FlagValues()
_FORMAT = flags.DEFINE_enum(
    "format", None, tuple(FORMATS), "What the files are.", flag_values=FLAGS
)
_INPUT = flags.DEFINE_string(
    "input", None, "The file; for beir, msmarco and text a folder.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", flag_values=FLAGS)
_OVERWRITE = define_overwrite(FLAGS)


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    name = cli.given(_FORMAT, f"one of {', '.join(FORMATS)}")
    source = cli.given(_INPUT, "the file or folder to convert")
    output = Path(cli.given(_OUTPUT, "the folder to write"))
    refuse_to_replace(output / DOCUMENTS, _OVERWRITE.value)
    show(convert(name, Path(source), output))


def convert(name: str, source: Path, output: Path) -> str:
    """Converts a dataset; `output` then has the whole of it, or is as it was.

    Args:
        name: of a format.
        source: file or folder.
        output: made if absent.

    Returns:
        How much there is, and what was left out.

    Raises:
        RecordError: if `source` is not of this format.
        ConfigError: if `output` is a file.
    """
    check_format(source, name)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output={output} is a file; name a folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    # On the file system of the output, so that files can be moved there.
    place = output if output.is_dir() else output.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=".convert-") as staged:
        conversion = Conversion(FORMATS[name](source), source)
        write_documents(Path(staged, DOCUMENTS), conversion.documents())
        if conversion.questions:
            write_questions(Path(staged, QUESTIONS), conversion.questions)
        output.mkdir(exist_ok=True)
        (output / QUESTIONS).unlink(missing_ok=True)  # It asks of the documents that go.
        for path in Path(staged).iterdir():
            path.replace(output / path.name)
    return f"{conversion.describe()}, written to {output}."


class Conversion:
    """Sorts the records of a dataset, and leaves out copies and what cannot be asked.

    Attributes:
        num_documents: that were yielded so far.
        questions: that were read so far, each with a positive.
        num_left_out: questions that are empty or that no document answers.
    """

    def __init__(self, records: Iterable[Record], source: Path):
        """`source` is what error messages name."""
        self._records, self._source = records, source
        self.num_documents, self.num_left_out = 0, 0
        self.questions: list[Question] = []

    def documents(self) -> Iterator[Document]:
        """Yields each document once, and keeps the questions between them.

        Raises:
            RecordError: for an id of two different documents, or if there is no document.
        """
        seen: dict[str, int] = {}
        for record in tqdm(self._records, desc="convert", unit="record", delay=1):
            if isinstance(record, Question):
                self._keep(record)
                continue
            # Of a large collection the texts do not fit into memory.
            content = hash((record.title, record.text))
            if seen.setdefault(record.id, content) != content:
                raise RecordError(
                    f"{self._source}: id {record.id!r} is that of two different documents."
                )
            if len(seen) > self.num_documents:
                self.num_documents = len(seen)
                yield record
        if not seen:
            raise RecordError(f"{self._source}: there is no document in it.")

    def describe(self) -> str:
        """How much was read, in a line."""
        described = f"{self.num_documents:,} documents and {len(self.questions):,} questions"
        if self.num_left_out:
            described += f" ({self.num_left_out:,} more, empty or without a document that answers)"
        return described

    def _keep(self, question: Question) -> None:
        if question.question and question.positive_ids:
            self.questions.append(question)
        else:
            self.num_left_out += 1


def run() -> None:
    """Runs the program."""
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
