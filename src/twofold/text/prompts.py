r"""Every text that twofold itself says to a model. What trains a question, asks it and reads its answer all use this file.

Templates fill in ``{steps}``, ``{problem}``, ``{solution}`` and ``{question}`` by plain replacement.
"""

from __future__ import annotations

JUDGE = "Is this solution correct? Answer Yes or No."
"""The standard verdict question: that of RL^V (arXiv:2505.04842, Fig. 3)."""

PAIR = "Compare solution A above with solution B:\n{solution}\nWhich is right? Answer A or B."
"""Asks which of two solutions is right (V1, arXiv:2603.04304, whose own words are not public): the one above, or the quoted one."""

CONFIDENCE = "How sure are you, 0 to 9?"
"""Asks for a confidence in one digit (RLCR). It is no longer than ``JUDGE``, so that a text with room for one has room for both."""

CRITIQUE = "Check each step, then the whole solution."
"""Asks the shipped model for a written verdict on each step and on the whole."""

VERIFY = r"""Check the solution above, which has {steps} steps. Write one verification for each step, in order, {steps} in all: \
think the step through yourself instead of repeating it, and end with \boxed{CORRECT} or \boxed{INCORRECT}. Then judge the \
whole solution with its answer. Write nothing outside of these tags. For a solution of two steps, the second of them wrong:
<step_verification>
<step>Three boxes of 4 hold 3*4=12. \boxed{CORRECT}</step>
<step>12 less 5 is 7, not 8. \boxed{INCORRECT}</step>
</step_verification>
<final_verification>\boxed{INCORRECT}</final_verification>"""
"""Asks Tango's verifier (arXiv:2505.15034) for a verdict on each of ``{steps}`` steps and on the whole."""

SOLVE = r"""Solve the problem step by step. Write nothing outside of these tags:
<think>
<step>one step of the reasoning</step>
<step>the next step</step>
</think>
<answer>\boxed{the final answer}</answer>
All reasoning belongs inside steps. The answer must be boxed."""
"""A system prompt that asks for steps between tags (Tango)."""

FIND_ERROR = r"""Here are a mathematical problem and a solution, cut into paragraphs that are counted from 0.

Problem:
{problem}

Solution:
{solution}

Check the solution paragraph by paragraph. If there is an error, find the paragraph in which the earliest error is, and give \
its index. If there is no error, give -1. Put the index alone into \boxed{}."""
"""Our words for the task that ProcessBench (arXiv:2412.06559) sets to a prompted model."""

ANSWER = "\\boxed{"
"""Forced where a model has to answer at once."""

RETRY = "Solve the problem again: {question}"
"""Asks for another attempt after the verdict No (self-correction)."""

AGGREGATE = """{problem}

Attempts at this problem follow. Some may be wrong. Read them, then solve the problem correctly.

{attempts}"""
ATTEMPT = "Attempt {}:\n{}"
"""Asks for one solution from several (RSA, AggLM): our words."""

WAIT = ("Wait",)
"""Makes a thought that has ended continue (budget forcing, s1, arXiv:2501.19393)."""

EXTRAPOLATION = ("Wait", "But wait", "Alternatively", "But hold on")
"""MRT's strings for the same (arXiv:2503.07572); its evaluation takes ``Forcing(waits=EXTRAPOLATION, times=8, each=2048)``."""

HURRY = "Time is up.\n\nI have to stop here and give the best answer that I have found so far."
"""Forced where MRT's meta-prover stops a thought before its end."""

THINK_END = "</think>"
CONCLUDE = "\n\n**The solution, step by step, and the answer:**\n\n1. **"
"""Forced after ``THINK_END``, so that an answer follows (MRT's meta-prover)."""

BACKTRACK = "Backtrack to line {}\n"
"""How a stream of attempts takes back its lines from line n on (MRT-B)."""

AGREE = (
    "Are the last two numbers the same, or do they differ?",
    "Compare the last two numbers.",
    "Look at the last line: same or differ?",
    "Same or differ?",
)
STEPS_RIGHT = "Is there a slip, or is every step clean?"
"""With ``AGREE``: questions about single facts in the corpus of the shipped model. Their answers are not Yes and No."""

VOWEL = "Is the letter {} a vowel? Answer Yes or No."
ENDS = "Does the word {} end in {}? Answer Yes or No."
KIND = ("Is {0} {1}? Answer Yes or No.", "Is this word {1}: {0}? Answer Yes or No.")
SPELLING = "Is this spelling correct: {}? Answer Yes or No."
"""With ``VOWEL`` and ``ENDS``: the corpus's Yes/No questions, none of which is about the solution of a problem."""


def plain(turns: list[dict[str, str]]) -> str:
    """Return a conversation as plain text, for a model without a chat template: the first question is the problem, later
    turns are paragraphs."""
    text, asked = "", False
    for turn in turns:
        if turn["role"] == "user":
            text += f"{turn['content']}\n" if asked else f"Problem:\n{turn['content']}\n\nSolution:\n"
            asked = True
        else:
            text += f"{turn['content']}\n\n"
    return text
