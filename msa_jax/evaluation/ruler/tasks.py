"""The eight needle-in-a-haystack subtasks of RULER (Hsieh et al., 2024), as published.

    needle     "One of the special magic numbers for brave-otter is: 4817205."
    question   "What is the special magic number for brave-otter mentioned in the provided text?"

A key of words is an adjective and a noun, a number has seven digits, a uuid is of version 4. Word
lists are those of `data.needles`, and what samples hide is filed under keys that no training made
with that module has seen.
"""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from msa_jax.data.needles import ADJECTIVES, NOUNS, is_heldout

NOISE, ESSAY, NEEDLE = "noise", "essay", "needle"
WORDS, NUMBERS, UUIDS = "words", "numbers", "uuids"
NOISE_LINE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
# Tokens that a model may generate for an answer.
ANSWER_TOKENS = 128
# Needles go into essays at distinct ones of 40 depths, evenly spaced from start to end and rounded
# to percent; elsewhere they go anywhere.
DEPTHS = [round(100 * step / 39) / 100 for step in range(40)]


@dataclasses.dataclass(frozen=True)
class Subtask:
    """What is hidden, in what, and what is asked for.

    Attributes:
        name: as in RULER.
        haystack: `NOISE`, the same line over and over; `ESSAY`, text that somebody wrote; or
            `NEEDLE`, needles of the same types as those that are asked for.
        key_type: of keys, `WORDS` or `UUIDS`.
        value_type: of values, `NUMBERS` or `UUIDS`.
        num_keys: of a sample.
        num_values: of each key, a needle for each.
        num_queries: keys that a sample's question asks for; the others distract.
    """

    name: str
    haystack: str
    key_type: str = WORDS
    value_type: str = NUMBERS
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1

    @property
    def haystack_name(self) -> str:
        """The same for subtasks that can hide their needles in the same documents."""
        own = f"-{self.key_type}-{self.value_type}" if self.haystack == NEEDLE else ""
        return f"{self.haystack}{own}"


SUBTASKS = {
    subtask.name: subtask
    for subtask in (
        Subtask("niah_single_1", NOISE),
        Subtask("niah_single_2", ESSAY),
        Subtask("niah_single_3", ESSAY, value_type=UUIDS),
        Subtask("niah_multikey_1", ESSAY, num_keys=4),
        Subtask("niah_multikey_2", NEEDLE),
        Subtask("niah_multikey_3", NEEDLE, key_type=UUIDS, value_type=UUIDS),
        Subtask("niah_multivalue", ESSAY, num_values=4),
        Subtask("niah_multiquery", ESSAY, num_keys=4, num_queries=4),
    )
}


@dataclasses.dataclass(frozen=True)
class Needle:
    """A sentence that files a value under a key."""

    key: str
    value: str
    value_type: str

    def __str__(self) -> str:
        return f"One of the special magic {self.value_type} for {self.key} is: {self.value}."


@dataclasses.dataclass(frozen=True)
class Hidden:
    """What a sample hides and asks for, wherever it is going to lie.

    Attributes:
        needles: in the order in which they stand in the text.
        asked: keys that the question names, in its order.
        answers: values of these keys; a reader has to give them all.
        depths: of each needle, ascending, from 0 (the start of the haystack) to 1 (its end).
    """

    needles: tuple[Needle, ...]
    asked: tuple[str, ...]
    answers: tuple[str, ...]
    depths: tuple[float, ...]


class Wording(NamedTuple):
    """What is said around the text.

    Attributes:
        preamble: before it.
        question: after it.
        answer_prefix: how the answer begins, which the model has to continue.
    """

    preamble: str
    question: str
    answer_prefix: str


def draw(subtask: Subtask, seed: int, number: int) -> Hidden:
    """Draws sample `number` of a subtask, which depends on no other sample."""
    rng = random.Random(f"{seed}/ruler/{subtask.name}/{number}")
    keys = _distinct(subtask.key_type, subtask.num_keys, rng)
    drawn = _distinct(subtask.value_type, subtask.num_keys * subtask.num_values, rng)
    values = {key: drawn[i :: subtask.num_keys] for i, key in enumerate(keys)}
    needles = [Needle(key, value, subtask.value_type) for key in keys for value in values[key]]
    rng.shuffle(needles)
    asked = rng.sample(keys, subtask.num_queries)
    if subtask.haystack == ESSAY:
        depths = rng.sample(DEPTHS, len(needles))
    else:
        depths = [rng.random() for _ in needles]
    answers = [value for key in asked for value in values[key]]
    return Hidden(tuple(needles), tuple(asked), tuple(answers), tuple(sorted(depths)))


def random_text(kind: str, rng: random.Random) -> str:
    """A key or a value at random: `WORDS`, `NUMBERS` or `UUIDS`."""
    if kind == WORDS:
        return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
    if kind == NUMBERS:
        return str(rng.randrange(10**6, 10**7))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def wording(subtask: Subtask, asked: Sequence[str]) -> Wording:
    """The words around the text, in the singular where there is one answer."""
    kind, keys = subtask.value_type, list(asked)
    last = keys.pop()
    names = f"{', '.join(keys)}, and {last}" if keys else last
    if subtask.num_queries * subtask.num_values == 1:
        hidden, which, kind, verb = "A special magic {} is", "What is", kind.removesuffix("s"), "is"
    else:
        hidden, which, verb = "Some special magic {} are", "What are all", "are"
    subject = f"the special magic {kind} for {names} mentioned in the provided text"
    return Wording(
        preamble=(
            f"{hidden.format(kind)} hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {kind} afterwards."
        ),
        question=f"{which} {subject}?",
        answer_prefix=f"T{subject[1:]} {verb}",
    )


def _distinct(kind: str, count: int, rng: random.Random) -> list[str]:
    """Different keys or values of one sample; of words only those that are held out."""
    found: list[str] = []
    while len(found) < count:
        text = random_text(kind, rng)
        if text not in found and (kind != WORDS or is_heldout(text)):
            found.append(text)
    return found
