"""Every figure of a page that has a record is that of the record, and says so if it is old."""

import json
import re

import pytest

from benchmarks import records
from benchmarks.records import PAGES, ROOT, Recorder, older_than, quotes, read_records, sections

RECORDS = read_records()
KNOWN = ("record", "command", "commit", "device", "python", "versions")
UNRECORDED = "<!-- NO RECORDS: "


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_figures_are_those_of_their_records(page):
    for section in sections(page.read_text(encoding="utf-8")):
        for quote in quotes(section):
            where = f"{page.name}: {quote.shown} is {quote.field} of {quote.record}"
            assert quote.record in RECORDS and quote.field in RECORDS[quote.record], where
            assert quote.shown == quote.wanted(RECORDS), where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_section_says_which_configuration_its_figures_are_older_than(page):
    for section in sections(page.read_text(encoding="utf-8")):
        older = older_than(list(quotes(section)), RECORDS)
        said = set(re.findall(r"older than `configs/(\w+)\.py`", " ".join(section.split())))
        assert said == older, section.splitlines()[0]


def test_what_was_measured_has_records_or_says_that_it_has_none():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    measured = [x for x in sections(page) if x.startswith("## Measured")]
    assert len(measured) > 5
    for section in measured:
        assert list(quotes(section)) or UNRECORDED in section, section.splitlines()[0]


def test_a_record_says_what_it_comes_from():
    for name, record in RECORDS.items():
        assert all(field in record for field in KNOWN), name
        assert name.startswith(record["device"].replace(" ", "_") + "/")
        assert "config" not in record or "config_digest" in record, name


def test_a_recorder_appends_what_it_shows(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MSA_JAX_COMMIT", "abc")
    output = tmp_path / "records.jsonl"
    arguments = ["--full", f"--output={output}"]
    for value in (1, 2):
        Recorder("benchmarks.x", arguments, str(output)).show("a/b", {"ms": value}, "100m")
    assert output.read_text(encoding="utf-8") == capsys.readouterr().out
    ((name, record),) = read_records(output).items()
    assert name.endswith("/a/b") and record["ms"] == 2, "the last of a name counts"
    assert record["command"] == "python -m benchmarks.x --full" and record["commit"] == "abc"
    assert record["config_digest"] == records.config_digest("100m")
    Recorder("benchmarks.x", [], None).show("a/b", {"ms": 3})
    assert len(output.read_text(encoding="utf-8").splitlines()) == 2


PAGE = """# A page
<!-- RECORDS: card/ -->
In 5 runs it takes 1.10 ms, 2 MB and 49.5 % of the peak <!-- =a ms bytes/1e6 share*100 -->,
and 1,000 calls <!-- =a count -->; 7 are not quoted.
"""
VALUES = {"card/a": {"ms": 1.1, "bytes": 2_100_000, "share": 0.495, "count": 1000}}


def test_figures_are_rounded_as_they_are_shown():
    assert [quote.shown for quote in quotes(PAGE)] == ["1.10", "2", "49.5", "1,000"]
    assert records.rewritten(PAGE, VALUES) == PAGE
    values = {"card/a": {"ms": 0.777, "bytes": 5e7, "share": 0.5, "count": 12345.6}}
    new = records.rewritten(PAGE, values)
    assert [quote.shown for quote in quotes(new)] == ["0.78", "50", "50.0", "12,346"]
    assert "In 5 runs" in new and "7 are not quoted" in new
    with pytest.raises(KeyError, match="card/a"):
        records.rewritten(PAGE, {})
    with pytest.raises(ValueError, match="=a x y z --> has fewer figures"):
        list(quotes("1 <!-- =a ms --> 2 and 3 <!-- =a x y z -->"))


def test_a_record_is_older_where_the_configuration_has_changed():
    (quote, *_) = quotes(PAGE)
    for digest, older in ((records.config_digest("100m"), set()), ("another", {"100m"})):
        about = {"card/a": {"config": "100m", "config_digest": digest}}
        assert older_than([quote], about) == older
    assert older_than([quote], VALUES) == set()


def test_the_program_brings_pages_up_to_date(tmp_path, monkeypatch, capsys):
    page, file = tmp_path / "page.md", tmp_path / "records.jsonl"
    page.write_text(PAGE.replace("1.10", "9.99"), encoding="utf-8")
    file.write_text(json.dumps({"record": "card/a", **VALUES["card/a"]}) + "\n", encoding="utf-8")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "PAGES", [page])
    monkeypatch.setattr(records, "read_records", lambda: read_records(file))
    records.main()
    assert page.read_text(encoding="utf-8") == PAGE
    assert capsys.readouterr().out == "page.md: figures rewritten\n"
