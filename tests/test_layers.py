"""Imports point one way: the order that CONTRIBUTING.md states, for every part of the package."""

import ast
import re

import pytest

from tests.doc_commands import ROOT

PACKAGE = ROOT / "msa_jax"


def stated_layers():
    """The layers of CONTRIBUTING.md, lowest first; "programs" is the last."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Layers")[1]
    (order,) = (paragraph for paragraph in section.split("\n\n") if "<-" in paragraph)
    *layers, last = order.split("<-")
    assert last.strip().startswith("programs")
    return [set(re.findall(r"`(\w+)`", layer)) for layer in layers] + [{"programs"}]


LAYERS = stated_layers()


def is_program(path):
    """Whether a file is run with `python -m`; a process that a module starts for itself is none."""
    text = path.read_text(encoding="utf-8")
    return re.search(r'^if __name__ == "__main__":\n +(run|main)\(', text, re.MULTILINE) is not None


def part_of(path):
    """The folder or module of the package that a file belongs to; programs are one part."""
    return "programs" if is_program(path) else path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imported(path):
    """Dotted names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_files(name):
    """Files of the package that an import of this name reads; none for other packages."""
    parts = name.split(".")
    for count in range(len(parts), 1, -1):
        path = ROOT.joinpath(*parts[:count])
        if path.with_suffix(".py").is_file():
            return [path.with_suffix(".py")]
        if path.is_dir():
            return [path / "__init__.py"]
    return []


def wrong_imports(files):
    """What parts import of others in their own layer or above it."""
    for path in files:
        part = part_of(path)
        for name in imported(path):
            for read in own_files(name):
                other = part_of(read)
                if other != part and LEVELS[other] >= LEVELS[part]:
                    yield f"{path.relative_to(ROOT)} ({part}) imports {name} ({other})"


def test_every_part_of_the_package_has_one_layer():
    assert sorted(part for layer in LAYERS for part in layer) == sorted(set(map(part_of, FILES)))


@pytest.mark.parametrize("part", sorted(LEVELS))
def test_no_part_imports_one_of_its_layer_or_above(part):
    files = [path for path in FILES if part_of(path) == part]
    assert files and list(wrong_imports(files)) == []


def test_programs_do_not_import_one_another():
    for path in filter(is_program, FILES):
        others = {read for name in imported(path) for read in own_files(name)} - {path}
        assert not any(map(is_program, others)), path


def test_core_needs_no_more_than_jax():
    found = {name for path in (PACKAGE / "core").glob("*.py") for name in imported(path)}
    others = {name.partition(".")[0] for name in found} - {"__future__", "msa_jax"}
    assert others <= {"collections", "functools", "jax", "math", "numpy", "typing"}


def test_a_wrong_import_is_found(monkeypatch):
    """Read upside down, the order is broken."""
    monkeypatch.setattr(
        "tests.test_layers.LEVELS", {part: -level for part, level in LEVELS.items()}
    )
    assert any("core" in wrong for wrong in wrong_imports(FILES))
