"""What docstrings, comments and pages name in backticks, or call in a sample, is there."""

import ast
import builtins
import io
import pkgutil
import re
import textwrap
import tokenize
from functools import cache

import pytest

from tests.doc_commands import PAGES, ROOT, prose

FOLDERS = ("msa_jax", "configs", "benchmarks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
_NAME = re.compile(r"[A-Za-z_][\w.]*\w(?=\(|$)")
_SUFFIXES = {"json", "jsonl", "md", "png", "py", "sh", "svg", "txt", "yaml"}


@cache
def parsed(path):
    """The syntax of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree):
    """The constants of a file that are docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            yield node.body[0].value


def tokens_of(source, kind):
    """The text of all tokens of a kind."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type == kind]


@cache
def names():
    """Every identifier, and every word of a string, of code; docstrings and comments left out."""
    found = {*dir(builtins), *(path.name for path in ROOT.iterdir())}
    for script in (ROOT / "launch").iterdir():
        found |= set(re.findall(r"\w+", script.read_text(encoding="utf-8")))
    for path in SOURCES:
        source, tree = path.read_text(encoding="utf-8"), parsed(path)
        left_out = set(map(id, docstrings(tree)))
        found |= set(tokens_of(source, tokenize.NAME)) | set(path.relative_to(ROOT).parts)
        found |= {path.stem}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in left_out:
                found |= set(re.findall(r"\w+", node.value))
    return found


@cache
def modules():
    """Dotted names of the package's modules and folders, by their last part."""
    found = {}
    for path in (ROOT / "msa_jax").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.setdefault(parts[-1], []).append(".".join(parts))
    return found


@cache
def of_other_packages():
    """What modules of other packages are called where they are imported."""
    return {
        (alias.asname or alias.name).partition(".")[0]
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and not ast.unparse(node).startswith("from msa_jax")
        for alias in node.names
    }


@cache
def fields():
    """Names of the fields of all dataclasses: sections of a configuration among them."""
    return {
        node.target.id
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def is_there(quoted):
    """Whether what stands in backticks is no name, or the name of something in the code."""
    match = _NAME.match(quoted)
    parts = match[0].split(".") if match else []
    # A file's; a variable of the environment, or what the reader is to fill in; another package's.
    is_other = re.search(r"[A-Z]{3}", quoted) or (parts and parts[0] in of_other_packages())
    if not parts or parts[-1] in _SUFFIXES or is_other:
        return True
    candidates = modules().get(parts[0], [])
    if len(parts) == 1 or not candidates or (parts[0] in fields() and parts[0] != "msa_jax"):
        return set(parts) <= names()
    return any(resolves(".".join([module, *parts[1:]])) for module in candidates)


def resolves(name):
    """Whether a dotted name is that of a module, of what one defines, or of a class's field."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        owner, _, last = name.rpartition(".")
        return "." in owner and last in getattr(try_resolve(owner), "__annotations__", {})
    return True


def try_resolve(name):
    """What a dotted name is, or None."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None


def calls(text):
    """Names of what the samples in a docstring call; a sample is a paragraph that is indented."""
    for paragraph in re.split(r"\n\s*\n", text):
        if re.match(r" {4}\S", paragraph):
            try:
                tree = ast.parse(textwrap.dedent(paragraph))
            except SyntaxError:
                continue  # A command, or a table.
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    yield node.func.id if isinstance(node.func, ast.Name) else node.func.attr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_docstrings_and_comments_name_is_there(path):
    texts = [constant.value for constant in docstrings(parsed(path))]
    called = [name for text in texts for name in calls(text)]
    assert [name for name in called if name not in names()] == []
    texts += tokens_of(path.read_text(encoding="utf-8"), tokenize.COMMENT)
    quoted = [name for text in texts for name in re.findall(r"`([^`\n]+)`", text)]
    assert [name for name in quoted if not is_there(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_pages_name_is_there(page):
    quoted = re.findall(r"`([^`\n]+)`", prose(page.read_text(encoding="utf-8")))
    assert [name for name in quoted if not is_there(name)] == []


@pytest.mark.parametrize(
    ("quoted", "found"),
    [
        ("read_documents", True),
        ("records.read_documents", True),
        ("data.records.Document.title", True),
        ("memory.top_k_docs", True),
        ("split_texts(text)", True),
        ("changes_of(tensors)", False),
        ("records.no_such_reader", False),
        ("msa_jax.data.records.Document.no_such_field", False),
    ],
)
def test_what_is_not_there_is_noticed(quoted, found):
    assert is_there(quoted) == found


def test_calls_of_samples_are_read():
    sample = "Makes one:\n\n    one = make(other(1), ...)\n\nand no more."
    assert list(calls(sample)) == ["make", "other"]
