"""A model answers from a bank as from the memory that it encoded itself."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from msa_jax.data.records import Document
from msa_jax.engine.encode import Encoder, bank_layout, encode_documents
from msa_jax.kernels.content import DEVICE, DISK, HOST
from msa_jax.memory import tiers
from msa_jax.memory.bank import Bank
from msa_jax.memory.chunks import Chunks
from msa_jax.memory.store import EncodedDocument, Part, Store
from msa_jax.memory.tiers import Budget
from msa_jax.modules.transformer import Transformer, init_cache
from tests.memory.tiny import mesh_of
from tests.modules.tiny import POOLING, model_config, random_params, sequences_of

# Layers of one kind compile together.
CONFIG = model_config(num_layers=2, memory={"router_layers": (0, 1)})
MODEL = Transformer(CONFIG)
LONGEST = 5 * POOLING
TOP_K = CONFIG.memory.top_k_docs
RNG = np.random.default_rng(0)
# Texts of documents, all different, of which tests take as many as they need.
TEXTS = [RNG.integers(64, size=length).astype(np.int32) for length in RNG.integers(9, LONGEST, 40)]
QUESTIONS = [(RNG.integers(64, size=length), 2) for length in (9, 14, 12)]
ALL_AT_ONCE = len(TEXTS) * LONGEST
PLENTY = Budget(10**9, 10**9)
TIERS = (DEVICE, HOST, DISK)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def encoded(params):
    """Chunks of each text, by the types of the layout."""
    encoder = Encoder(MODEL, params, bank_layout(CONFIG, LONGEST), batch_tokens=ALL_AT_ONCE)
    stops, chunks = np.cumsum(encoder.num_chunks(TEXTS)), encoder.encode(TEXTS)

    def of_each_text(chunks):
        return [chunks[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    keys, key_scale = quantized(chunks.keys, 1)
    content, content_scale = quantized(chunks.content, 2)
    eight_bits = dataclasses.replace(encoder.layout, key_dtype="int8", content_dtype="int8")
    return {
        "float32": (encoder.layout, of_each_text(chunks)),
        "8 bits": (
            eight_bits,
            of_each_text(Chunks(keys, content, key_scale[..., 0], content_scale[..., 0, 0])),
        ),
    }


def quantized(x, num_axes):
    """In 8 bits, with one scale for the last axes."""
    axes = tuple(range(-num_axes, 0))
    scale = np.abs(x).max(axes, keepdims=True) / 127
    return np.round(x / scale).astype(np.int8), scale


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    monkeypatch.setattr(tiers, "SLAB_CHUNKS", 512)


def commit(store, chunks, texts, deletes=(), ids=None):
    """Commits texts, each as the document with the key and the id that is given, or a new one."""
    ids = ids or store.reserve_ids(len(texts))
    puts = [
        EncodedDocument(
            Document(key, f"text {text}"),
            (Part(part_id, 0, 4, len(TEXTS[text]), len(chunks[text])),),
            chunks[text],
        )
        for part_id, (key, text) in zip(ids, texts.items(), strict=True)
    ]
    store.commit(puts, list(deletes))


@pytest.fixture(scope="module")
def answer(params):
    """Prefills the questions: logits, and documents that each layer chose."""
    active = sequences_of(QUESTIONS, 16, TOP_K)

    @jax.jit
    def prefill(params, memory):
        variables, cache = {"params": params}, init_cache(CONFIG, 1, len(QUESTIONS), 16)
        hidden, _, routing = MODEL.apply(variables, active, cache, memory, method="prefill")
        return MODEL.apply(variables, hidden, method="logits"), routing.top_docs

    def answer(memory, mesh=None):
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            return jax.device_get(prefill(params, memory))

    return answer


def assert_same(ours, expected):
    """The same documents, and the same logits bit for bit."""
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def by_id(bank, answered):
    logits, docs = answered
    return logits, bank.ids(docs)


PLACES = [(tier, None) for tier in TIERS]
PLACES += [(DEVICE, {"memory": 4}), (DISK, {"data": 2, "memory": 2})]


@pytest.mark.parametrize(("tier", "axes"), PLACES, ids=str)
def test_a_bank_answers_like_the_memory_of_its_documents(
    tmp_path, params, encoded, answer, tier, axes
):
    layout, chunks = encoded["float32"]
    mesh = axes and mesh_of(**axes)
    own = encode_documents(MODEL, params, TEXTS, LONGEST, rows_per_batch=len(TEXTS))
    logits, docs = answer(own)
    assert len(np.unique(docs)) > TOP_K and (docs >= 0).all()
    with Store.create(tmp_path / "bank", layout, {}, {}) as store:
        commit(store, chunks, {str(i): i for i in range(len(TEXTS))})
        bank = Bank(store, mesh, tier, PLENTY)
        ours, ids = by_id(bank, answer(bank.memory, mesh))
        np.testing.assert_array_equal(ids, docs + 1)
        np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-5)
    with Store.open(tmp_path / "bank") as store:
        bank = Bank(store, mesh, tier, PLENTY)
        assert_same(by_id(bank, answer(bank.memory, mesh)), (ours, ids))


def test_all_tiers_answer_the_same_in_eight_bits(tmp_path, encoded, answer):
    layout, chunks = encoded["8 bits"]
    with Store.create(tmp_path / "bank", layout, {}, {}) as store:
        commit(store, chunks, {str(i): i for i in range(len(TEXTS))})
        banks = [Bank(store, None, tier, PLENTY) for tier in TIERS]
        first, *others = (by_id(bank, answer(bank.memory)) for bank in banks)
        for other in others:
            assert_same(other, first)


def test_eight_bits_answer_almost_the_same(tmp_path, encoded, answer):
    answers = []
    for name, (layout, chunks) in encoded.items():
        with Store.create(tmp_path / name, layout, {}, {}) as store:
            commit(store, chunks, {str(i): i for i in range(TOP_K)})
            bank = Bank(store, None, DEVICE, PLENTY)
            answers.append(answer(bank.memory)[0])
    np.testing.assert_allclose(*answers, atol=0.05 * np.abs(answers[0]).max())
    assert np.abs(answers[0] - answers[1]).max() > 0


def test_only_documents_of_the_mask_are_chosen(tmp_path, encoded, answer):
    layout, chunks = encoded["float32"]
    with Store.create(tmp_path / "bank", layout, {}, {}) as store:
        commit(store, chunks, {str(i): i for i in range(len(TEXTS))})
        bank = Bank(store, None, DEVICE, PLENTY)
        allowed = np.array([3, 17, 18, 30])
        index = dataclasses.replace(bank.memory.index, doc_mask=bank.mask(allowed))
        logits, ids = by_id(bank, answer(dataclasses.replace(bank.memory, index=index)))
        assert set(ids.ravel().tolist()) <= set(allowed.tolist())
    # As if there were no others.
    with Store.create(tmp_path / "few", layout, {}, {}) as store:
        commit(store, chunks, {str(i): i - 1 for i in allowed.tolist()}, ids=allowed.tolist())
        few = Bank(store, None, DEVICE, PLENTY)
        assert_same(by_id(few, answer(few.memory)), (logits, ids))


@pytest.mark.parametrize("tier", [DEVICE, DISK])
def test_an_empty_bank_is_no_memory_at_all(tmp_path, encoded, answer, tier):
    layout, chunks = encoded["float32"]
    with Store.create(tmp_path / "bank", layout, {}, {}) as store:
        bank = Bank(store, None, tier, PLENTY)
        empty, ids = by_id(bank, answer(bank.memory))
        assert (ids == -1).all() and np.isfinite(empty).all()
        commit(store, chunks, {"only": 0})
        bank.refresh()
        one, ids = by_id(bank, answer(bank.memory))
        assert set(ids.ravel().tolist()) == {-1, 1}
        assert np.abs(one - empty).max() > 1e-3
        commit(store, chunks, {}, deletes=["only"])
        bank.refresh()
        assert_same(answer(bank.memory)[:1], (empty,))


KEYS = st.sampled_from("abcdefgh")
CHANGES = st.lists(
    st.tuples(st.sets(KEYS, max_size=4), st.sets(KEYS, max_size=3)) | st.just("compact"),
    min_size=1,
    max_size=8,
)


ONE_OF_EACH = [(set("abcd"), set()), (set("bef"), {"a"}), "compact", ({"g"}, set("ce"))]


@pytest.mark.parametrize(
    ("tier", "types"), [(DEVICE, "float32"), (HOST, "8 bits"), (DISK, "8 bits")]
)
def test_after_any_changes_a_bank_answers_like_a_new_one(
    tmp_path_factory, encoded, answer, tier, types
):
    """A new one of the documents that are left, with their ids; and the same one opened again."""
    layout, chunks = encoded[types]
    # Every bank with content on disk compiles anew.
    phases = [Phase.explicit] if tier == DISK else Phase

    @settings(max_examples=6, deadline=None, phases=phases)
    @given(CHANGES)
    @example(ONE_OF_EACH)
    def check(changes):
        path = tmp_path_factory.mktemp("banks")
        with Store.create(path / "bank", layout, {}, {}) as store:
            bank = Bank(store, None, tier, PLENTY)
            live = change_all(store, bank, chunks, changes)
            edited = by_id(bank, answer(bank.memory))
        with Store.open(path / "bank") as store:
            bank = Bank(store, None, tier, PLENTY)
            assert_same(by_id(bank, answer(bank.memory)), edited)
        with Store.create(path / "new", layout, {}, {}) as store:
            ids = [part_id for part_id, _ in live.values()]
            commit(store, chunks, {key: text for key, (_, text) in live.items()}, ids=ids)
            bank = Bank(store, None, tier, PLENTY)
            assert_same(by_id(bank, answer(bank.memory)), edited)

    check()


def change_all(store, bank, chunks, changes):
    """Makes all changes; ids and texts of what is left, by key, in the order of ids."""
    live, unused = {}, iter(range(len(TEXTS)))
    for change in changes:
        if change == "compact":
            store.compact(0.0)
            continue
        puts, deletes = change
        texts = {key: next(unused) for key in sorted(puts)}
        deletes = sorted(deletes & live.keys() - puts)
        ids = list(store.reserve_ids(len(texts)))
        commit(store, chunks, texts, deletes, ids)
        for key in [*texts, *deletes]:
            live.pop(key, None)
        live |= {key: (own, texts[key]) for key, own in zip(texts, ids, strict=True)}
        bank.refresh()
    return live
