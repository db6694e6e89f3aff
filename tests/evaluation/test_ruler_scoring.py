"""RULER's scores against values by hand."""

import pytest

from msa_jax.evaluation.ruler import scoring


@pytest.mark.parametrize(
    ("prediction", "references", "share"),
    [
        ("1234567", ["1234567"], 1.0),
        ("The number is 1234567, I think.", ["1234567", "7654321"], 0.5),
        ("ABC-DEF", ["abc-def"], 1.0),
        ("abc-def", ["ABC-DEF"], 1.0),
        ("12345\x00\x0067", ["1234567"], 0.0),
        ("12345\n67", ["12345\n67"], 1.0),
        ("\x0712345\t67 ", ["12345\n67"], 1.0),
        ("1234567", ["1", "2", "8", "9"], 0.5),
    ],
)
def test_references_are_looked_for_as_published(prediction, references, share):
    assert scoring.share_found(prediction, references) == share


def test_scores_are_means_in_percent_to_two_decimals():
    assert scoring.percent([1.0, 0.0, 0.0]) == 33.33
    assert scoring.clean(" \x01a\x1fb\x00 ") == "a\nb"
