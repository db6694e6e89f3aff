"""The code in README.md and docs/modules.md runs, is short, and does what the text says."""

import jax
import numpy as np
import pytest

from tests import doc_commands


def python_blocks(name):
    text = (doc_commands.ROOT / name).read_text(encoding="utf-8")
    return [code for language, code in doc_commands.blocks(text) if language == "python"]


@pytest.fixture(scope="module")
def blocks():
    return python_blocks("docs/modules.md")


def test_the_block_of_the_readme_is_the_first_of_the_page(blocks):
    assert python_blocks("README.md") == blocks[:1]


def test_each_block_is_ten_lines_of_code(blocks):
    assert len(blocks) == 3
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) <= 10


def test_both_hosts_run(blocks):
    names = {}
    for block in blocks:
        exec(block, names)
    inputs = names["inputs"]
    nnx_host = names["NNXBlock"](names["nnx"].Rngs(0))
    # The output projection of a new module is zero: with noise, both hosts have work to do.
    params = jax.tree.map(lambda x: x + 0.01, names["variables"])
    names["nnx"].update(nnx_host.attention, params["params"]["MemorySparseAttention_0"])

    linen_out = names["LinenBlock"]().apply(params, *inputs)
    jax.tree.map(np.testing.assert_array_equal, nnx_host(*inputs), linen_out)
    for out, given in zip(linen_out[:2], inputs[::2], strict=True):
        assert out.shape == given.shape and not np.array_equal(out, given)
    exists = np.isfinite(linen_out[2])
    assert exists[..., :8].all() and not exists[..., 8:].any()
