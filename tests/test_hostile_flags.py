"""Hostile numbers for every flag of every program: one line that names the flag, exit code 2."""

import functools
import math
import runpy

import pytest
from ml_collections import ConfigDict

from msa_jax import ask, encode, mine, train, write_questions
from msa_jax.config import ConfigError
from msa_jax.evaluation.ruler.run import ruler_config
from msa_jax.evaluation.suite_config import suite_config
from msa_jax.flag_types import _NumberParser
from tests.doc_commands import ROOT

HOSTILE = ("nan", "-inf", "inf", "1e400", "-1e40", "true", "None", "", "0x10", "1" + "0" * 5000)
PROGRAMS = (ask, encode, mine, write_questions)
NUMBERS = [
    (program, name)
    for program in PROGRAMS
    for name in program.FLAGS
    if isinstance(program.FLAGS[name].parser, _NumberParser)
]


def test_all_number_flags_are_checked():
    """No program defines one by absl itself, which takes NaN for a number."""
    for file in (ROOT / "msa_jax").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "DEFINE_integer" not in text and "DEFINE_float" not in text, file
    assert len(NUMBERS) > 20


@pytest.mark.parametrize(("program", "name"), NUMBERS)
def test_a_flag_that_is_no_number_is_refused(run_program, program, name):
    for value in HOSTILE:
        code, out, err = run_program(program, f"--{name}={value}")
        assert (code, out) == (2, "") and f"--{name}=" in err and err.count("\n") == 1


CONFIGS = {
    "tiny.py": (lambda values: train.run_of(ConfigDict(values)), ("demo", "evaluation")),
    "eval/real_text.py": (suite_config, ()),
    "eval/ruler.py": (lambda x: ruler_config({k: x[k] for k in x if k != "benchmark"}), ()),
}


def numbers_of(values, path=()):
    """Paths of all fields that hold a number."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from numbers_of(value, (*path, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, name)


@pytest.mark.parametrize("file", CONFIGS)
def test_a_field_of_a_file_that_is_no_number_is_refused(file):
    build, other = CONFIGS[file]
    config = runpy.run_path(str(ROOT / "configs" / file))["get_config"]()
    for *sections, name in numbers_of(config.to_dict()):
        if not sections or sections[0] not in other:
            for value in (math.nan, -math.inf, 1e40, -(10**40), True, "1"):
                values = config.to_dict()
                functools.reduce(dict.__getitem__, sections, values)[name] = value
                with pytest.raises(ConfigError, match=rf"{name} must be .*, not"):
                    build(values)
