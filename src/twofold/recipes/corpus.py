"""The corpus of the shipped base model: worked solutions, thoughts, critiques, and short questions.

Document ``i`` is a pure function of (seed, i): a conversation about one problem of the training split. There are five kinds:

* Solutions in the format of every task, one step per line. Some contain a wrong guess or a slip, and continue correctly from
  the wrong number.
* Thoughts between ``<think>`` tags: several attempts, each checked; every attempt after the first begins with "Wait".
* Critiques, which mark every step and the whole of a *quoted* solution with planted errors as CORRECT or INCORRECT. The
  quoted solution is not a target, so the model learns to spot errors and not to make them.
* Questions about one fact of a quoted solution: are the last two numbers the same, is there a slip. The answers are words
  other than Yes and No.
* Yes/No questions about letters and words, asked after a quoted solution with which they have nothing to do.

**No document says Yes or No about a solution**, and none asks the verdict question. The model knows the words, and that a
question which ends in "Answer Yes or No." is answered by one of them. What a verdict is, reinforcement learning has to teach.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from twofold.ranges import Share, Whole, checked
from twofold.tasks.procedural import Countdown, Letters, Sums
from twofold.tasks.worked import Attempt, attempt_countdown, attempt_letters, attempt_sums
from twofold.text.chat import Turn
from twofold.text.prompts import AGREE, CRITIQUE, ENDS, KIND, SPELLING, STEPS_RIGHT, VOWEL
from twofold.types import Problem

FACT = 10.0
"""Weight of the answer to a question about a fact. It is one token among hundreds, and the only one the document teaches."""


@checked
class Mix:
    """The shares of the kinds of documents, and of the errors in them. Each is a probability."""

    countdown: Share = 0.08
    letters: Share = 0.06
    choice: Share = 0.75
    think: Share = 0.10
    critique: Share = 0.20
    """This share and the next two are of the documents that are not thoughts. They quote a solution with planted errors, and
    only what follows it is a target: here a critique."""
    facts: Share = 0.30
    """A question about one fact of the quoted solution."""
    words: Share = 0.08
    """A Yes/No question that has nothing to do with the quoted solution."""
    late: Whole = 86_400
    """From this document on (step 1800 of 48 documents), ``words`` is twice as large, at the expense of solutions that are
    targets, and the Yes/No questions share their words with the verdict question: some ask for the spelling of a word."""
    wrong_guess: Share = 0.50
    """Probability that a solution which is a target begins with a wrong guess."""
    slip: Share = 0.02
    """Probability of a slip in each step of a solution which is a target."""
    planted_guess: Share = 0.50
    """The same for a quoted solution."""
    planted_slip: Share = 0.10
    """The same for a quoted solution."""


def critique(attempt: Attempt) -> str:
    """Return a verdict per step and one for the whole, in the tagged format that Tango's verifier uses."""
    mark = {True: "\\boxed{CORRECT}", False: "\\boxed{INCORRECT}"}
    steps = "\n".join(f"<step>{mark[ok]}</step>" for ok in attempt.right)
    whole = mark[attempt.correct and all(attempt.right)]
    return f"<step_verification>\n{steps}\n</step_verification>\n<final_verification>{whole}</final_verification>"


def fact(rng: random.Random, attempt: Attempt, goal: int | None) -> Turn:
    """Return a question about one thing that a judge would look at, with the true answer, which is never Yes or No."""
    if goal is not None and rng.random() < 0.75:
        return Turn(rng.choice(AGREE), "same" if attempt.reached == goal else "differ", FACT)
    steps = attempt.right if goal is None else attempt.right[:-1]
    return Turn(STEPS_RIGHT, "clean" if all(steps) else "slip", FACT)


KINDS = {  # of the words that Yes/No questions are about
    "a colour": ["red", "green", "blue", "grey", "pink"],
    "an animal": ["cat", "dog", "cow", "hen", "pig"],
    "a fruit": ["fig", "plum", "pear", "lime", "kiwi"],
}


WORDS = [*(word for of_kind in KINDS.values() for word in of_kind), "solution", "correct", "answer", "problem"]


