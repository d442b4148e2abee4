"""`sums` as a task of Inspect, graded as twofold grades. The model's name may carry a plan.

twofold serve tiny
TWOFOLD_BASE_URL=http://127.0.0.1:8000/v1 TWOFOLD_API_KEY=none \
    inspect eval docs/interop/inspect_sums.py --model openai-api/twofold/tiny:best-16 --max-tokens 48
"""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

from twofold.tasks.grading import grade
from twofold.tasks.procedural import Sums


@task
def sums(problems: int = 40) -> Task:
    made = [Sums().problem("test", i) for i in range(problems)]
    return Task([Sample(p.question, target=p.answer, id=p.id) for p in made], solver=generate(), scorer=graded())


@scorer(metrics=[accuracy(), stderr()])
def graded() -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        return Score(value=grade(target.text, text).label == "correct", answer=text)

    return score
