"""Mines hard negatives: documents that BM25, or a model's routers, take for the answer.

    python -m msa_jax.mine --method=bm25 --documents=docs.jsonl --questions=questions.jsonl \\
        --to=mined.jsonl

writes the questions with `negative_ids`: for each the best-ranked documents that are not positive
and do not contain an answer, after those that it has. To join several rankings, give the file of
one as the questions of the next. Train with them by naming the new file as the questions of a
source; `data.negatives_per_question` says how many come into memory.

    python -m msa_jax.mine --queries=synthetic --documents=docs.jsonl --to=mined.jsonl

asks questions made of the documents' own words instead, one of each document. `--max_rank=3` keeps
only questions that say which document they are about: "What does she buy?" is about many.
`--order=similar` writes questions about similar documents one after another, so that a stage's
`cluster` brings together what is hard to tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from msa_jax import cli
from msa_jax.config import ConfigError
from msa_jax.data.config import DataConfig, SourceConfig
from msa_jax.data.corpus import read_corpus
from msa_jax.data.examples import token_block
from msa_jax.data.mining import RANKED, Bm25, mine_negatives, neighbours_together
from msa_jax.data.parts import split_documents
from msa_jax.data.records import Document, Question, write_questions
from msa_jax.data.synthetic import questions_about
from msa_jax.engine.encode import encode_documents
from msa_jax.engine.generate import Generator
from msa_jax.engine.loading import load_model
from msa_jax.engine.ranking import rank_documents
from msa_jax.fields import Count
from msa_jax.flag_types import define_number, define_overwrite, refuse_to_replace
from msa_jax.terminal import show

METHODS = ("bm25", "router")
QUERIES = ("given", "synthetic")
ORDERS = ("given", "similar")

FLAGS = flags.FlagValues()


def _string(name: str, help_string: str) -> flags.FlagHolder:
    return flags.DEFINE_string(name, None, help_string, flag_values=FLAGS)


def _list(name: str, help_string: str) -> flags.FlagHolder:
    return flags.DEFINE_list(name, None, help_string, flag_values=FLAGS)


def _integer(name: str, default: int | None, help_string: str) -> flags.FlagHolder:
    return define_number(name, default, Count, help_string, FLAGS)


_METHOD = flags.DEFINE_enum("method", "bm25", METHODS, "What ranks.", flag_values=FLAGS)
_ASKED = flags.DEFINE_enum("queries", "given", QUERIES, "What is asked.", flag_values=FLAGS)
_DOCUMENTS = _list("documents", "JSON Lines files of documents, with commas between them.")
_QUESTIONS = _list("questions", "JSON Lines files of questions, with commas between them.")
_TO = _string("to", "The JSON Lines file to write.")
_OVERWRITE = define_overwrite(FLAGS)
_SPLIT = _string("split", "Only questions whose field `split` is this.")
_DATASETS = _list(
    "datasets",
    "Only questions whose field `dataset` is one of these; of documents, those whose `source` is "
    "one of these, or missing.",
)
_NEGATIVES = _integer(
    "negatives", 8, "How many a question gets, at most, besides those that it has."
)
_MAX_RANK = _integer(
    "max_rank", None, "Leave out questions one of whose documents is ranked lower; none by default."
)
_ORDER = flags.DEFINE_enum("order", "given", ORDERS, "Of the questions.", flag_values=FLAGS)
_MAX_WORDS = _integer(
    "max_words", 150, "With --queries=synthetic: longer documents are not asked about."
)
_CHECKPOINT = _string("checkpoint", "With --method=router: a model, as for msa_jax.encode.")
_BATCH_SIZE = _integer("batch_size", 64, "With --method=router: questions at once.")


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    are_given = _ASKED.value == "given"
    source = SourceConfig(
        documents=tuple(cli.given(_DOCUMENTS, "a JSON Lines file")),
        questions=tuple(cli.given(_QUESTIONS, "a JSON Lines file")) if are_given else None,
        queries=_ASKED.value,
        split=_SPLIT.value,
        datasets=tuple(_DATASETS.value) if _DATASETS.value else None,
    )
    to = cli.given(_TO, "the file to write")
    refuse_to_replace(Path(to), _OVERWRITE.value)
    corpus = read_corpus({"mined": source})
    documents = list(corpus.documents.values())
    given = corpus.questions["mined"]
    questions = given if are_given else questions_about(documents, _MAX_WORDS.value)
    if _METHOD.value == "bm25":
        rankings = Bm25(documents).rank(questions)
    else:
        rankings = rank_by_router(cli.given(_CHECKPOINT, "the model"), documents, questions)
    mined = list(mine_negatives(documents, questions, rankings, _NEGATIVES.value, _MAX_RANK.value))
    if not mined:
        raise ConfigError("--max_rank leaves no question; raise it.")
    if _ORDER.value == "similar":
        mined = neighbours_together(mined)
    write_questions(to, mined)
    mean = sum(len(question.negative_ids) for question in mined) / len(mined)
    show(f"{len(mined):,} questions with {mean:.1f} negatives each, written to {to}.")


def rank_by_router(
    checkpoint: str, documents: Sequence[Document], questions: Sequence[Question]
) -> Iterator[list[int]]:
    """The best documents for each question by index, best first, by a model's routers.

    Args:
        checkpoint: what `load_model` takes.
        documents: encoded with the length that the model was trained with.
        questions: what is asked.

    Raises:
        ConfigError: if there is no such model.
    """
    loaded = load_model(checkpoint)
    builder = loaded.builder
    longest = loaded.max_document_tokens or DataConfig().max_document_tokens
    parts = split_documents(documents, builder, longest)
    owners = np.repeat(np.arange(len(documents)), [len(parts.of[x.id]) for x in documents])
    ids = 1 + np.random.default_rng(0).choice(10 * len(parts), size=len(parts), replace=False)
    texts = [builder.document(*pair) for pair in zip(ids.tolist(), parts, strict=True)]
    total = sum(map(len, texts))
    with tqdm(total=total, desc="encode", unit="tok", unit_scale=True) as bar:
        memory = encode_documents(loaded.model, loaded.params, texts, longest, on_batch=bar.update)
    memory, generator = jax.device_put(memory), Generator(loaded.model, loaded.params)
    depth = min(RANKED, len(parts))
    for start in tqdm(range(0, len(questions), _BATCH_SIZE.value), desc="rank", unit="batch"):
        some = questions[start : start + _BATCH_SIZE.value]
        prompts = [token_block(builder, builder.prompt(x.question)) for x in some]
        routing = generator.start(prompts, memory, room=1, search_docs=depth).routing
        for row in range(len(some)):
            ranked, _ = rank_documents(routing.top_docs[:, row], routing.top_scores[:, row])
            yield list(dict.fromkeys(owners[ranked].tolist()))


def run() -> None:
    """Runs the program."""
    cli.keep_compiled()
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
