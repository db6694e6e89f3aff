"""Which rule makes the best single ranking out of the lists of several router layers.

    python -m benchmarks.ranking_rules --run=runs/tiny

asks the held-out questions of a trained run at several sizes of memory and prints recall@1 and
recall@16 of each rule. `engine/ranking.py` has the rule that the engine uses.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.quantized_recall import load_run
from benchmarks.records import OUTPUT_HELP, Recorder, short
from msa_jax.data.pipeline import TextDataset
from msa_jax.engine.encode import encode_documents
from msa_jax.engine.generate import Generator
from msa_jax.engine.ranking import LISTED, rank_documents
from msa_jax.evaluation.scaling import HeldOut, ScalingConfig
from msa_jax.modules.state import Memory, Routing
from msa_jax.typing import Float, Int

BATCH_SIZE = 32
Rule = Callable[[Int[np.ndarray, "L k"], Float[np.ndarray, "L k"]], dict[int, float]]


def rule_scores(
    points: Float[np.ndarray, "L k"], documents: Int[np.ndarray, "L k"], combine: np.ufunc
) -> dict[int, float]:
    """Combines the points that layers give to a document; a layer that lists it not gives 0."""
    totals: dict[int, float] = {}
    for document, point in zip(documents.ravel().tolist(), points.ravel().tolist(), strict=True):
        if document >= 0:
            totals[document] = combine(totals[document], point) if document in totals else point
    return totals


def largest(documents, scores):
    """The largest score."""
    return rule_scores(scores, documents, np.maximum)


def mean_score(documents, scores):
    """The mean score; a layer that lists a document not counts as its lowest score."""
    return rule_scores(scores - scores.min(axis=1, keepdims=True), documents, np.add)


def standard_score(documents, scores):
    """The mean score in standard deviations of a layer's list."""
    centred = scores - scores.min(axis=1, keepdims=True)
    return rule_scores(centred / scores.std(axis=1, keepdims=True), documents, np.add)


def probability(documents, scores, temperature=0.1):
    """The mean probability that the router's loss gives a document."""
    weights = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
    return rule_scores(weights / weights.sum(axis=1, keepdims=True), documents, np.add)


def reciprocal_rank(documents, scores, offset=60):
    """Reciprocal rank fusion."""
    points = np.broadcast_to(1 / (offset + 1 + np.arange(scores.shape[1])), scores.shape)
    return rule_scores(points, documents, np.add)


def one_layer(documents, scores, layer):
    """The list of one layer."""
    return rule_scores(scores[layer : layer + 1], documents[layer : layer + 1], np.maximum)


RULES: dict[str, Rule] = {
    "largest score": largest,
    "mean score": mean_score,
    "mean standard score": standard_score,
    "mean probability": probability,
    "reciprocal rank, 60": reciprocal_rank,
    "reciprocal rank, 1": partial(reciprocal_rank, offset=1),
}


def rankings_by_rule(
    documents: Int[np.ndarray, "L k"], scores: Float[np.ndarray, "L k"]
) -> Iterator[tuple[str, list[int]]]:
    """What each rule, each layer and the engine make of the lists."""
    layers = {
        f"router layer {layer} of {len(scores)}": partial(one_layer, layer=layer)
        for layer in range(len(scores))
    }
    for name, rule in {**layers, **RULES}.items():
        totals = rule(documents, scores)
        yield name, sorted(totals, key=totals.get, reverse=True)
    yield "engine", rank_documents(documents, scores)[0].tolist()


def main() -> None:
    """Prints a line for each size of memory, kind of question and rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="workdir of a trained run with results.json")
    parser.add_argument("--output", help=OUTPUT_HELP)
    options = parser.parse_args()
    recorder = Recorder("benchmarks.ranking_rules", None, options.output)
    run = Path(options.run)
    corpus = run / "corpus"
    files = {kind: str(corpus / f"heldout.{kind}.jsonl") for kind in ("documents", "questions")}
    model, params, data = load_run(run)
    data = dataclasses.replace(data, **files)
    config = ScalingConfig(**files, kinds=("needle", "docstring"))
    held_out = HeldOut(TextDataset.load(data, model.config.memory), config)
    memory = encode_documents(model, params, held_out.documents, data.row_tokens)
    generator = Generator(model, params)
    for memory_tokens in config.memory_tokens:
        for (kind, rule), recalls in measure(held_out, generator, memory, memory_tokens).items():
            at_1, at_16 = np.mean(recalls, axis=0)
            values = {"recall_at_1": float(at_1), "recall_at_16": float(at_16)}
            name = f"{kind}/{rule.replace(' ', '_')}/{short(memory_tokens)}"
            recorder.keep(f"ranking_rules/{name}", values, "tiny")
            size = f"{memory_tokens:>9,} {kind:<10} {rule:<24}"
            print(f"{size} recall@1 {at_1:.3f}  recall@16 {at_16:.3f}", flush=True)


def measure(
    held_out: HeldOut, generator: Generator, memory: Memory, memory_tokens: int
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Recall@1 and recall@16 of every question, by kind of question and rule."""
    recalls: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for batch in held_out.batches(BATCH_SIZE):
        routing = route(held_out, generator, memory, batch, memory_tokens)
        # The last batch is filled up with its last question.
        for row, question in enumerate(np.unique(batch)):
            positives = set(held_out.positives[question])
            lists = routing.top_docs[:, row], routing.top_scores[:, row]
            for rule, ranking in rankings_by_rule(*lists):
                found = [len(positives & set(ranking[:n])) / len(positives) for n in (1, 16)]
                recalls.setdefault((held_out.kind(question), rule), []).append(tuple(found))
    return recalls


def route(
    held_out: HeldOut,
    generator: Generator,
    memory: Memory,
    batch: np.ndarray,
    memory_tokens: int,
) -> Routing:
    """What each layer lists for a batch of questions."""
    mask = np.stack([held_out.memory_of(question, memory_tokens) for question in batch])
    index = dataclasses.replace(memory.index, doc_mask=mask[None])
    prompts = [held_out.prompts[question] for question in batch]
    session = generator.start(prompts, Memory(memory.layers, index), room=1, search_docs=LISTED)
    return session.routing


if __name__ == "__main__":
    main()
