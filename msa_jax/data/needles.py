"""Needles in a haystack, after RULER: numbers filed under made-up keys, hidden in real text.

    document   "... One of the special magic numbers for brave-otter is: 4817205. ..."
    question   "What is the special magic number for brave-otter mentioned in the text?"

A key is an adjective and a noun. Its hash says whether it belongs to training or is held out, so
that the keys that measure a model are never among those that trained it; words are shared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence

from msa_jax.data.documentation import SENTENCE_END
from msa_jax.data.records import Document, Question

KINDS = ("single", "multi_key", "multi_value")
HARD_NEGATIVES = 3  # documents of a multi_key question whose key shares one word with its key
VALUES = 2  # documents of a multi_value question, each with another number
MOST_DOCUMENTS = 1 + HARD_NEGATIVES  # of one question

_NEEDLE = "One of the special magic numbers for {key} is: {value}."
_QUESTION = "What is the special magic number for {key} mentioned in the text?"
_QUESTION_OF_ALL = "What are all the special magic numbers for {key} mentioned in the text?"
_HELDOUT_SHARE = 0.1

_ADJECTIVE_LIST = """
    able ancient angry ample awake bare basic big bitter black bland blank blind blue blunt bold
    brave brief bright brisk broad broken bronze brown busy calm careful careless cheap cheerful
    chilly chubby civil clean clear clever cloudy clumsy coarse cold comic common cool copper
    cosmic costly cozy cracked crazy creamy crimson crisp crooked cruel curious curly curved cute
    daily damp dark dear deep dense direct dirty distant double dramatic dreamy dry dull dusty
    eager early earthy easy elastic elder electric elegant empty enormous entire equal eternal
    even exact exotic faint fair faithful false famous fancy fast fatal feeble fertile fierce fine
    firm fixed flat fluffy foreign formal fragile free frequent fresh friendly frosty frozen full
    funny fuzzy gentle giant glad global gloomy glossy golden good graceful grand grateful grave
    gray great green grim gross grumpy handy happy hard harsh hasty hearty heavy helpful hidden
    high hollow holy honest huge humble hungry icy ideal idle imperial inner intense iron jolly
    joyful juicy keen kind large last late lazy lean left level light likely linear little lively
    local lonely long loose loud lovely loyal lucky lunar magnetic main major marine massive
    mature mellow merry mighty mild minor modern modest moist moral muddy musical mute narrow
    native natural neat nervous new nice noble noisy normal northern novel obscure odd old open
    orange ordinary outer pale parallel patient peaceful perfect pink plain playful polite poor
    popular precise pretty prime private proud public pure purple quaint quick quiet random rapid
    rare raw ready real recent red regal regular remote rich rigid ripe robust rough round royal
    rude rural rusty sacred sad safe salty scarce secret secure senior serious shallow sharp shiny
    short shy silent silky silver simple single sleepy slim slow small smart smooth social soft
    solar solid sour southern spare special spicy stable stale steady steep sterile stiff strange
    strict strong stubborn subtle sudden sunny super sweet swift tall tame tasty tender tense
    thick thin thirsty tidy tight tiny tired tough tragic tricky tropical true upper urban useful
    usual vague valid vast velvet violet virtual vital vivid warm wary watery weak wealthy weary
    weird western wet white whole wicked wide wild windy wise witty wooden worthy yearly yellow
    young zealous
"""
_NOUN_LIST = """
    acorn actor airport album alley anchor angle animal ankle answer apple apron arch arm army
    arrow artist atlas attic autumn avenue baby badge bag baker ball bamboo banana band bank
    banner barn barrel basin basket battery beach bead beam bean bear beaver bed beetle bell belt
    bench berry bicycle bird biscuit blanket blossom board boat body bone book boot bottle boulder
    bowl box branch bread brick bridge brother brush bucket bug builder bull bus bush butter
    button cabin cable cactus cake camel camera camp canal candle cannon canvas canyon car card
    carpet carrot castle cat cave cellar chain chair chalk cherry chest chicken child church cinema
    circle city cliff clock cloth cloud clown coach coast coat coffee coin collar comet compass
    cookie coral corn corner cottage cotton couch cousin cow crab cradle crane crater creek crew
    cricket crow crown crystal cup curtain dancer deer desert desk diamond diary dinner doctor dog
    doll dolphin donkey door dragon drawer dress driver drum duck eagle ear earth elbow elephant
    engine envelope eye fabric face falcon farm farmer feather fence fern ferry field finger fire
    fish flag flame flower flute forest fork fossil fountain fox frog fruit galaxy garage garden
    garlic gate ghost giraffe glacier glass glove goat goose grape grass guitar hammer harbor
    hat hawk head heart hedge helmet hill hockey honey hook horse hospital hotel house island
    jacket jar jewel judge juice jungle kettle key king kitchen kite kitten knee knife ladder lake
    lamb lamp lantern lawyer leaf leather lemon lens letter library lion lizard lobster lock log
    lunch machine magnet mango map maple marble market mask meadow melon mirror monkey moon moss
    motor mountain mouse mouth mushroom nail napkin neck needle nest noodle nose notebook oak
    ocean office olive onion orchard organ otter oven owl oyster paddle page palace palm panda
    paper parade parcel parent park parrot pasta path peach peanut pearl pebble pen pencil penguin
    pepper photo piano picnic pigeon pillow pilot pine pirate pizza planet plant plate plum pocket
    poet pond pony potato prince puzzle queen rabbit radio rail rain ranch rat raven ribbon rice
    ring river road robin robot rock rocket roof room root rope rose sailor salad salmon sand
    sandal scarf school sea seed shadow shark sheep shell ship shirt shoe shore shoulder singer
    sister sky snail snake snow sock soldier soup spider spoon spring squirrel stage star statue
    stone storm stove street student sugar suit summer sun swan table tailor teacher temple tent
    theater thumb thunder tiger toast tomato tongue tooth torch tower town toy tractor train tree
    truck trumpet tulip tunnel turkey turtle uncle valley van vase village violin volcano wagon
    wall walnut watch water wave weather whale wheat wheel whistle willow window wing winter wolf
    wood wool worker yard zebra
