"""A model without stacked layers is the same model."""

import jax
import numpy as np
import pytest

from msa_jax.checkpoint.key_map import parameter_shapes
from msa_jax.modules.unstack import unstack_layers
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import state_shardings
from tests.modules.tiny import compiled, model_config, random_params, rows_of, sequences_of

# Two plain layers, two that route, and one of each.
CONFIG = model_config(num_layers=6, memory={"router_layers": (2, 3, 5)})
RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(64, size=n).astype(np.int32) for n in (9, 5, 14)]
QUESTIONS = [(RNG.integers(64, size=n), 2) for n in (9, 12)]


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def leaves(params):
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def test_every_layer_has_arrays_of_its_own(params):
    config, unstacked = unstack_layers(CONFIG, params)
    names = ["plain_0", "plain_1", "routed_2", "routed_3", "plain_4", "routed_5"]
    assert [name for name, _, _ in config.layer_runs] == names
    assert not config.scan_layers and set(names) <= set(unstacked)
    shapes = {path: leaf.shape for path, leaf in leaves(unstacked).items()}
    assert shapes == parameter_shapes(config)
    stacked = leaves(params)
    for path, leaf in leaves(unstacked).items():
        name, _, rest = path.partition("/")
        if name not in names:
            assert leaf is stacked[path]
            continue
        layer = int(name.split("_")[1])
        run, start = next((r, i) for r, i, stop in CONFIG.layer_runs if i <= layer < stop)
        np.testing.assert_array_equal(leaf[0], stacked[f"{run}/{rest}"][layer - start])


def test_the_same_documents_and_questions_give_the_same_logits(params):
    rows = rows_of(DOCUMENTS, [[0, 1], [2]], 24)
    active = sequences_of(QUESTIONS, 12, CONFIG.memory.top_k_docs)
    results = []
    for config, own in ((CONFIG, params), unstack_layers(CONFIG, params)):
        call = compiled(config, own)
        out = call(rows, active, num_documents=len(DOCUMENTS))
        results.append((call(out.hidden, method="logits"), out.doc_scores))
    stacked, unstacked = results
    for x, y in zip(stacked, unstacked, strict=True):
        assert np.abs(x).max() > 0.1
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_what_is_unstacked_stays_as_it_is(params):
    config, unstacked = unstack_layers(CONFIG, params)
    again_config, again = unstack_layers(config, unstacked)
    assert again_config is config and again is unstacked


def test_arrays_stay_where_they_are(params):
    mesh = make_mesh(MeshConfig(tensor=2, data=2))
    placed = jax.device_put(params, state_shardings(params, mesh))
    config, unstacked = unstack_layers(CONFIG, placed)
    shardings = leaves(state_shardings(unstacked, mesh))
    assert any(not sharding.is_fully_replicated for sharding in shardings.values())
    for path, leaf in leaves(unstacked).items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim), path
