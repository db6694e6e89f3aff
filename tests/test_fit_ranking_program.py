"""`python -m msa_jax.fit_ranking`: what it writes, and errors in one line."""

import json

import pytest

from msa_jax import fit_ranking as program
from msa_jax.engine.fitting import fit_fusion
from msa_jax.engine.fusion import load_fusion
from tests.engine.test_fitting import made


def lines_of(lists, system="msa + words + look"):
    return [
        {
            **{"set": "s", "memory_tokens": 1000, "system": system, "question": "q"},
            **{"features": one.features.tolist(), "logits": one.logits.tolist()},
            **{"right": one.right.tolist(), "positives": one.positives},
        }
        for one in lists
    ]


@pytest.fixture
def run(run_program, tmp_path):
    """Runs the program on the lines of two workdirs; returns exit code, output, errors."""

    def run(*workdirs, flags=()):
        folders = []
        for number, lines in enumerate(workdirs):
            folders.append(tmp_path / f"lists{number}")
            folders[-1].mkdir(exist_ok=True)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folders[-1] / "predictions.jsonl").write_text(text, encoding="utf-8")
        (tmp_path / "model").mkdir(exist_ok=True)
        results = ",".join(map(str, folders))
        return run_program(program, f"--results={results}", f"--to={tmp_path / 'model'}", *flags)

    return run


def test_it_fits_all_lists_of_the_system(run, tmp_path):
    lists = made(60)
    other = lines_of(made(5, seed=9), system="msa + words")
    code, out, err = run([*lines_of(lists[:30]), *other], lines_of(lists[30:]))
    assert code == 0, err
    assert out == f"{tmp_path / 'model' / 'ranking.json'} written, fitted on 60 lists.\n"
    fitted = fit_fusion([*lists])
    # Sets and sizes of the two workdirs have the same names, and so count as one group.
    assert load_fusion(tmp_path / "model") == fitted


def test_a_ranking_that_is_there_is_replaced_only_if_told(run):
    lists = lines_of(made(30))
    assert run(lists)[0] == 0
    code, _, err = run(lists)
    assert code == 2 and "ranking.json" in err and "--overwrite" in err
    assert run(lists, flags=["--overwrite"])[0] == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no lists of 'msa + words + look'"),
        (lines_of(made(3)), "too few to fit"),
        ([{"system": "msa + words + look"}], "line 1: this is not what"),
        ([3], "line 1: this is not what"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence(run, lines, message):
    code, out, err = run(lines)
    assert code == 2 and not out
    assert message in err and len(err.strip().splitlines()) == 1
