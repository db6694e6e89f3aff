"""Names, texts and metadata that nobody expects, and programs that run in this process."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from types import ModuleType
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Whatever a terminal would obey; `\n` and `\t` only make lines and columns.
DRIVES = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SPECIAL = (
    *(
        "",
        " ",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "\x1b[31m",
        "\x1b]0;title\x07",
        "\u202e",
        "\u2028",
        "\x85",
    ),
    *(
        "\ufeff",
        "\ud800",
        "\U0001f600",
        "é",
        "[12]<|object_ref_end|>",
        "<|im_end|>",
        "{id}",
        "$\\x$",
    ),
    *('"', "'", "\\", "/", "..", "%s", ",", "NaN", "null", "-1", "A" * 2000),
)
# Text of JSON, in which half a surrogate pair can be escaped.
texts = st.lists(
    st.one_of(st.sampled_from(SPECIAL), st.text(max_size=8), st.just("The tower of Ada.")),
    max_size=4,
).map("".join)
clean_texts = texts.map(lambda text: re.sub("[\ud800-\udfff]", "", text))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
rows = st.fixed_dictionaries(
    {"id": texts, "text": texts},
    optional={
        "title": st.one_of(st.none(), texts),
        "metadata": st.one_of(st.none(), st.dictionaries(texts, values, max_size=3)),
        "source": values,
        "date": values,
    },
)
# Rows that are all right, however strange; those above are refused more often than not.
clean_values = st.one_of(st.none(), st.booleans(), st.integers(), clean_texts)
clean_rows = st.fixed_dictionaries(
    {"id": clean_texts.filter(bool), "text": clean_texts},
    optional={
        "title": st.one_of(st.none(), clean_texts),
        "source": clean_values,
        "date": clean_values,
        "tags": st.lists(clean_values, max_size=3),
    },
)
documents = st.one_of(
    st.lists(clean_rows, max_size=3, unique_by=lambda row: row["id"]), st.lists(rows, max_size=2)
)


def few(examples: int) -> settings:
    """So many examples, however long each takes, with fixtures that they share."""
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def call(program: ModuleType, *arguments: object) -> tuple[int, str, str]:
    """Runs a program; its exit code, what it printed, and its errors.

    Whatever else than `SystemExit` comes out of it would have been a traceback.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    argv = [program.__name__, *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            program.run()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    shown = []
    for stream in (out, err):
        stream.flush()
        shown.append(stream.buffer.getvalue().decode("utf-8"))
    return code, *shown


def check_refusal(code: int, err: str) -> None:
    """One line that says what is wrong, and exit code 2."""
    lines = [line for line in err.split("\n") if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and err.endswith(f"{lines[0]}\n"), err
    assert not DRIVES.search(lines[0]) and "Traceback" not in err
