"""Imports point one way: the layers of CONTRIBUTING.md."""

import ast

import pytest

from tests.doc_commands import ROOT

LAYERS = ("core", "kernels", "modules", "memory", "engine", "training", "evaluation")


def imported(path):
    """Dotted names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_no_layer_imports_one_above_it(layer):
    above = {f"msa_jax.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :]}
    files = list((ROOT / "msa_jax" / layer).rglob("*.py"))
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        if ".".join(name.split(".")[:2]) in above
    ]
    assert files and wrong == []
