"""`benchmarks/plot_routing.py` on the records that the page quotes, and on some that lack one."""

import pytest

from benchmarks.plot_routing import bars_of, plot_routing
from benchmarks.records import read_records

DEVICE = "NVIDIA_H100_80GB_HBM3"


def test_bars_are_the_figures_of_the_records(tmp_path):
    bars = bars_of(read_records(), DEVICE)
    upstream, fused, ours, limit, ours_8, limit_8 = bars.values()
    assert limit < ours < fused < upstream and limit_8 < ours_8 < ours
    plot_routing(bars, DEVICE, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_named():
    records = {name: x for name, x in read_records().items() if "/int8/" not in name}
    with pytest.raises(KeyError, match="routing/100M/1x64/int8/8x128"):
        bars_of(records, DEVICE)
