"""The plot of routers in training, and the word about those that collapse."""

from __future__ import annotations

import pytest
from matplotlib import image

from msa_jax.core.routing import COLLAPSED
from msa_jax.training import routers, trainer
from msa_jax.training.metrics import read_metrics
from tests.training.tiny import stage_config, train_config


def collapse_of(**layers: float) -> dict[str, float]:
    """Metrics of a step."""
    by_layer = {f"collapse/layer_{name.removeprefix('of_')}": x for name, x in layers.items()}
    return {"loss": 1.0, "collapse": max(layers.values()), **by_layer}


def test_a_layer_is_warned_of_when_it_collapses_and_again_after_it_recovered():
    watch = routers.CollapseWatch()
    assert watch.warning(1, {"loss": 1.0}) is None
    assert watch.warning(2, collapse_of(of_5=0.1, of_12=COLLAPSED)) is None
    warning = watch.warning(3, collapse_of(of_5=0.1, of_12=0.75))
    assert warning.startswith("Step 3: ") and "collapse above 0.5: 12 (0.75); if" in warning
    assert watch.warning(4, collapse_of(of_5=0.1, of_12=0.9)) is None
    assert watch.warning(5, collapse_of(of_5=0.1, of_12=0.4)) is None
    assert "0.5: 5 (0.60); if" in watch.warning(6, collapse_of(of_5=0.6, of_12=0.6)), "12 lasts"
    assert watch.warning(7, collapse_of(of_5=0.2, of_12=0.2)) is None
    assert "5 (0.70), 12 (0.80)" in watch.warning(8, collapse_of(of_5=0.7, of_12=0.8))


def test_a_plot_shows_each_layer(tmp_path, monkeypatch):
    lines = [
        {
            "stage": stage,
            "step": step,
            "recall@1": 0.2,
            "recall@1/layer_3": step / 10,
            "recall@1/layer_4": step / 20,
            "recall@1/joint": step / 5,
            **collapse_of(of_3=0.9, of_4=0.1 * step),
        }
        for step, stage in enumerate(("warmup", "warmup", "main"), start=1)
    ]
    figures = []
    monkeypatch.setattr(routers.Figure, "savefig", lambda self, *_, **__: figures.append(self))
    routers.plot_routers(lines, tmp_path / "routers.png")
    recall, collapse, _ = figures[0].axes
    drawn = [line.get_xydata().tolist() for line in recall.lines]
    assert [[1, 0.1], [2, 0.2], [3, 0.3]] in drawn and [[1, 0.05], [2, 0.1], [3, 0.15]] in drawn
    assert [[1, 0.2], [2, 0.4], [3, 0.6]] in drawn, "that of all layers"
    assert [[2, 0], [2, 1]] in drawn, "the end of the first stage"
    assert [[1, 0.9], [2, 0.9], [3, 0.9]] in [x.get_xydata().tolist() for x in collapse.lines]
    assert "collapsed above" in [x.get_label() for x in collapse.lines]
    routers.plot_routers([{"stage": "main", "step": 1, "loss": 1.0}], tmp_path / "routers.png")
    assert len(figures) == 1, "there is nothing to draw"


def test_a_run_draws_its_routers_with_checkpoints_and_at_its_end(tmp_path, monkeypatch, capsys):
    drawn = []

    def draw(lines, path):
        drawn.append(len(lines))
        plot(lines, path)

    plot = routers.plot_routers
    monkeypatch.setattr(routers, "plot_routers", draw)
    monkeypatch.setattr(trainer, "_SECONDS_BETWEEN_PLOTS", 0.0)
    monkeypatch.setattr(routers, "COLLAPSED", -2.0)
    config = train_config(tmp_path, stages=(stage_config(steps=3),))
    trainer.train(config)
    assert drawn == [2, 3, 3], "after checkpoints at steps 2 and 3, and at the end"
    assert image.imread(tmp_path / "run" / "routers.png").ndim == 3
    lines = read_metrics(tmp_path / "run")
    for line in lines:
        of_layers = [line[f"collapse/layer_{layer}"] for layer in config.model.router_layers]
        assert line["collapse"] == pytest.approx(max(of_layers))
    warnings = [x for x in capsys.readouterr().err.splitlines() if "choose the same" in x]
    assert warnings and warnings[0].lstrip("\r").startswith("Step 1: these router layers")
