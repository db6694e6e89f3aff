from pathlib import Path

import numpy as np
import pytest

from tests import golden_parity

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "golden").glob("*/config.json"))
QUANTITIES = {
    *("train_forward/last_hidden", "train_forward/logits", "train_forward/lm_loss"),
    *("train_forward/aux_loss", "inference/s2_logits", "inference/decode_logits[0]"),
}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_upstream_number_is_met(folder):
    errors = dict(golden_parity.compare_folder(folder))
    assert errors.keys() >= QUANTITIES
    assert any(name.startswith("train_forward/grad/") for name in errors)
    assert {name: error for name, error in errors.items() if not error <= 1e-4} == {}


@pytest.fixture
def two_quantities(monkeypatch):
    """Replaces the slow part: a folder whose second quantity is off by as much as asked."""

    def use(error):
        exact = np.array([1.0, -2.0])
        pairs = {"exact": exact, "perturbed": exact + np.array([0.0, 2.0 * error])}
        errors = [(name, golden_parity.relative_error(x, exact)) for name, x in pairs.items()]
        monkeypatch.setattr(golden_parity, "compare_folder", lambda _: iter(errors))

    return use


@pytest.mark.parametrize(
    ("error", "code"), [(0.0, 0), (0.9e-4, 0), (1.1e-4, 1), (np.nan, 1), (np.inf, 1)]
)
def test_exit_code_says_whether_a_number_is_off(two_quantities, error, code, capsys):
    two_quantities(error)
    assert golden_parity.main(["some/folder"]) == code
    lines = [line for line in capsys.readouterr().out.splitlines() if "ABOVE" in line]
    assert [line.split()[0] for line in lines] == ["perturbed"] * code


def test_a_perturbed_tensor_is_noticed(tmp_path, monkeypatch, capsys):
    """One golden tensor of a real folder, changed by a thousandth of its largest value."""
    folder = next(folder for folder in FOLDERS if folder.name == "tiny_gqa")
    for name in ("config.json", "model.safetensors", "train_forward.npz"):
        (tmp_path / name).symlink_to(folder / name)
    golden = dict(np.load(folder / "inference.npz"))
    golden["s1_last_hidden"] = golden["s1_last_hidden"].copy()
    golden["s1_last_hidden"].flat[0] += 1e-3 * np.abs(golden["s1_last_hidden"]).max()
    np.savez(tmp_path / "inference.npz", **golden)
    monkeypatch.setattr(golden_parity, "compare_training", lambda *_: iter(()))
    assert golden_parity.main([str(tmp_path)]) == 1
    assert "inference/s1_last_hidden" in capsys.readouterr().out


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        golden_parity.relative_error(np.zeros(3), np.zeros(1))
