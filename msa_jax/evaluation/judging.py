"""Grades of a suite's answers, from what was kept of them: the judge may come long after."""

from __future__ import annotations

from collections.abc import Mapping

from tqdm import tqdm

from msa_jax.evaluation.judge import Answer, JudgeConfig, JudgeError, judge
from msa_jax.evaluation.memories import Memories
from msa_jax.evaluation.results import Results

GRADE = "judge"


def grade_answers(config: JudgeConfig, sets: Mapping[str, Memories], results: Results) -> None:
    """Has all answers graded that are not yet, and adds the grades to the results.

    Only questions with accepted answers are graded, and the mean is over grades that were given.

    Args:
        config: who grades.
        sets: memories by the name of the set.
        results: of the suite.

    Raises:
        JudgeError: if the judge does not grade; what it graded before is kept.
    """
    for (set_name, memory_tokens, system), answers in results.answers().items():
        known = {one.id: one for one in sets[set_name].questions} if set_name in sets else {}
        asked = [known[x] for x in answers if x in known and known[x].answers]
        if not asked or results.value(set_name, memory_tokens, system, GRADE):
            continue
        to_grade = [Answer(one.question, one.answers, answers[one.id]) for one in asked]
        title = f"{GRADE} {system} {set_name} {memory_tokens:,}"
        with tqdm(desc=title, total=len(asked), unit="answer") as bar:
            grades = judge(config, to_grade, bar.update)
        given = [float(grade) for grade in grades if grade is not None]
        if not given:
            raise JudgeError(
                f"the judge replied to no answer of {system} on {set_name} with a grade; name "
                "another judge.model."
            )
        kept = [
            {"question": one.id, GRADE: grade} for one, grade in zip(asked, grades, strict=True)
        ]
        results.add(set_name, memory_tokens, system, {GRADE: given}, kept, by=GRADE)
