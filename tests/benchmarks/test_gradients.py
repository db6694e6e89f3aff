"""The check of gradients finds what is wrong, and nothing where nothing is."""

import json

import jax
import numpy as np
import pytest

from benchmarks import gradients


def test_gradients_agree_however_layers_are_compiled(capsys):
    gradients.main(["--memory-tokens=384", "--queries=4", "--active-tokens=16", "--sharpness=8"])
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [(row["remat"], row["unroll_layers"]) for row in rows] == [
        *(("cheap", False), ("cheap", True)),
        *(("all", False), ("all", True)),
    ]
    for row in rows:
        assert min(row[name] for name in ("lm_loss", "aux_loss", "answer_loss", "naming_loss")) > 0
        assert all(group["cosine"] > 0.9999 for group in row["worst"])
    assert [row["norm"] for row in rows] == pytest.approx([rows[0]["norm"]] * 4, rel=1e-4)
    assert {row["device"] for row in rows} == {jax.devices()[0].device_kind}
    assert len({row["record"] for row in rows}) == 4


def test_sharper_attention_leaves_routers_alone():
    layer = {"q_proj": {"kernel": np.ones(2)}, "o_proj": {"kernel": np.ones(2)}}
    layer["k_norm"] = {"scale": np.ones(2)}
    params = {"routed_1": {"attention": layer | {"router": layer}}}
    attention = gradients.sharpened(params, 8.0)["routed_1"]["attention"]
    assert attention["q_proj"]["kernel"].tolist() == [8, 8]
    assert attention["k_norm"]["scale"].tolist() == [8, 8]
    assert attention["o_proj"]["kernel"].tolist() == [1, 1]
    assert attention["router"]["q_proj"]["kernel"].tolist() == [1, 1]


def test_the_worst_group_comes_first():
    reference = {"a": np.ones(4), "b": np.ones(2), "unused": np.zeros(3)}
    found = gradients.errors({"a": np.ones(4), "b": -np.ones(2), "unused": np.zeros(3)}, reference)
    assert [row["parameters"] for row in found] == ["b", "a"]
    assert found[0]["cosine"] == pytest.approx(-1) and found[0]["error"] == pytest.approx(2)
    assert found[1]["cosine"] == pytest.approx(1) and found[1]["error"] == 0
