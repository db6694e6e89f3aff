"""Figures with what they come from, and pages that quote them.

    python -m benchmarks.records            # brings the pages' figures to what the records say

A record is a line of `docs/results/records.jsonl`: a name, the command, the commit, the machine,
versions, the digest of the configuration that it speaks of, and values. Benchmarks append theirs
with `--output=docs/results/records.jsonl`; of one name, the last counts. Each section of a page
says how the names of its records start. A comment, which readers do not see, names a record and as
many of its fields as there are figures before it that come from it:

    <!-- RECORDS: NVIDIA_H100_80GB_HBM3/routing/ -->
    A layer takes 1.09 ms and 6.4 MB <!-- =100M/64 ms temporary_bytes/1e6 -->.

Where a record is older than the configuration, its section says "older than `configs/NAME.py`".
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from msa_jax.evaluation.conditions import digest_json
from msa_jax.evaluation.facts import environment

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "results" / "records.jsonl"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Of the option of benchmarks.
OUTPUT_HELP = "also append the records to this file"
_MARK = re.compile(r"<!-- (?:RECORDS: (?P<prefix>\S+)|=(?P<name>\S+) (?P<fields>[^>]+)) -->")
_FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?")
_FIELD = re.compile(r"(\w+)(?:([*/])([\d.e]+))?")


class Recorder:
    """Prints what a benchmark measures, a JSON line each, and appends it to a file if asked to."""

    def __init__(self, module: str, arguments: Sequence[str] | None, output: str | None):
        """For a program.

        Args:
            module: "benchmarks.NAME".
            arguments: of the command line; those of this process if None.
            output: the file; what was measured is only printed if None.
        """
        arguments = sys.argv[1:] if arguments is None else arguments
        # Where the record goes is no part of what it says.
        shown = [x for x in arguments if x not in ("--output", output, f"--output={output}")]
        self._environment = environment(shlex.join(["python", "-m", module, *shown]))
        self._output = output

    def show(self, what: str, values: Mapping[str, Any], config: str | None = None) -> None:
        """Prints values, and keeps them."""
        print(json.dumps(self.keep(what, values, config)), flush=True)

    def keep(
        self, what: str, values: Mapping[str, Any], config: str | None = None
    ) -> dict[str, Any]:
        """The record of values, appended to the file.

        Args:
            what: was measured: the name of the record but for the device.
            values: figures, and what tells cases apart.
            config: name of the file of `configs/` whose model it is.
        """
        device = jax.devices()[0].device_kind.replace(" ", "_")
        record = {"record": f"{device}/{what}", **self._environment}
        if config is not None:
            record |= {"config": config, "config_digest": config_digest(config)}
        record |= values
        if self._output is not None:
            with open(self._output, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        return record


def config_digest(name: str) -> str:
    """A digest of the model of `configs/NAME.py`."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    return digest_json(config.model.to_dict())


def short(tokens: int) -> str:
    """ "100M", or all digits where that would be another number."""
    return f"{tokens:,}" if tokens % 10**6 else f"{tokens // 10**6}M"


def read_records(path: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """Records by name, the last of each."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {record["record"]: record for record in records}


class Quote(NamedTuple):
    """A figure on a page.

    Attributes:
        shown: as it is written.
        start: where on the page.
        record: the name of its record.
        field: of the record.
        factor: what its value is multiplied with.
    """

    shown: str
    start: int
    record: str
    field: str
    factor: float

    def wanted(self, records: Mapping[str, Mapping[str, Any]]) -> str:
        """The figure as the record has it, with as many digits after the point.

        Raises:
            KeyError: if there is no such record or field.
        """
        digits = len(self.shown.partition(".")[2])
        grouped = "," if "," in self.shown else ""
        return f"{records[self.record][self.field] * self.factor:{grouped}.{digits}f}"


def quotes(page: str) -> Iterator[Quote]:
    """The figures of a page that have a record, in order.

    Raises:
        ValueError: if a comment names more fields than there are figures after the last one.
    """
    prefix, after = "", 0
    for mark in _MARK.finditer(page):
        prefix = mark["prefix"] or prefix
        fields = (mark["fields"] or "").split()
        figures = list(_FIGURE.finditer(page, after, mark.start()))[-len(fields) :]
        if fields and len(figures) < len(fields):
            raise ValueError(f"{mark[0]} has fewer figures before it than fields.")
        after = mark.end()
        for figure, field in zip(figures, fields, strict=False):
            name, operator, factor = _FIELD.fullmatch(field).groups(default="1")
            factor = 1 / float(factor) if operator == "/" else float(factor)
            yield Quote(figure[0], figure.start(), prefix + mark["name"], name, factor)


def rewritten(page: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with the figures of the records."""
    pieces, after = [], 0
    for quote in quotes(page):
        pieces += [page[after : quote.start], quote.wanted(records)]
        after = quote.start + len(quote.shown)
    return "".join([*pieces, page[after:]])


def sections(page: str) -> Iterator[str]:
    """The parts of a page that have a heading each."""
    return iter(re.split(r"^(?=#+ )", page, flags=re.MULTILINE))


def older_than(quoted: Sequence[Quote], records: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Configurations that have changed since a record that speaks of them."""
    about = [records[quote.record] for quote in quoted if "config" in records[quote.record]]
    return {x["config"] for x in about if x["config_digest"] != config_digest(x["config"])}


def main() -> None:
    """Rewrites the pages, and names the configurations that are newer than what they quote."""
    records = read_records()
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        new = rewritten(page, records)
        if new != page:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: figures rewritten")
        for config in sorted(older_than(list(quotes(page)), records)):
            print(f"{path.relative_to(ROOT)}: quotes figures older than configs/{config}.py")


if __name__ == "__main__":
    main()
