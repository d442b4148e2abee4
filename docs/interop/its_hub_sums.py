"""its_hub's best-of-n and self-consistency over a model that twofold serves, which is its own reward model.

twofold serve tiny
python docs/interop/its_hub_sums.py http://127.0.0.1:8000/v1 tiny
"""

from __future__ import annotations

import asyncio
import math
import sys
from typing import Any

from its_hub import AbstractOutcomeRewardModel, BestOfN, OpenAICompatibleLanguageModel, SelfConsistency
from openai import AsyncOpenAI

from twofold.tasks.procedural import Sums
from twofold.text.extract import final_answer
from twofold.text.prompts import JUDGE


class PYes(AbstractOutcomeRewardModel):
    """A reward model that asks the served model whether the solution that ends a conversation is correct, and returns P(Yes).

    A Yes that is not among the 20 likeliest answers counts 0.
    """

    def __init__(self, endpoint: str, model: str, api_key: str = "none") -> None:
        self.endpoint, self.model, self.api_key = endpoint, model, api_key

    def score(self, messages: Any, **_: Any) -> Any:
        return asyncio.run(self.ascore(messages))

    async def ascore(self, messages: Any, orchestrator: Any = None, **_: Any) -> Any:
        several = isinstance(messages[0], list)
        async with AsyncOpenAI(base_url=self.endpoint, api_key=self.api_key) as client:
            scores = await asyncio.gather(*(self._one(client, m) for m in (messages if several else [messages])))
        return scores if several else scores[0]

    async def _one(self, client: AsyncOpenAI, conversation: Any) -> float:
        messages = [*(m.to_dict() for m in conversation), {"role": "user", "content": JUDGE}]
        reply = await client.chat.completions.create(
            model=self.model, messages=messages, max_tokens=1, temperature=0, logprobs=True, top_logprobs=20
        )
        likeliest = reply.choices[0].logprobs.content[0].top_logprobs
        return sum(math.exp(t.logprob) for t in likeliest if t.token == "Yes")


def main(endpoint: str, model: str, problems: int = 20, budget: int = 8) -> dict[str, int]:
    """Print and return how many of ``problems`` each algorithm solves with ``budget`` samples per problem."""
    lm = OpenAICompatibleLanguageModel(endpoint, "none", model, max_completion_tokens=48)
    algorithms = {"best of n": BestOfN(PYes(endpoint, model)), "self-consistency": SelfConsistency(final_answer)}
    solved = dict.fromkeys(algorithms, 0)
    task = Sums()
    for name, algorithm in algorithms.items():
        for i in range(problems):
            problem = task.problem("test", i)
            reply = algorithm.infer(lm, problem.question, budget)
            solved[name] += task.grade(problem, reply["content"])[1].label == "correct"
        print(f"{name}: {solved[name]} of {problems} problems with {budget} samples each")
    return solved


if __name__ == "__main__":
    main(*sys.argv[1:3])
