"""The documents of an evaluation as parts: cut, named and counted once, and kept for other runs.

A part is a document, or a piece of a long one, and is what memories hold and rankings list. What
is kept is enough for every system that is measured: tokens as memory holds them, from which the
text comes back. It belongs to the content of the files, wherever they lie, and to the tokenizer.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from msa_jax.config import ConfigError
from msa_jax.data.parts import PartWriter
from msa_jax.data.records import Document, RecordError, read_documents
from msa_jax.data.templates import PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.evaluation.conditions import Provenance, digest_files, text_conditions
from msa_jax.fields import Count, Seed, Within, check_fields
from msa_jax.typing import Int

T = TypeVar("T")

_KEY = "corpus"
_COLUMNS = ("stops", "before", "after", "ids", "document", "pool")
_TABLE, _TOKENS = "parts.xz", "tokens-{:02d}.xz"
# Tokens of one file: small files can be moved one by one, and read and written side by side.
_SHARD_TOKENS = 1 << 24
_SLICE_DOCUMENTS = 4096
# Tokens are numbers of two or four bytes, which these settings of LZMA expect.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 1, "pb": 1}]


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Which documents there are.

    A document's pool is its field `source`, or where it has none the name of its file up to the
    first dot. Of documents that show the same (title, text, date) the first is
    kept.

    Attributes:
        documents: files (`records.read_documents`).
        without_pools: pools that are left out.
        max_document_tokens: longer documents are cut; counts the id and template tokens.
        id_space: parts are called by random ids in [1, id_space).
        max_tokens: of all parts together; of the last file, parts are drawn until these are there.
            None for all parts.
        seed: of ids and of that draw.
    """

    documents: tuple[str, ...]
    without_pools: tuple[str, ...] = ()
    max_document_tokens: Count = 256
    id_space: Annotated[int, Within(low=2)] = 1_000_000
    max_tokens: Count | None = None
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Parts of all documents.

    Attributes:
        tokens: of all parts as memory holds them, one after the other.
        stops: of each part, one past its last token.
        before: of each part, tokens before its text.
        after: of each part, tokens after its text.
        ids: what the model calls each part.
        document: of each part, an index into `titles`.
        pool: of each part, an index into `pools`.
        titles: of documents.
        pools: names.
        document_of: index of a document by its key; copies that were dropped have that of the
            first.
    """

    tokens: Int[np.ndarray, " all"]
    stops: Int[np.ndarray, " n"]
    before: Int[np.ndarray, " n"]
    after: Int[np.ndarray, " n"]
    ids: Int[np.ndarray, " n"]
    document: Int[np.ndarray, " n"]
    pool: Int[np.ndarray, " n"]
    titles: Sequence[str]
    pools: Sequence[str]
    document_of: dict[str, int]

    def __len__(self) -> int:
        return len(self.stops)

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Tokens of each part as memory holds it."""
        return np.diff(self.stops, prepend=0)

    def parts_called(self, ids: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Parts with these ids; -1 for -1."""
        return np.where(ids < 0, -1, self._part_of[ids])

    @cached_property
    def _part_of(self) -> Int[np.ndarray, " ids"]:
        part_of = np.full(self.ids.max() + 1, -1)
        part_of[self.ids] = np.arange(len(self))
        return part_of

    def part(self, index: int) -> Int[np.ndarray, " T"]:
        """A part as memory holds it."""
        start = self.stops[index - 1] if index else 0
        return self.tokens[start : self.stops[index]]

    def text_tokens(self, index: int) -> Int[np.ndarray, " T"]:
        """The text of a part, its title included where it has one."""
        tokens = self.part(index)
        return tokens[self.before[index] : len(tokens) - self.after[index]]

    def texts(self, tokenizer: Tokenizer, parts: Sequence[int]) -> Iterator[str]:
        """Texts of parts, in words."""
        for start in range(0, len(parts), _SLICE_DOCUMENTS):
            some = parts[start : start + _SLICE_DOCUMENTS]
            for text in tokenizer.decode_batch([self.text_tokens(part) for part in some]):
                yield text.strip()


def load_corpus(config: CorpusConfig, builder: PromptBuilder, folder: str | Path) -> Corpus:
    """The corpus that is kept in a folder; it is made and put there if there is none.

    Raises:
        ConfigError: if the folder holds another corpus, or ids do not suffice for the parts.
        RecordError: for a bad record.
    """
    folder = Path(folder)
    own = {_KEY: corpus_conditions(config, builder)}
    provenance = Provenance(folder, own, "documents")
    if _KEY in provenance.by_key:
        return _read(folder)
    corpus = _build(config, builder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(corpus, folder)
    provenance.keep(_KEY)
    return corpus


def corpus_conditions(config: CorpusConfig, builder: PromptBuilder) -> dict[str, Any]:
    """All that a corpus depends on; of files the content, and the pools that their names are.

    Raises:
        ConfigError: if a file is not there.
    """
    settings = dataclasses.asdict(config)
    settings["documents"] = [[_file_pool(x), digest_files(x)] for x in config.documents]
    settings = {f"corpus.{name}": value for name, value in settings.items()}
    return text_conditions(builder) | settings


class Kept(NamedTuple):
    """A document that is no copy, its pool, and the number of its file."""

    document: Document
    pool: str
    file: int


def pool_of(document: Document, path: str) -> str:
    """The pool of a document of this file (`CorpusConfig`)."""
    source = document.metadata.get("source")
    return source if isinstance(source, str) else _file_pool(path)


def _file_pool(path: str) -> str:
    return Path(path).name.partition(".")[0]


def _distinct(config: CorpusConfig) -> tuple[list[Kept], dict[str, int]]:
    """Documents without copies, and the index of each by key."""
    kept, document_of, first_with = [], {}, {}
    for file, path in enumerate(tqdm(config.documents, desc="read", unit="file")):
        for document in read_documents(path):
            pool = pool_of(document, path)
            if pool in config.without_pools:
                continue
            index = first_with.setdefault(document.shown, len(kept))
            if index == len(kept):
                kept.append(Kept(document, pool, file))
            if document_of.setdefault(document.id, index) != index:
                raise RecordError(f"{path}: id {document.id!r} is that of another document, too.")
    return kept, document_of


def _build(config: CorpusConfig, builder: PromptBuilder) -> Corpus:
    documents, document_of = _distinct(config)
    return assemble(documents, document_of, config, builder)


def assemble(
    documents: Sequence[Kept],
    document_of: dict[str, int],
    config: CorpusConfig,
    builder: PromptBuilder,
) -> Corpus:
    """Cuts and names documents, wherever they are from.

    Args:
        documents: in order.
        document_of: index of each by its key.
        config: how; files are not read.
        builder: encoder of the template.

    Raises:
        ConfigError: if ids do not suffice for the parts.
    """
    texts, owners = _cut(PartWriter(builder, config.max_document_tokens), documents)
    if len(texts) >= config.id_space:
        raise ConfigError(
            f"id_space ({config.id_space}) is too small for {len(texts)} parts; raise id_space."
        )
    rng = np.random.default_rng(config.seed)
    ids = 1 + rng.choice(config.id_space - 1, size=len(texts), replace=False)
    wraps = builder.document_wraps(ids.tolist())
    before, after = (np.array(list(map(len, side))) for side in zip(*wraps, strict=True))
    room = config.max_document_tokens - before - after
    texts = [text[:most] for text, most in zip(texts, room.tolist(), strict=True)]
    lengths = before + after + np.array(list(map(len, texts)))
    files = np.array([document.file for document in documents])[owners]
    kept = _drawn(files == len(config.documents) - 1, lengths, config.max_tokens, rng)
    pieces = (piece for i in kept.tolist() for piece in (wraps[i][0], texts[i], wraps[i][1]))
    small = builder.tokenizer.vocab_size <= 1 << 16
    pools = list(dict.fromkeys(document.pool for document in documents))
    return Corpus(
        tokens=np.concatenate(list(pieces)).astype(np.uint16 if small else np.int32),
        stops=np.cumsum(lengths[kept]),
        before=before[kept].astype(np.uint8),
        after=after[kept].astype(np.uint8),
        ids=ids[kept],
        document=owners[kept],
        pool=np.array([pools.index(document.pool) for document in documents])[owners[kept]],
        titles=[document.document.title for document in documents],
        pools=pools,
        document_of=document_of,
    )


def _cut(
    writer: PartWriter, documents: Sequence[Kept]
) -> tuple[list[np.ndarray], Int[np.ndarray, " n"]]:
    """Text tokens of all parts, and the document of each."""
    texts, owners = [], []
    with tqdm(total=len(documents), desc="cut", unit="doc", unit_scale=True) as bar:
        for start in range(0, len(documents), _SLICE_DOCUMENTS):
            some = [kept.document for kept in documents[start : start + _SLICE_DOCUMENTS]]
            for index, parts in enumerate(writer.split(some), start):
                texts += [part.tokens for part in parts]
                owners += [index] * len(parts)
            bar.update(len(some))
    return texts, np.array(owners, int)


def _drawn(
    may_go: np.ndarray, lengths: np.ndarray, max_tokens: int | None, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Parts to keep, in order: at most so many tokens, those that may go drawn at random."""
    if max_tokens is None:
        return np.arange(len(lengths))
    order = np.concatenate([np.flatnonzero(~may_go), rng.permutation(np.flatnonzero(may_go))])
    return np.sort(order[np.cumsum(lengths[order]) <= max_tokens])


def _write(corpus: Corpus, folder: Path) -> None:
    for left in folder.glob(_TOKENS.replace("{:02d}", "*")):
        left.unlink()  # Of a run that was cut, or of another corpus.
    columns = {name: getattr(corpus, name) for name in _COLUMNS}
    names = json.dumps([corpus.titles, corpus.pools, corpus.document_of]).encode()
    buffer = io.BytesIO()
    np.savez(buffer, names=np.frombuffer(names, np.uint8), **columns)
    shards = np.split(corpus.tokens, range(_SHARD_TOKENS, len(corpus.tokens), _SHARD_TOKENS))
    contents = {_TABLE: buffer.getvalue()}
    contents |= {_TOKENS.format(i): _bytes_of(shard) for i, shard in enumerate(shards)}

    def compress(name: str) -> None:
        with lzma.open(folder / name, "wb", filters=_FILTERS) as file:
            file.write(contents[name])

    _at_once(compress, contents, "compress")


def _read(folder: Path) -> Corpus:
    def decompress(name: str) -> bytes:
        with lzma.open(folder / name) as file:
            return file.read()

    shards = sorted(path.name for path in folder.glob(_TOKENS.replace("{:02d}", "*")))
    table, *tokens = _at_once(decompress, [_TABLE, *shards], "read corpus")
    columns = dict(np.load(io.BytesIO(table)))
    titles, pools, document_of = json.loads(columns.pop("names").tobytes())
    arrays = [np.load(io.BytesIO(shard)) for shard in tokens]
    return Corpus(
        np.concatenate(arrays), **columns, titles=titles, pools=pools, document_of=document_of
    )


def _bytes_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _at_once(work: Callable[[str], T], names: Iterable[str], what: str) -> list[T]:
    """Results for all names, worked on side by side: LZMA leaves the interpreter to others."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(work, names), total=len(names), desc=what, unit="file"))
