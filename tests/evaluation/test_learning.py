"""The measure can fail: what is learnt from labels is not learnt from shuffled ones."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from msa_jax import train

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"


@pytest.mark.slow
@pytest.mark.parametrize(("shuffled", "lowest", "highest"), [(False, 0.25, 1.0), (True, 0.0, 0.2)])
def test_needles_are_found_by_labels_alone(tmp_path, shuffled, lowest, highest):
    """A short tiny run at 16K tokens, where chance is 0.1.

    Routers start at random: projections that are shared match words before any training.
    """
    config = runpy.run_path(str(TINY))["get_config"]()
    config.workdir = str(tmp_path)
    config.model.memory.router_init = "random"
    config.data.shuffle_labels = shuffled
    config.demo.update(train_docstrings=100, heldout_docstrings=1, heldout_tokens=40_000)
    config.stages.retrieval.steps = 60
    config.evaluation.memory_tokens = (16_384,)
    train.train_and_measure(config)
    points = json.loads((tmp_path / "results.json").read_text())["points"]
    needles = next(point for point in points if point["kind"] == "needle")
    assert lowest <= max(needles["recall"]["recall@16"].values()) <= highest
