import jax
import numpy as np
import pytest

from msa_jax.config import ConfigError
from msa_jax.engine.encode import encode_documents
from msa_jax.kernels.routing import CHUNK_ALIGNMENT
from msa_jax.modules.transformer import Transformer
from tests.modules.tiny import POOLING, compiled, model_config, random_params, rows_of

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(64, size=length).astype(np.int32) for length in (5, 4, 3, 8, 6, 2, 7)]
ROW_TOKENS = 8


@pytest.fixture(scope="module")
def model():
    return Transformer(model_config())


@pytest.fixture(scope="module")
def params(model):
    return random_params(model.config)


def test_batches_give_the_chunks_of_one_encode(model, params):
    """Two rows a batch, so that the documents need three; document m is documents[m]."""
    tokens_done = []
    memory = encode_documents(
        model, params, DOCUMENTS, ROW_TOKENS, rows_per_batch=2, on_batch=tokens_done.append
    )
    assert len(tokens_done) >= 3 and sum(tokens_done) == sum(map(len, DOCUMENTS))
    owner = [m for m, tokens in enumerate(DOCUMENTS) for _ in range(-(-len(tokens) // POOLING))]
    padding = [-1] * (CHUNK_ALIGNMENT - len(owner))
    assert memory.index.chunk_doc[0].tolist() == owner + padding
    assert (memory.index.num_documents, memory.index.max_document_chunks) == (len(DOCUMENTS), 2)

    rows = rows_of(DOCUMENTS, [[m] for m in range(len(DOCUMENTS))], ROW_TOKENS)
    once = compiled(model.config, params)(rows, num_documents=len(DOCUMENTS), method="encode")
    for document in range(len(DOCUMENTS)):
        ours, expected = chunks_of(memory, document), chunks_of(once, document)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ours, expected)


def chunks_of(memory, document):
    own = np.asarray(memory.index.chunk_doc[0]) == document
    return jax.tree.map(lambda x: np.asarray(x)[:, 0, own], memory.layers)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "at least one document"),
        ([3, 9], r"documents\[1\] has 9 tokens; .* 1 to row_tokens \(8\)"),
        ([3, 5, 0], r"documents\[2\] has 0 tokens"),
    ],
)
def test_documents_that_fit_no_row_are_refused(model, params, lengths, message):
    with pytest.raises(ConfigError, match=message):
        encode_documents(model, params, [np.ones(n, np.int32) for n in lengths], ROW_TOKENS)
