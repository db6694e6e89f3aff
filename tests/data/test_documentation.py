"""Documentation is read without imports, once, in a fixed order; the tokenizer made from it."""

import textwrap

import pytest

from msa_jax.data import documentation
from msa_jax.data.documentation import gather, read_docstrings, split_summary
from msa_jax.data.make_tokenizer import SPECIAL_TOKENS, train_tokenizer
from msa_jax.data.tokenizer import Tokenizer


def read(source, module="package.module"):
    return dict(read_docstrings(textwrap.dedent(source), module))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package; importing any of it fails."""
    folder = tmp_path / "documented_package"
    (folder / "tests").mkdir(parents=True)
    sources = {
        "__init__.py": '"""The package as a whole.\n\nWith a body."""\nraise RuntimeError',
        "b.py": 'def f():\n    """Adds up the numbers.\n\n    All of them."""',
        "a.py": 'def g():\n    """ADDS up\n\n    the numbers. All of them!"""',
        "broken.py": '"""Never parsed."""\ndef (',
        "a_test.py": '"""A test beside its module."""',
        "tests/c.py": '"""A test in a folder."""',
    }
    for name, source in sources.items():
        (folder / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_docstrings_of_modules_classes_and_methods_have_qualified_names():
    found = read('''
        """Module."""
        import missing_module

        class Outer:
            """Outer class."""

            async def method(self):
                """Method."""

            class Inner:
                """Inner class."""

        if missing_module:
            def conditional():
                """Conditional."""
                def local():
                    """Local functions are nobody's documentation."""
    ''')
    assert found == {
        "package.module": "Module.",
        "package.module.Outer": "Outer class.",
        "package.module.Outer.method": "Method.",
        "package.module.Outer.Inner": "Inner class.",
        "package.module.conditional": "Conditional.",
    }


def test_added_docs_of_compiled_objects_are_found_in_every_form():
    found = read('''
        add_newdoc("numpy._core", "plain", """Plain text.""")
        tools.add_newdoc("agm", """Without a place.""")
        add_newdoc("numpy._core", "flatiter", ("base", """One attribute."""))
        add_newdoc("numpy._core", "ndarray", [("T", """First."""), ("size", """Second.""")])
        add_newdoc("numpy._core", "computed", make_text("""not a constant"""))
        register("numpy._core", "other", """Another function.""")
    ''')
    assert found == {
        "package.module.numpy._core.plain": "Plain text.",
        "package.module.agm": "Without a place.",
        "package.module.numpy._core.flatiter.base": "One attribute.",
        "package.module.numpy._core.ndarray.T": "First.",
        "package.module.numpy._core.ndarray.size": "Second.",
    }


@pytest.mark.parametrize(
    "text, summary, body",
    [
        ("Return the sum\n    of numbers.\n\n    Body.", "Return the sum of numbers.", "Body."),
        ("First. Second\n\nThird.", "First.", "Second\n\nThird."),
        ("Rewrites ids (e.g. short ones).\n\nBody.", "Rewrites ids (e.g. short ones).", "Body."),
        ("dot(a, b,\n    out=None)\n\nDot product.\n\nBody.", "Dot product.", "Body."),
        ("abs(x) -> float\n--\n\nMagnitude.", "Magnitude.", ""),
        ("Only a summary", "Only a summary", ""),
    ],
)
def test_summary_is_the_first_sentence_on_one_line(text, summary, body):
    assert split_summary(text) == (summary, body)


def test_gather_skips_tests_and_broken_files_and_near_duplicates(package):
    docs = gather([package, "package_that_is_not_installed"], processes=2)
    assert [(doc.name, doc.module, doc.summary) for doc in docs] == [
        (package, package, "The package as a whole."),
        (f"{package}.a.g", f"{package}.a", "ADDS up"),
    ]
    assert docs[1].body == "the numbers. All of them!"


def test_gather_does_not_depend_on_the_number_of_processes(package):
    packages = [package, "ml_collections"]
    assert gather(packages, processes=1) == gather(packages, processes=3)
    assert len(gather(packages)) > 50


def test_pydoc_topics_are_modules_of_their_own():
    pytest.importorskip("pydoc_data.topics", reason="this Python has no pydoc topics")
    docs = gather([documentation.PYDOC_TOPICS])
    assert len({doc.module for doc in docs}) == len(docs) > 50
    assert any("assert" in doc.body for doc in docs)


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["the year 2024 and 2024 again, in 2024"] * 50, 270).save(str(path))
    return Tokenizer.load(path)


@pytest.mark.parametrize("name", ["small_tokenizer", "docs-4k"])
def test_digits_are_single_tokens_and_special_tokens_come_first(name, request):
    tokenizer = Tokenizer.load(name) if name == "docs-4k" else request.getfixturevalue(name)
    assert tokenizer.vocab_size == (4096 if name == "docs-4k" else 270)
    assert [tokenizer.token_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.pad_id == 0
    digits = [tokenizer.encode(digit).item() for digit in "0123456789"]
    assert tokenizer.encode("2024").tolist() == [digits[int(digit)] for digit in "2024"]
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    assert sum(any(map(str.isdecimal, text)) for text in texts) == 10


@pytest.mark.parametrize("text", ["naïve ☃ 日本語\n\n\tdef f(x):\r\n        return 10**-7", ""])
def test_packaged_tokenizer_encodes_any_text(text):
    tokenizer = Tokenizer.load("docs-4k")
    assert tokenizer.decode(tokenizer.encode(text)) == text
