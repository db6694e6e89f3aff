"""What the plot of an attribution shows, from numbers that were made up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from msa_jax.engine.attribution import Attribution, Chunk
from msa_jax.evaluation import attribution as plots

LAYERS, TOKENS, CHUNKS = 3, 4, 20


@pytest.fixture(scope="module")
def attribution():
    shares = np.random.default_rng(0).dirichlet(np.ones(CHUNKS + 3), size=(LAYERS, TOKENS))
    return Attribution(
        "What costs $4 or $5?",
        (" four", "\n", " $", "<|im_end|>"),
        (5, 6, 7),
        tuple(
            Chunk(10 + i // 2, i % 2, f"text\nof ${i} " + "and more " * 9) for i in range(CHUNKS)
        ),
        (10, 12),
        shares[..., :CHUNKS],
        shares[..., CHUNKS:-1],
        shares[..., -1],
    )


def test_panels_hold_the_shares(attribution, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append((figure, path)))
    plots.plot_attribution(attribution, tmp_path / "x.png")
    ((figure, path),) = saved
    assert path == tmp_path / "x.png"
    chunks, everything, layers = (
        (axis.images[0].get_array(), [x.get_text() for x in axis.get_yticklabels()])
        for axis in figure.axes[:3]
    )
    of_chunks = attribution.on_chunks.mean(axis=0)
    best = np.argsort(-of_chunks.mean(axis=0))[:12]
    np.testing.assert_allclose(chunks[0], of_chunks[:, best].T)
    first = attribution.attended[best[0]]
    start = rf"[{first.document}] chunk {first.index}: text of \${best[0]} and more"
    assert chunks[1][0].startswith(start) and chunks[1][0].endswith("…")
    assert everything[1] == ["memory", "[10], read", "[12], read", "question and answer so far"]
    np.testing.assert_allclose(everything[0].sum(axis=0), 1)
    np.testing.assert_allclose(everything[0][-1], attribution.on_rest.mean(axis=0))
    assert layers[1] == ["5", "6", "7"]
    np.testing.assert_allclose(layers[0], 1 - attribution.on_rest)
    tokens = [x.get_text() for x in figure.axes[2].get_xticklabels()]
    assert tokens == [" four", r"\n", r" \$", "<|im_end|>"]


def test_an_answer_without_documents_has_no_panel_for_them(attribution, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure))
    nothing = np.zeros((LAYERS, TOKENS, 0))
    alone = dataclasses.replace(
        attribution,
        attended=(),
        read=(),
        on_chunks=nothing,
        on_originals=nothing,
        on_rest=np.ones((LAYERS, TOKENS)),
    )
    plots.plot_attribution(alone, tmp_path / "x.png")
    assert [x.get_title() for x in saved[0].axes][0] == "everything"


def test_a_question_about_dollars_is_no_formula(attribution, tmp_path):
    plots.plot_attribution(attribution, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "What costs $4 or $5?" in (tmp_path / "x.svg").read_text(encoding="utf-8")
