"""A corpus to train and measure on, made of what is installed: documentation with needles in it.

`build_demo_corpus` writes `{train,heldout}.{documents,questions}.jsonl`. Documents are passages of
documentation; questions ask for needles hidden in such passages (`needle-<kind>-...`), or are the
summary line of a docstring and ask for its body (`docstring-...`). Summary lines are in no
document. Text is split by module, keys of needles by their hash: nothing of what measures a model
has trained it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence

from msa_jax.config import ConfigError
from msa_jax.data import documentation, needles
from msa_jax.data.records import Document, Question, write_documents, write_questions
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.fields import Count, CountOrZero, NonNegative, Seed, check_fields

SPLITS = ("train", "heldout")

_FORMAT = 1  # raise it when equal arguments give another corpus than before
_NEEDLE_TOKENS = 34  # the longest needle, and the space beside it
_MAX_BODY_PASSAGES = 3  # longer bodies are no answer to one line
_SUMMARY_WORDS = range(5, 31)
_MIN_LETTERS = 0.5  # of what is not white space
# A line, or a sentence of it, with the white space before it: so cut, its tokens add up.
_UNIT = re.compile(r"\s*\S.*?(?:(?<=[^\s.][.!?])(?=\s)|$)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Size and contents of the corpus.

    Attributes:
        seed: of all random choices.
        tokenizer: what lengths are counted with.
        packages: where documentation is read from, see `documentation.gather`.
        document_tokens: longest text of a document.
        min_document_tokens: passages shorter than this are left out.
        train_needles: needle questions for training.
        train_docstrings: docstring questions for training, fewer if there are not so many.
        heldout_needles: needle questions to measure with.
        heldout_docstrings: docstring questions to measure with.
        heldout_tokens: passages held out, in tokens, but never more than half of all text.
        single, multi_key, multi_value: relative weights of the kinds of needle questions.
    """

    seed: Seed = 0
    tokenizer: str = "docs-4k"
    packages: tuple[str, ...] = documentation.PACKAGES
    document_tokens: Count = 108
    min_document_tokens: Count = 24
    train_needles: CountOrZero = 12_000
    train_docstrings: CountOrZero = 8_000
    heldout_needles: CountOrZero = 128
    heldout_docstrings: CountOrZero = 128
    heldout_tokens: CountOrZero = 1_100_000
    single: NonNegative = 2.0
    multi_key: NonNegative = 1.0
    multi_value: NonNegative = 1.0

    def __post_init__(self):
        check_fields(self)
        least = self.min_document_tokens + _NEEDLE_TOKENS
        if self.document_tokens < least:
            raise ConfigError(
                f"document_tokens ({self.document_tokens}) must be at least {least}, so that a "
                "needle and a passage fit."
            )
        weights = [getattr(self, kind) for kind in needles.KINDS]
        if not any(weights):
            raise ConfigError(
                f"{', '.join(needles.KINDS)} are weights of kinds of needles; one must be above 0."
            )


@dataclasses.dataclass(frozen=True)
class _Passage:
    document: Document
    tokens: int
    host: str  # the start of its text that leaves room for a needle


@dataclasses.dataclass(frozen=True)
class _Body:
    """The body of a docstring in passages, and its summary if that makes a question."""

    module: str
    passages: list[_Passage]
    question: str


def build_demo_corpus(
    directory: str | os.PathLike, config: DemoConfig | None = None
) -> dict[str, int]:
    """Writes the corpus, unless `directory` already holds the one of the same `config`.

    Returns:
        For each split the counts `<split>_documents`, `<split>_questions` and
        `<split>_passage_tokens` (documents without needles). `corpus.json`, which is written
        last, has them as well.

    Raises:
        ConfigError: if the installed packages have too little documentation for the questions.
    """
    config = config or DemoConfig()
    directory = pathlib.Path(directory)
    manifest = directory / "corpus.json"
    files = {
        (split, records): directory / f"{split}.{records}.jsonl"
        for split in SPLITS
        for records in ("documents", "questions")
    }
    arguments = {"format": _FORMAT, **json.loads(json.dumps(dataclasses.asdict(config)))}
    with contextlib.suppress(FileNotFoundError, ValueError):
        written = json.loads(manifest.read_text(encoding="utf-8"))
        if written["arguments"] == arguments and all(file.exists() for file in files.values()):
            return written["counts"]

    directory.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)  # from here on the files may not match it
    counts = {}
    for split, bodies in _split_modules(_cut_bodies(config), config.heldout_tokens).items():
        documents, questions = _make_split(split, bodies, config)
        write_documents(files[split, "documents"], documents)
        write_questions(files[split, "questions"], questions)
        counts[f"{split}_documents"] = len(documents)
        counts[f"{split}_questions"] = len(questions)
        counts[f"{split}_passage_tokens"] = _count_tokens(bodies)
    partial = directory / "corpus.json.partial"
    partial.write_text(
        json.dumps({"arguments": arguments, "counts": counts}, indent=2) + "\n", encoding="utf-8"
    )
    partial.replace(manifest)
    return counts


