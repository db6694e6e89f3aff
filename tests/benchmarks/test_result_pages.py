"""Recall and answers on the pages are those of docs/results/results.csv."""

import csv
import re

import pytest

from benchmarks.records import ROOT

NAMES = {
    "SQuAD": "squad",
    "NQ": "nq",
    "HotpotQA": "hotpot",
    "2Wiki": "twowiki",
    "MuSiQue": "musique",
}
CONTROLS = {
    "none": "msa no memory",
    "random documents": "msa random",
    "the right one": "msa oracle",
    "the right ones": "msa oracle",
}
RANKED = ("msa", "bm25", "dense")
FIGURE = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def rows():
    with open(ROOT / "docs" / "results" / "results.csv", newline="", encoding="utf-8") as file:
        return {
            (row["set"], int(row["memory_tokens"]), row["system"], row["metric"]): row
            for row in csv.DictReader(file)
        }


def table(page, header):
    """Cells of the table whose header line starts so; an empty first cell is that above it."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith(header))
    cells = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        own = [cell.strip() for cell in line[1:-1].split("|")]
        cells.append([own[0] or cells[-1][0], *own[1:]])
    columns = [cell.strip() for cell in lines[first][1:-1].split("|")]
    assert cells
    return columns, cells


def tokens_of(size):
    return int(size[:-1]) * {"K": 1000, "M": 1_000_000}[size[-1]]


def check(cell, rows):
    """Figures of a cell, in order, are these values."""
    shown = FIGURE.findall(cell)
    assert len(shown) == len(rows), cell
    for figure, value in zip(shown, rows, strict=True):
        digits = len(figure.partition(".")[2])
        # What the table has was rounded before.
        assert abs(float(figure) - float(value)) <= 0.501 * 10**-digits, (cell, value)


def test_recall_of_the_results_page(rows):
    columns, lines = table("results/README.md", "| memory | SQuAD")
    for size, *cells in lines:
        for column, cell in zip(columns[1:], cells, strict=True):
            name = NAMES[column.partition(" (")[0]]
            found = [rows[name, tokens_of(size), system, "recall@16"] for system in RANKED]
            check(cell, [row["value"] for row in found])
            count = re.search(r"\(([\d,]+)\)", column)[1].replace(",", "")
            assert {row["n"] for row in found} == {count}


def test_recall_of_the_comparison(rows):
    _, lines = table("comparison.md", "| | memory | MSA | BM25 | dense |")
    for name, size, *cells in lines:
        for system, cell in zip(RANKED, cells, strict=True):
            row = rows[NAMES[name], tokens_of(size), system, "recall@16"]
            check(cell, [row["value"], row["low"], row["high"]])


def test_answers_of_the_comparison(rows):
    _, lines = table("comparison.md", "| | memory | MSA | BM25, then read")
    systems = ("msa answers", "bm25 answers", "dense answers", "msa no memory", "msa oracle")
    for name, size, *cells in lines:
        for system, cell in zip(systems, cells, strict=True):
            tokens = tokens_of(size) if system.endswith("answers") else 0
            row = rows.get((NAMES[name], tokens, system, "f1"))
            check(cell, [row["value"]] if row else [])


def test_answers_of_the_results_page(rows):
    _, lines = table("results/README.md", "| | memory | first id right")
    for name, memory, *cells in lines:
        system = CONTROLS.get(memory, "msa answers")
        tokens = 0 if memory in CONTROLS else tokens_of(memory)

        def found(metric, *columns, key=(NAMES[name], tokens, system)):
            return [rows[*key, metric][column] for column in columns]

        check(cells[0], [] if memory in CONTROLS else found("first id", "value"))
        check(cells[1], found("f1", "value", "low", "high"))
        check(cells[2], found("exact match", "value"))
        check(cells[3], found("documents read", "value"))
