"""The check of gradients finds what is wrong, and nothing where nothing is."""

import json

import jax
import numpy as np
import pytest

from benchmarks import gradients


def test_gradients_agree_however_layers_are_compiled(capsys):
    gradients.main(["--memory-tokens=384", "--queries=4", "--active-tokens=16"])
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["unrolled"] for row in rows] == [False, True]
    for row in rows:
        assert min(row[name] for name in ("lm_loss", "aux_loss", "answer_loss", "naming_loss")) > 0
        assert all(group["cosine"] > 0.9999 for group in row["worst"])
    assert rows[0]["norm"] == pytest.approx(rows[1]["norm"], rel=1e-4)
    assert last["device"] == jax.devices()[0].device_kind


def test_the_worst_group_comes_first():
    reference = {"a": np.ones(4), "b": np.ones(2), "unused": np.zeros(3)}
    found = gradients.errors({"a": np.ones(4), "b": -np.ones(2), "unused": np.zeros(3)}, reference)
    assert [row["parameters"] for row in found] == ["b", "a"]
    assert found[0]["cosine"] == pytest.approx(-1) and found[0]["error"] == pytest.approx(2)
    assert found[1]["cosine"] == pytest.approx(1) and found[1]["error"] == 0