def unrelated(rng: random.Random, late: bool) -> Turn:
    """Return a Yes/No question about a letter or a word, with the true answer; if ``late``, perhaps about its spelling."""
    yes = rng.random() < 0.5
    match rng.choice([0, 1, 2, 3, 3, 3]) if late else rng.randrange(3):
        case 0:
            question = VOWEL.format(rng.choice("aeiou" if yes else "bdfgklmnprst"))
        case 1:
            word = "".join(rng.choice("aeiou" if j % 2 else "bdfgklmnprst") for j in range(rng.randint(3, 5)))
            word = rng.choice(WORDS) if late and rng.random() < 0.5 else word
            question = ENDS.format(word, word[-1] if yes else rng.choice([c for c in "aeioudklnt" if c != word[-1]]))
        case 2:
            kind = rng.choice([*KINDS])
            of = kind if yes else rng.choice([k for k in KINDS if k != kind])
            form = KIND[rng.randrange(2) if late else 0]
            question = form.format(rng.choice(KINDS[kind]), of)
        case _:
            word = rng.choice(WORDS)
            question = SPELLING.format(word if yes else misspelt(rng, word))
    return Turn(question, "Yes" if yes else "No", FACT)


def misspelt(rng: random.Random, word: str) -> str:
    """Return a word with one of its letters replaced by another."""
    at = rng.randrange(len(word))
    return word[:at] + rng.choice([c for c in "aeioudklnt" if c != word[at]]) + word[at + 1 :]


def thought(rng: random.Random, attempt: Callable[[float], Attempt], goal: int) -> str:
    """Return up to five attempts between think tags, each checked against the goal. The last attempt's answer is the answer.

    ``attempt(p)`` makes an attempt that begins with a wrong guess with probability p.
    """
    episodes = []
    for n in range(5):
        tried = attempt(0.6 if n < 2 else 0.3)
        verdict = f"{goal} is right." if tried.reached == goal else f"{tried.reached} is not {goal}."
        episodes.append("\n".join([f"{'Wait. ' if n else ''}Try {tried.answer}.", *tried.lines[:-1], verdict]))
        if tried.reached == goal or rng.random() < 0.1:
            break
    return "<think>\n" + "\n\n".join(episodes) + f"\n</think>\n\\boxed{{{tried.answer}}}"


def document(seed: int, i: int, mix: Mix) -> list[Turn]:
    """Return the turns of document ``i``."""
    rng = random.Random(f"corpus/{seed}/{i}")
    kind, level = rng.random(), rng.choice([1, 2, 2, 2, 3, 3])
    goal = None
    problem: Problem
    attempt: Callable[[float, float], Attempt]
    if kind < mix.letters:
        problem = Letters(level + 1, seed).problem("train", i)
        attempt = lambda wrong, slip: attempt_letters(rng, problem, slip)  # noqa: E731
    elif kind < mix.letters + mix.countdown:
        problem = Countdown(max(2, level), seed).problem("train", i)
        goal = problem.meta["target"]
        attempt = lambda wrong, slip: attempt_countdown(rng, problem, wrong, slip)  # noqa: E731
    else:
        problem = Sums(level, mix.choice, rng.choice([3, 3, 4, 5]), seed=seed).problem("train", i)
        goal = problem.meta["result"] if len(problem.meta["starts"]) > 1 else None
        attempt = lambda wrong, slip: attempt_sums(rng, problem, wrong, slip)  # noqa: E731
    if goal is not None and rng.random() < mix.think:
        return [Turn(problem.question, thought(rng, lambda wrong: attempt(wrong, mix.slip), goal))]
    use = rng.random() - mix.critique
    late = i >= mix.late
    if use < mix.facts + mix.words * (1 + late):
        quoted = attempt(mix.planted_guess, mix.planted_slip)
        if use < 0:
            follow = Turn(CRITIQUE, critique(quoted))
        elif use < mix.facts:
            follow = fact(rng, quoted, goal)
        else:
            follow = unrelated(rng, late)
        return [Turn(problem.question, quoted.text(), learn=0.0), follow]
    return [Turn(problem.question, attempt(mix.wrong_guess, mix.slip).text())]
