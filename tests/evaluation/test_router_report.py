"""The report on routers that comes with a suite, of listings that were made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from msa_jax.engine.encode import Encoder, bank_layout
from msa_jax.evaluation.retrieval import EncodedMemory, ranking_measures
from msa_jax.evaluation.router_report import report_routers
from msa_jax.evaluation.suite import Suite
from msa_jax.evaluation.suite_config import MSA, suite_config
from tests.engine.banks import save_model
from tests.evaluation.small_suite import suite_values, write_files

LISTED, LARGEST = 24, 2


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A memory and the memories of a set."""
    folder = tmp_path_factory.mktemp("report")
    write_files(folder)
    (folder / "model").mkdir()
    checkpoint = str(save_model(folder / "model", memory={"top_k_docs": 8}))
    suite = Suite(suite_config(suite_values(folder, systems=(MSA,), checkpoint=checkpoint)))
    loaded, config = suite.loaded, suite.config
    layout = bank_layout(loaded.config, config.corpus.max_document_tokens, None, None)
    encoder = Encoder(loaded.model, loaded.params, layout, batch_tokens=config.encode_batch_tokens)
    parts = np.arange(len(suite.corpus))
    return EncodedMemory(loaded, encoder, suite.corpus, parts), suite.sets["animals"]


def listings(searched, orders) -> list[tuple[np.ndarray, np.ndarray]]:
    """What layers list that prefer parts in these orders `[L, Q, parts]`."""
    memory, memories = searched
    questions = list(range(len(memories.questions)))
    masks = np.asarray(memory.of_questions(memories, LARGEST, questions).index.doc_mask[0])
    slots = memory.parts_of(memory.bank.ids(np.arange(masks.shape[1])))
    found = []
    for question, mask in enumerate(masks):
        held = slots[mask]
        rows = [[part for part in order[question] if part in held] for order in orders]
        ranked = np.array([row[:LISTED] for row in rows])
        found.append((ranked, np.broadcast_to(-np.arange(LISTED, dtype=float), ranked.shape)))
    return found


def report(folder: Path, searched, found) -> dict:
    warnings = report_routers(folder, *searched, LARGEST, found)
    values = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    assert values["warnings"] == warnings
    return values


def test_a_layer_that_always_prefers_the_same_is_warned_of(tmp_path, searched):
    """Though no question can choose all that another one chooses."""
    memory, memories = searched
    rng, num_parts = np.random.default_rng(7), len(memory.corpus)
    count = len(memories.questions)
    same = np.tile(rng.permutation(num_parts), (count, 1))
    different = np.stack([rng.permutation(num_parts) for _ in range(count)])
    values = report(tmp_path / "new", searched, listings(searched, [same, different]))
    assert values["chance"] < 0.2 < values["most"] < 0.6
    (warning,) = values["warnings"]
    assert warning.startswith("Router layer 1 chooses the same")
    assert values["collapse"][0] > 0.5 > 0.3 > abs(values["collapse"][1])
    assert values["layers"] == [1, 2] and values["memory_tokens"] == 1000
    for name in ("layers", "agreement", "scores"):
        assert image.imread(tmp_path / "new" / f"{name}.png").ndim == 3
        assert "</svg>" in (tmp_path / "new" / f"{name}.svg").read_text(encoding="utf-8")


def test_recall_is_that_of_the_results(tmp_path, searched):
    memory, memories = searched
    rng, count = np.random.default_rng(1), len(memories.questions)
    found = []
    for _ in range(count):
        ranked = np.stack([rng.permutation(len(memory.corpus))[:LISTED] for _ in range(2)])
        ranked[0, 3:] = -1
        found.append((ranked, np.where(ranked < 0, -np.inf, 1.0)))
    found[0][0][1, 1] = memories.own[0][0]
    values = report(tmp_path, searched, found)
    for layer in range(2):
        expected = [
            ranking_measures(memory.corpus, documents, ranked[layer][ranked[layer] >= 0])[
                "recall@1"
            ]
            for documents, (ranked, _) in zip(memories.documents, found, strict=True)
        ]
        assert values["recall"]["1"][layer] == pytest.approx(np.mean(expected), abs=1e-5)
    assert values["recall"]["4"][1] > 0