def cut_units(lengths: Sequence[int], limit: int) -> Iterator[slice]:
    """Yields runs of consecutive units, each run as long as `limit` allows.

    A unit that is longer than `limit` by itself is in none of them.
    """
    start, total = 0, 0
    for i, length in enumerate(lengths):
        if total + length > limit:
            if start < i:
                yield slice(start, i)
            start, total = i, 0
        if length > limit:
            start = i + 1
        else:
            total += length
    if start < len(lengths):
        yield slice(start, len(lengths))


def _cut_bodies(config: DemoConfig) -> list[_Body]:
    """Every docstring's body in passages that occur nowhere else, and its question."""
    docs = documentation.gather(config.packages)
    units = [_UNIT.findall(doc.body) for doc in docs]
    unique = list(dict.fromkeys(itertools.chain(*units)))  # "Parameters", "----------" and so on
    encoded = Tokenizer.load(config.tokenizer).encode_batch(unique)
    lengths = dict(zip(unique, map(len, encoded), strict=True))
    seen: set[str] = set()
    bodies, number = [], 0
    for doc, doc_units in zip(docs, units, strict=True):
        cut = _cut_body(doc_units, [lengths[unit] for unit in doc_units], config)
        passages = []
        for text, tokens, host in cut:
            if not _seen_before(text, seen):
                document = Document(f"passage-{number:06d}", text, metadata={"source": doc.name})
                passages.append(_Passage(document, tokens, host))
                number += 1
        answerable = 1 <= len(passages) == len(cut) <= _MAX_BODY_PASSAGES
        asks = answerable and _is_question(doc.summary) and not _seen_before(doc.summary, seen)
        bodies.append(_Body(doc.module, passages, doc.summary if asks else ""))
    return bodies


def _cut_body(
    units: Sequence[str], lengths: Sequence[int], config: DemoConfig
) -> list[tuple[str, int, str]]:
    """(text, tokens, text of a host) of each passage of a body."""
    passages = []
    for run in cut_units(lengths, config.document_tokens):
        text, tokens = "".join(units[run]).strip(), sum(lengths[run])
        if tokens >= config.min_document_tokens and _is_prose(text):
            room = config.document_tokens - _NEEDLE_TOKENS
            start = next(cut_units(lengths[run], room), slice(0))
            passages.append((text, tokens, "".join(units[run][start]).strip()))
    return passages


def _is_prose(text: str) -> bool:
    """Whether letters make up enough of a text; tables of numbers have few."""
    return sum(map(str.isalpha, text)) >= _MIN_LETTERS * len("".join(text.split()))


def _seen_before(text: str, seen: set[str]) -> bool:
    """Whether a text was in `seen`, case and white space aside; it is afterwards."""
    normal = " ".join(text.lower().split())
    known = normal in seen
    seen.add(normal)
    return known


def _is_question(summary: str) -> bool:
    return len(summary.split()) in _SUMMARY_WORDS and any(map(str.isalpha, summary))


def _split_modules(bodies: Iterable[_Body], heldout_tokens: int) -> dict[str, list[_Body]]:
    """Holds out modules in the order of their hash until there are enough tokens."""
    modules: dict[str, list[_Body]] = {}
    for body in bodies:
        modules.setdefault(body.module, []).append(body)
    wanted = min(heldout_tokens, sum(map(_count_tokens, modules.values())) // 2)
    splits: dict[str, list[_Body]] = {split: [] for split in SPLITS}
    found = 0
    for module in sorted(modules, key=lambda name: hashlib.sha256(name.encode()).digest()):
        splits["heldout" if found < wanted else "train"] += modules[module]
        found += _count_tokens(modules[module])
    return splits


def _count_tokens(bodies: Iterable[_Body]) -> int:
    return sum(passage.tokens for body in bodies for passage in body.passages)


def _make_split(
    split: str, bodies: Sequence[_Body], config: DemoConfig
) -> tuple[list[Document], list[Question]]:
    """All documents and questions of a split, shuffled so that any part is a fair sample."""
    rng = random.Random(f"{config.seed}/demo/{split}")
    hosts = [passage.host for body in bodies for passage in body.passages if passage.host]
    if len(hosts) < needles.MOST_DOCUMENTS:
        raise ConfigError(
            f"{', '.join(config.packages)}: too little documentation is installed to make a "
            f"{split} corpus of; name more packages."
        )
    num_needles = {"train": config.train_needles, "heldout": config.heldout_needles}[split]
    num_docstrings = {"train": config.train_docstrings, "heldout": config.heldout_docstrings}[split]
    documents, questions = needles.make_needles(
        hosts, _share(num_needles, config), split=split, seed=config.seed
    )
    asking = [body for body in bodies if body.question]
    rng.shuffle(asking)
    questions += [
        Question(
            id=f"docstring-{split}-{number:05d}",
            question=body.question,
            positive_ids=tuple(passage.document.id for passage in body.passages),
        )
        for number, body in enumerate(asking[:num_docstrings])
    ]
    documents += [passage.document for body in bodies for passage in body.passages]
    rng.shuffle(documents)
    rng.shuffle(questions)
    return documents, questions


def _share(total: int, config: DemoConfig) -> dict[str, int]:
    """Questions of each kind of needle, by weight; the first kind takes what rounding leaves."""
    weights = {kind: getattr(config, kind) for kind in needles.KINDS}
    counts = {kind: int(total * weight / sum(weights.values())) for kind, weight in weights.items()}
    counts[needles.KINDS[0]] += total - sum(counts.values())
    return counts