"""
ADJECTIVES = tuple(_ADJECTIVE_LIST.split())
NOUNS = tuple(_NOUN_LIST.split())


def is_heldout(key: str) -> bool:
    """Whether a key ("brave-otter") is kept from training; depends on the key alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < _HELDOUT_SHARE * 2**64


def make_needles(
    hosts: Sequence[str], counts: Mapping[str, int], *, split: str, seed: int
) -> tuple[list[Document], list[Question]]:
    """Hides needles in passages and asks for them. Equal arguments give equal needles.

    No two questions of a call share a key, and no key of a hard negative is asked for. Ids start
    with the kind: "needle-multi_key-heldout-00007".

    Args:
        hosts: passages to hide needles in; they may be used more than once.
        counts: questions to make of each kind in `KINDS`: "single" has one document; "multi_key"
            also has `HARD_NEGATIVES` hard negatives, whose keys share one word with its key;
            "multi_value" has `VALUES` documents, and its answer lists their numbers in order.
        split: "train" or "heldout"; decides which keys are used.
        seed: of every random choice.
    """
    rng = random.Random(f"{seed}/needles/{split}")
    keys = _KeyPool(rng, heldout=split == "heldout")
    documents: list[Document] = []
    questions: list[Question] = []
    for kind in KINDS:
        for number in range(counts.get(kind, 0)):
            prefix = f"needle-{kind}-{split}-{number:05d}"
            made, question = _make_question(prefix, kind, hosts, keys, rng)
            documents += made
            questions.append(question)
    return documents, questions


def hide(needle: str, text: str, rng: random.Random) -> str:
    """Puts a sentence before, after or between the sentences of a text."""
    places = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    place = rng.choice(places)
    before, after = text[:place], text[place:]
    if before and not before[-1].isspace():
        before += " "
    return f"{before}{needle} {after}".rstrip()


def _make_question(
    prefix: str, kind: str, hosts: Sequence[str], keys: _KeyPool, rng: random.Random
) -> tuple[list[Document], Question]:
    key = keys.draw()
    negative_keys = keys.draw_similar(key, HARD_NEGATIVES) if kind == "multi_key" else []
    num_positives = VALUES if kind == "multi_value" else 1
    document_keys = [key] * num_positives + negative_keys
    values = [str(value) for value in rng.sample(range(10**6, 10**7), len(document_keys))]
    texts = rng.sample(hosts, len(document_keys))
    documents = [
        Document(f"{prefix}-{i}", hide(_NEEDLE.format(key=key, value=value), text, rng))
        for i, (key, value, text) in enumerate(zip(document_keys, values, texts, strict=True))
    ]
    ids = tuple(document.id for document in documents)
    question = Question(
        id=prefix,
        question=(_QUESTION_OF_ALL if num_positives > 1 else _QUESTION).format(key=key),
        answers=(", ".join(values[:num_positives]),),
        positive_ids=ids[:num_positives],
        negative_ids=ids[num_positives:],
    )
    return documents, question


@dataclasses.dataclass
class _KeyPool:
    """Draws keys of one split, each at most once."""

    rng: random.Random
    heldout: bool
    used: set[str] = dataclasses.field(default_factory=set)

    def draw(self) -> str:
        return self._draw(ADJECTIVES, NOUNS)

    def draw_similar(self, key: str, count: int) -> list[str]:
        """Keys that share one word with `key`, now the adjective, now the noun."""
        adjective, noun = key.split("-")
        words = [((adjective,), NOUNS), (ADJECTIVES, (noun,))]
        return [self._draw(*words[i % 2]) for i in range(count)]

    def _draw(self, adjectives: Sequence[str], nouns: Sequence[str]) -> str:
        for _ in range(10_000):
            key = f"{self.rng.choice(adjectives)}-{self.rng.choice(nouns)}"
            if key not in self.used and is_heldout(key) == self.heldout:
                self.used.add(key)
                return key
        raise ValueError("There are no more keys to ask for; make fewer needle questions.")
