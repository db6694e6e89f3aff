"""Asks a bank, or documents.

    python -m msa_jax.ask --bank=bank "Who repaired the lighthouse?"
    python -m msa_jax.ask --pretrained=smollm2-135m-msa --documents=FOLDER "Who repaired it?"

writes the answer while it comes, then the documents that it rests on. Several questions are asked
together; without one, questions are read from standard input, a line each.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from tqdm import tqdm

from msa_jax import cli
from msa_jax.config import ConfigError
from msa_jax.data.sources import open_source
from msa_jax.engine.answers import Answer, AskConfig, Found
from msa_jax.engine.cached import cached_bank
from msa_jax.engine.engine import Engine
from msa_jax.engine.interleave import InterleaveConfig, Round
from msa_jax.engine.loading import LoadedModel, load_model
from msa_jax.engine.sampling import SamplingConfig, TopP
from msa_jax.engine.snippets import snippet
from msa_jax.fields import Count, CountOrZero, NonNegative, Number, Positive, Seed
from msa_jax.flag_types import define_number
from msa_jax.memory.store import Store
from msa_jax.memory.tiers import TIERS
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.terminal import escaped, note, show

_SNIPPET_WIDTH = 90

FLAGS = flags.FlagValues()


def _string(name: str, help_string: str) -> flags.FlagHolder:
    return flags.DEFINE_string(name, None, help_string, flag_values=FLAGS)


def _number(name: str, default: float | None, kind: Any, help_string: str) -> flags.FlagHolder:
    return define_number(name, default, kind, help_string, FLAGS)


def _switch(name: str, help_string: str) -> flags.FlagHolder:
    return flags.DEFINE_bool(name, False, help_string, flag_values=FLAGS)


def _strings(name: str, help_string: str) -> flags.FlagHolder:
    return flags.DEFINE_multi_string(name, [], help_string, flag_values=FLAGS)


_BANK = _string("bank", "Directory of the bank.")
_DOCUMENTS = _string(
    "documents",
    "Instead of a bank: a folder of text files, or a JSON Lines file. What a model makes of them "
    "is kept in the cache, and only what has changed is encoded again.",
)
_CHECKPOINT = _string(
    "checkpoint", "Where the model is now; by default where it was when the bank was made."
)
_PRETRAINED = _string(
    "pretrained", "Instead of --checkpoint: name or folder of a model that comes with an adapter."
)
_MAX_ROUNDS = _number(
    "max_rounds",
    InterleaveConfig().max_rounds,
    CountOrZero,
    "How often documents may be read before the answer; 0 answers from the pooled memory.",
)
_ROUTER_TEMPERATURE = _number(
    "router_temperature",
    None,
    Positive,
    "Let the routers' scores, divided by this, count when documents are named; by default what "
    "comes with the model, and if that is nothing, it alone decides among those routed to.",
)
_MARGIN = _number(
    "margin",
    None,
    NonNegative,
    "If a document is named, name all whose scores are within this of the best one's; by default "
    "what comes with the model, and if that is nothing or 0, how many is left to it.",
)
_MAX_TOKENS = _number("max_tokens", SamplingConfig().max_tokens, Count, "Of the longest answer.")
_TEMPERATURE = _number(
    "temperature", 0.0, NonNegative, "0 takes the likeliest token; 1 draws as predicted."
)
_TOP_P = _number("top_p", 1.0, TopP, "Draw among the likeliest tokens of this probability.")
_STOP = _strings("stop", "A text that ends an answer; can be repeated.")
_SEED = _number("seed", 0, Seed, "Of the draws.")
_FILTER = _strings(
    "filter",
    "field=value: look only at documents with this in their metadata, or as key or title. Can be "
    "repeated: values of one field are alternatives, and all fields must be met. Or a JSON object "
    "of fields with a value or a list of values.",
)
_ABSTAIN_BELOW = _number(
    "abstain_below", None, Number, "No answer where no document scores so much."
)
_LOOKS = _number(
    "looks",
    None,
    CountOrZero,
    "Documents to look at once more for a question, if the model can; by default 64, on a CPU 4.",
)
_NUM_DOCUMENTS = _number(
    "num_documents", AskConfig().num_documents, CountOrZero, "How many to list."
)
_RETRIEVE = _switch("retrieve", "Rank documents and write no answer.")
_CONTENT_TIER = flags.DEFINE_enum(
    "content_tier",
    None,
    TIERS,
    "Where content goes; by default the nearest place that has room.",
    flag_values=FLAGS,
)
_ATTRIBUTION = _string(
    "attribution",
    "File of a plot, written as PNG and SVG, of the documents and chunks that each token of the "
    "answer attends to; for one question.",
)
_JSON = _switch("json", "Print a JSON object for each question, and nothing else.")
_MEMORY_DEVICES = _number("memory_devices", 1, Count, "How many devices share the memory.")


def main(arguments: Sequence[str]) -> None:
    questions, config = arguments[1:], _ask_config()
    if _ATTRIBUTION.value and (len(questions) != 1 or _RETRIEVE.value):
        raise ConfigError("--attribution is of one answer; give one question, and no --retrieve.")
    model = _model()
    mesh = make_mesh(MeshConfig(memory=_MEMORY_DEVICES.value))
    mesh = mesh if mesh.size > 1 else None
    encoded = _encoded(model, mesh) if _DOCUMENTS.value else None
    # Small banks are there before a bar would be.
    with tqdm(desc="load", unit="chunk", unit_scale=True, delay=2.0, leave=False) as bar:
        shared = {
            "mesh": mesh,
            "content_tier": _CONTENT_TIER.value,
            "on_load": cli.progress_of(bar),
        }
        if encoded:
            engine = Engine(*encoded, **shared)
        else:
            engine = Engine.open(cli.given(_BANK, "the directory of the bank"), model, **shared)
    with engine:
        (note if _JSON.value else show)(_describe(engine))
        if questions:
            _respond(engine, questions, config)
        else:
            _converse(engine, config)


def _model() -> str | None:
    """What to load; None for what made the bank."""
    for one, other in ((_BANK, _DOCUMENTS), (_CHECKPOINT, _PRETRAINED)):
        if one.value and other.value:
            raise ConfigError(f"--{one.name} and --{other.name} exclude each other; give one.")
    model = f"pretrained:{_PRETRAINED.value}" if _PRETRAINED.value else _CHECKPOINT.value
    if _DOCUMENTS.value and not model:
        raise ConfigError("--documents needs a model; name one by --pretrained or --checkpoint.")
    return model


def _encoded(model: str, mesh: Mesh | None) -> tuple[LoadedModel, Store]:
    """The model, and its bank of the documents as they are now."""
    source = open_source(_DOCUMENTS.value)
    loaded = load_model(model, mesh=mesh)
    # Where little has changed, it is done before a bar would be there.
    with cli.EncodingBar(source, delay=2.0) as bar:
        store = cached_bank(loaded, _DOCUMENTS.value, source, mesh, bar.planned, bar.encoded)
    return loaded, store


def _ask_config() -> AskConfig:
    return AskConfig(
        interleave=InterleaveConfig(
            max_rounds=_MAX_ROUNDS.value,
            router_temperature=_ROUTER_TEMPERATURE.value,
            margin=_MARGIN.value,
        ),
        sampling=SamplingConfig(
            max_tokens=_MAX_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_p=_TOP_P.value,
            stop=tuple(_STOP.value),
            seed=_SEED.value,
        ),
        filters=_filters(_FILTER.value),
        abstain_below=_ABSTAIN_BELOW.value,
        num_documents=_NUM_DOCUMENTS.value,
        looks=_LOOKS.value,
    )


def _filters(given: Sequence[str]) -> dict[str, list[Any]] | None:
    """Values by field. One that reads as a number, true, false or null means that, too.

    A JSON object says exactly what it says, and can name any field.
    """
    filters: dict[str, list[Any]] = {}
    for text in given:
        field, equals, value = text.partition("=")
        if text.startswith("{"):
            for name, one in _json_object(text).items():
                filters.setdefault(name, []).extend(one if isinstance(one, list) else [one])
        elif field and equals:
            filters.setdefault(field, []).extend({value, _as_json(value)})
        else:
            raise ConfigError(f"--filter={text} must be field=value.")
    return filters or None


def _json_object(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--filter={text} is not a JSON object ({error}).") from None


def _as_json(text: str) -> str | int | float | None:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # What else it may be, Python's "Infinity" too, is no value of JSON metadata.
    is_value = isinstance(value, str | int | None) or (
        isinstance(value, float) and math.isfinite(value)
    )
    return value if is_value else text


def _describe(engine: Engine) -> str:
    store = engine.store
    return (
        f"{store.num_documents:,} documents, {store.num_tokens:,} tokens; "
        f"{engine.bank.plan.describe()}"
    )


def _converse(engine: Engine, config: AskConfig) -> None:
    """Responds to every line of standard input, whatever came of the one before."""
    for question in _lines():
        try:
            _respond(engine, [question], config)
        except cli.MENDABLE as error:
            _print_error(question, error)


def _lines() -> Iterator[str]:
    """Lines that are not blank, until the end of standard input."""
    if sys.stdin is None:
        raise ConfigError("standard input is closed; give a question.")
    # What is not UTF-8 is the fault of one question, see `_check`.
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    prompt = "\n> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            print(end="\n" if prompt else "")
            return
        if line:
            yield line


def _respond(engine: Engine, questions: Sequence[str], config: AskConfig) -> None:
    for question in questions:
        _check(question)
    try:
        _print_response(engine, questions, config)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"there is no room in memory for this ({str(error).splitlines()[0]}); ask shorter "
            "questions, or fewer at once."
        ) from error


def _print_response(engine: Engine, questions: Sequence[str], config: AskConfig) -> None:
    if _RETRIEVE.value:
        for question in questions:
            _print_ranking(
                question,
                engine.retrieve(question, config.num_documents, config.filters, config.looks),
            )
    elif _JSON.value:
        for answer in engine.ask_all(questions, config):
            _print_json(_as_object(answer))
            _draw_attribution(engine, answer, config)
    elif len(questions) == 1:
        answer = engine.ask(questions[0], config, _print_now)
        _print_answer(answer, shown=True)
        _draw_attribution(engine, answer, config)
    else:
        for answer in engine.ask_all(questions, config):
            show(f"\n{escaped(answer.question)}")
            _print_answer(answer, shown=False)


def _check(question: str) -> None:
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the question {question!r} is not text in UTF-8.") from None


def _print_now(text: str) -> None:
    show(text, end="")


def _print_answer(answer: Answer, shown: bool) -> None:
    """Prints the answer, unless it was shown while it was written, and all that goes with it."""
    if answer.abstained:
        show("No answer: no document scores enough.")
    else:
        show("" if shown else answer.text)
    _print_documents(answer.question, answer.documents)
    stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in answer.seconds.items())
    show(f"seconds: {stages}; {answer.tokens} tokens, {answer.finished}")


def _draw_attribution(engine: Engine, answer: Answer, config: AskConfig) -> None:
    """Draws what the answer attends to, if that was asked for and there is one."""
    if not _ATTRIBUTION.value:
        return
    tell = note if _JSON.value else show
    if not answer.text:
        tell("No attribution: there is no answer.")
        return
    # Only here, since what draws takes a while to load.
    from msa_jax.evaluation.attribution import plot_attribution

    path = Path(_ATTRIBUTION.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_attribution(engine.attribute(answer, config), path)
    tell(f"attribution: {path.with_suffix('.png')}, {path.with_suffix('.svg')}")


def _print_error(question: str, error: Exception) -> None:
    if _JSON.value:
        _print_json({"question": question, "error": str(error)})
    else:
        cli.print_error(error)


def _print_ranking(question: str, documents: Sequence[Found]) -> None:
    if _JSON.value:
        found = [_document(question, document) for document in documents]
        _print_json({"question": question, "documents": found})
    else:
        show(f"\n{escaped(question)}")
        _print_documents(question, documents)


def _print_documents(question: str, documents: Sequence[Found]) -> None:
    for document in documents:
        read = ", read" if document.was_read else ""
        name = escaped(document.title.strip() or document.key)
        show(f"  {document.score:7.3f}  [{document.id}] {name}{read}")
        show(f"           {escaped(snippet(document.text, question, _SNIPPET_WIDTH))}")
    if not documents:
        show("  no documents")


def _as_object(answer: Answer) -> dict[str, Any]:
    return vars(answer) | {
        "documents": [_document(answer.question, document) for document in answer.documents],
        "rounds": [_round(one) for one in answer.rounds],
    }


def _document(question: str, document: Found) -> dict[str, Any]:
    return vars(document) | {
        "score": _score(document.score),
        "snippet": snippet(document.text, question),
    }


def _round(one: Round) -> dict[str, Any]:
    ids, scores = one.ranking
    routed = zip(ids.tolist(), scores.tolist(), strict=True)
    return {
        "routed": [{"id": part_id, "score": _score(score)} for part_id, score in routed],
        "named": one.named,
    }


def _score(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _print_json(values: Mapping[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def run() -> None:
    """Runs the program."""
    # Before JAX starts: a large memory needs most of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    cli.keep_compiled()
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
