"""The commands that README.md and docs/ show, and which of them no test runs, and why."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_SHELL = r"`((?:python3?|make|pip|pytest|tensorboard) [^`]+)`"

# Pages of which a test runs every command that `why_not_run` gives no reason for.
RUN_BY = {
    "README.md": "tests/test_quick_start.py",
    "docs/adapters.md": "tests/test_pretrained.py",
    "docs/banks.md": "tests/test_banks_page.py",
    "docs/data.md": "tests/test_data_convert_program.py",
    "docs/demo.md": "tests/test_quick_start.py",
    "docs/evaluation.md": "tests/test_quick_start.py",
    "docs/performance.md": "tests/test_quick_start.py",
    "docs/training.md": "tests/test_quick_start.py",
}

# How a command begins that no test runs as it stands: why, and what runs instead.
_NOT_RUN = {
    "python3 -m venv": "makes an environment, which tests have",
    "pip install": "downloads packages",
    "make ": "makes environments; Makefile calls what tests/test_quick_start.py, "
    "tests/test_living_memory.py and test_docs.py run",
    "tensorboard ": "serves until it is stopped",
    "python -m msa_jax.train --config=configs/100m.py": "downloads a backbone and needs a GPU; "
    "tests/test_configs.py takes a step of it, shrunk",
    "python -m msa_jax.train --config=configs/look.py": "downloads a backbone and needs a GPU; "
    "tests/test_configs.py takes a step of it, shrunk",
    "python -m msa_jax.train --config=configs/qwen3_4b.py": "needs weights of 8 GB and 8 chips; "
    "tests/test_configs.py takes a step of it, shrunk",
    "python -m msa_jax.train --config=my_config.py": "the reader writes the configuration; "
    "tests/training trains what it names",
    "python -m msa_jax.evaluate --config=configs/eval/real_text.py": "needs 100M tokens of text; "
    "tests/test_evaluate_program.py runs such a suite, shrunk",
    "python -m msa_jax.write_questions": "downloads a backbone and needs a GPU; "
    "tests/test_write_questions_program.py runs it with a small model",
    "python -m msa_jax.compose_questions": "needs questions that were written; "
    "tests/test_compose_questions_program.py runs it",
    "python -m msa_jax.convert --from=DIR": "placeholders; tests/test_convert_program.py runs it",
    "python -m benchmarks.engine_bench": "needs a GPU; tests/benchmarks runs it, shrunk",
    "python -m benchmarks.gradients": "takes minutes; tests/benchmarks runs it, shrunk",
    "python -m benchmarks.quantized_recall": "needs a trained run; tests/benchmarks has its own",
    "python -m benchmarks.ranking_rules": "needs a trained run; tests/benchmarks has its own",
    "python -m benchmarks.routing_bench": "takes minutes; tests/benchmarks runs it, shrunk",
    "python -m benchmarks.training_cost": "takes minutes; tests/benchmarks runs it, shrunk",
    "python -m tests.golden_parity": "takes a minute; tests/test_golden_parity.py calls it",
}


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every block of code; one without a language is for a shell."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    """The commands of a page, those within a sentence too, unless they only name a program."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for language, code in blocks(text) if not language for line in code.splitlines()]
    lines += re.findall(_SHELL, prose(text))
    found = [line.strip() for line in lines if line.strip()]
    return [line for line in found if not re.fullmatch(r"python -m( [\w.]+)?", line)]


def why_not_run(command: str) -> str | None:
    """Why no test runs a command as it stands; None where one must."""
    reasons = [reason for start, reason in _NOT_RUN.items() if command.startswith(start)]
    return reasons[0] if reasons else None


def runnable(page: Path) -> list[str]:
    """The commands of a page that a test must run."""
    return [line for line in commands(page) if why_not_run(line) is None]


def unused_reasons() -> list[str]:
    """Beginnings of commands that no page shows."""
    shown = [line for page in PAGES for line in commands(page)]
    return [start for start in _NOT_RUN if not any(line.startswith(start) for line in shown)]
