"""The order in which documents are found, where a file does not say it."""

import pytest

from msa_jax.data.hops import infer_hops
from msa_jax.data.records import Document, Question

FILM = Document("film", "A comedy that was directed by Ada Byrd.", title="Night Train (1990 film)")
DIRECTOR = Document("director", "Ada Byrd was born in Sandwell in 1950.", title="Ada Byrd")
OTHER_FILM = Document("other film", "A drama by Cy Dole.", title="Old Road")
OTHER_DIRECTOR = Document("other director", "Cy Dole was born in 1940.", title="Cy Dole")
TOWN = Document("town", "The town of brick makers lies on the Tame.", title="Sandwell")


@pytest.mark.parametrize(
    ("asked", "documents", "hops"),
    [
        # A named document, the one that it names, and the one that this names.
        ("Where was the director of Night Train born?", [DIRECTOR, FILM], ["film", "director"]),
        (
            "On which river lies the birthplace of the director of night train?",
            [TOWN, DIRECTOR, FILM],
            ["film", "director", "town"],
        ),
        # Two branches go forward together.
        (
            "Is the director of Night Train older than that of Old Road?",
            [DIRECTOR, FILM, OTHER_DIRECTOR, OTHER_FILM],
            ["film other film", "director other director"],
        ),
        # Nothing is named: the words in common decide, then the title that they lead to.
        ("Which river has the town of brick makers?", [DIRECTOR, TOWN], ["town", "director"]),
        # All are named, as in comparisons; one document is no chain; parts of words are no names.
        ("Who is older, Ada Byrd or Cy Dole?", [DIRECTOR, OTHER_DIRECTOR], []),
        ("Who is Ada Byrd?", [DIRECTOR], []),
    ],
)
def test_hops(asked, documents, hops):
    question = Question("q", asked, (), tuple(document.id for document in documents))
    inferred = [" ".join(hop) for hop in infer_hops(question, documents).hops]
    assert inferred == hops


def test_a_name_within_a_word_is_not_a_name():
    documents = [Document("ada", "x", title="Ada"), Document("b", "a canadarm", title="Arm")]
    question = Question("q", "What did Ada build in Canada?", (), ("b", "ada"))
    assert infer_hops(question, documents).hops == (("ada",), ("b",))
