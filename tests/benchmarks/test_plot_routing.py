"""`benchmarks/plot_routing.py` on the page that it reads and on tables that lack something."""

from pathlib import Path

import pytest

from benchmarks.plot_routing import plot_routing, read_bars

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")


def test_bars_are_the_figures_of_the_page(tmp_path):
    bars = list(read_bars(PAGE).values())
    upstream, fused, ours, limit, ours_8, limit_8 = bars
    assert limit < ours < fused < upstream and limit_8 < ours_8 < ours
    assert f"{upstream} ({upstream / ours:.0f} times)" in PAGE
    plot_routing(read_bars(PAGE), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_table_with_a_cell_counts():
    later = "\n\n| memory | ms |\n| --- | --- |\n| 64 query tokens, bfloat16 | 99 |\n"
    assert read_bars(PAGE + later) == read_bars(PAGE)
    with pytest.raises(KeyError, match="int8"):
        read_bars(PAGE.replace("int8 with", "int4 with"))
