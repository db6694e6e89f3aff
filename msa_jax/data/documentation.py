"""English text that every machine with this package has: the documentation of its libraries.

Docstrings are read from source files with `ast`; nothing of what is read is ever imported. The
file also runs as a script, `python documentation.py < files.json > docs.json`: that is how
`gather` parses on several cores. A worker so started imports the standard library alone and is up
in milliseconds, where a process pool would import JAX in every worker.
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

STANDARD_LIBRARY = "the standard library"
PYDOC_TOPICS = "pydoc topics"

# What the package requires, directly or not, and what is rich in documentation.
PACKAGES = (
    *(PYDOC_TOPICS, STANDARD_LIBRARY, "numpy", "scipy", "jax", "flax", "optax", "orbax"),
    *("grain", "ml_collections", "absl", "etils", "matplotlib", "mpl_toolkits", "tensorboard"),
    *("werkzeug", "huggingface_hub", "treescope", "rich", "tqdm", "PIL", "pyparsing"),
)

_SKIPPED_FOLDERS = frozenset(
    ["test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "_vendor"]
    + ["site-packages", "dist-packages"]
)
_SAME_START = 200  # texts that agree so far, in letters and digits, are one text
_SIGNATURE = re.compile(r"[\w.]+\s*\(.*\)(\s*->.*)?(\n--)?$", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[^\s.][.!?])(?<!e\.g\.)(?<!i\.e\.)\s+")
_SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Docstring:
    """Documentation of one object.

    Attributes:
        name: qualified name, "scipy.signal._waveforms.chirp".
        module: the module that holds it; one text of pydoc counts as a module.
        summary: first sentence, on one line.
        body: everything after the summary; may be empty.
    """

    name: str
    module: str
    summary: str
    body: str


def gather(packages: Sequence[str] = PACKAGES, processes: int | None = None) -> list[Docstring]:
    """Collects the documentation of those `packages` that are installed.

    Exact and near duplicates (the same first 200 letters and digits) appear once. The order
    depends on names alone, so equal installations give equal lists.

    Args:
        packages: import names, `STANDARD_LIBRARY` or `PYDOC_TOPICS`.
        processes: workers that parse; None for one per core, at most four.
    """
    texts: list[tuple[str, str, str]] = []
    if PYDOC_TOPICS in packages:
        texts += ((f"pydoc.{name}", f"pydoc.{name}", text) for name, text in _pydoc_topics())
    files = [file for package in packages for file in _source_files(package)]
    processes = processes or min(4, os.cpu_count() or 1)
    for (module, _), found in zip(files, _parse_files(files, processes), strict=True):
        texts += ((name, module, text) for name, text in found)

    docs, seen = [], set()
    for name, module, text in texts:
        start = re.sub(r"[\W_]+", "", text[: 4 * _SAME_START].lower())[:_SAME_START]
        if start and start not in seen:
            seen.add(start)
            docs.append(Docstring(name, module, *split_summary(text)))
    return docs


def split_summary(text: str) -> tuple[str, str]:
    """Splits a docstring into its first sentence, on one line, and the rest.

    A leading signature, which C functions carry (`dot(a, b, out=None)`), is dropped.
    """
    first, _, rest = inspect.cleandoc(text).partition("\n\n")
    if _SIGNATURE.fullmatch(first.strip()) and rest:
        first, _, rest = rest.lstrip().partition("\n\n")
    summary, *more = SENTENCE_END.split(first.strip(), maxsplit=1)
    body = "\n\n".join(part for part in (*more, rest) if part.strip())
    return " ".join(summary.split()), body.strip()


def read_docstrings(source: str, module: str) -> Iterator[tuple[str, str]]:
    """Yields (qualified name, text) for a module, its classes and functions, in source order.

    Also the texts that numpy and scipy attach to compiled objects with `add_newdoc(...)`.
    Source that does not parse yields nothing.
    """
    if '"""' not in source and "'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _walk(tree, module)


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ast.Module, *_SCOPES)) and (text := ast.get_docstring(node)):
        yield name, text
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in getattr(node, "body", ()):
        if isinstance(child, _SCOPES):
            yield from _walk(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _walk(child, name)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added_docs(child.value, name)


def _added_docs(call: ast.Call, module: str) -> Iterator[tuple[str, str]]:
    """Texts of `add_newdoc([place,] name, doc | (attribute, doc) | [(attribute, doc), ...])`."""
    function = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if "add_newdoc" not in function or len(call.args) < 2:
        return
    *names, docs = call.args
    prefix = ".".join([module, *filter(None, map(_string, names))])
    for item in docs.elts if isinstance(docs, ast.List) else [docs]:
        attribute, doc = item.elts if isinstance(item, ast.Tuple) else (None, item)
        if text := _string(doc):
            yield ".".join(filter(None, (prefix, _string(attribute)))), text


def _string(node: ast.AST | None) -> str:
    value = getattr(node, "value", None)
    return value if isinstance(value, str) else ""


def _pydoc_topics() -> list[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        return []
    return sorted(topics.items())


def _source_files(package: str) -> list[tuple[str, str]]:
    """(module name, path) of a package's Python files in the order of their names."""
    if package == PYDOC_TOPICS:
        return []
    if package == STANDARD_LIBRARY:
        roots, prefix = [sysconfig.get_path("stdlib")], ()
    else:
        spec = importlib.util.find_spec(package)  # finds a top-level name without importing it
        roots, prefix = (spec and spec.submodule_search_locations) or [], (package,)
    found = []
    for root in map(Path, roots):
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
            inside = Path(folder).relative_to(root).parts
            for name in sorted(names):
                stem, extension = os.path.splitext(name)
                if extension == ".py" and not (stem.endswith("_test") or stem.startswith("test_")):
                    parts = (*prefix, *inside) if stem == "__init__" else (*prefix, *inside, stem)
                    found.append((".".join(parts), os.path.join(folder, name)))
    return found


def _parse_files(files: Sequence[tuple[str, str]], processes: int) -> list[list[tuple[str, str]]]:
    """`_read_file` of every file, spread over worker processes."""
    command = [sys.executable, "-I", __file__]  # isolated: our folder must not shadow a module
    workers = []
    for i in range(processes):
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        worker.stdin.write(json.dumps(files[i::processes]).encode())
        worker.stdin.close()
        workers.append(worker)
    docs: list = [None] * len(files)
    for i, worker in enumerate(workers):
        docs[i::processes] = json.load(worker.stdout)
        worker.wait()
    return docs


def _read_file(module: str, path: str) -> list[tuple[str, str]]:
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return list(read_docstrings(source, module))


def _work(files: Iterable[tuple[str, str]]) -> None:
    json.dump([_read_file(module, path) for module, path in files], sys.stdout)


if __name__ == "__main__":
    _work(json.load(sys.stdin))
