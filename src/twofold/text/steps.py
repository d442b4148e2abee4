r"""Steps and the verdicts on them, as Tango's generator and verifier write them (arXiv:2505.15034): read strictly, in linear time.

The generator writes its steps between tags, or, as the shipped model does, one on a line::

    <think>                                      47+38=85
    <step>47+38=85</step>                        85-9=76
    <step>85-9=76</step>                         \boxed{76}
    </think>
    <answer>\boxed{76}</answer>

The verifier writes a verdict for each step and one for the whole::

    <step_verification>
    <step>... \boxed{CORRECT}</step>
    <step>... \boxed{CORRECT}</step>
    </step_verification>
    <final_verification>\boxed{CORRECT}</final_verification>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twofold.text.extract import last_boxed, last_program
from twofold.text.segments import tokens_at

Cut = Literal["tags", "lines"]
"""How a solution is cut into steps: at its tags, or at the ends of its lines."""

_STEP = re.compile(r"<(/?)step>")
_VERDICT = re.compile(r"\\box(?:ed)?\{(CORRECT|INCORRECT)\}", re.IGNORECASE)


def spans(text: str, cut: Cut = "tags") -> list[tuple[int, int]]:
    r"""Return where each step begins and ends, in characters, including its tags or its line break.

    A step in tags goes from a ``<step>`` to the next ``</step>``, wherever that is; without one it is no step. By lines,
    every line that is not blank is a step, up to the answer: a line with a box or, without one, the last program.

    >>> spans("<step>1</step> so <step>2</step><step>3")
    [(0, 14), (18, 32)]
    >>> spans("1+1=2\n\n2+2=4\n\\boxed{4}", "lines")
    [(0, 6), (7, 13)]
    >>> spans("Add them.\n```python\ndef f(xs):\n    return sum(xs)\n```", "lines")
    [(0, 10)]
    """
    found: list[tuple[int, int]] = []
    if cut == "lines":
        start, end = 0, _answer_start(text)
        for line in re.findall(r"[^\n]*\n|[^\n]+", text):
            if start + len(line) > end:
                break
            if line.strip():
                found.append((start, start + len(line)))
            start += len(line)
        return found
    opened: int | None = None
    for tag in _STEP.finditer(text):
        if not tag[1]:
            opened = tag.start() if opened is None else opened
        elif opened is not None:
            found.append((opened, tag.end()))
            opened = None
    return found


def _answer_start(text: str) -> int:
    """Return where the answer begins: the first box, or else the last program, or else the end of the text."""
    box = text.find("\\boxed{")
    if box >= 0:
        return box
    program = last_program(text)
    return program[1] if program else len(text)


def span_ends(pieces: Sequence[str], cut: Cut = "tags") -> list[int]:
    r"""Return the token index after each step, that is, after the token with its last character. ``pieces[t]`` is token t's text.

    This is the paper's I(k), plus one; the released code pays one token later.

    >>> span_ends(["<think>", "<step>", "1+1", "=2", "</", "step>\n", "<step>", "4", "</step>", "."])
    [6, 9]
    """
    return tokens_at(pieces, (end for _, end in spans("".join(pieces), cut)))


def solution_text(steps: Sequence[str], answer: str, cut: Cut = "tags") -> str:
    r"""Return a solution of these steps as the generator should write it; an empty answer is left out.

    >>> solution_text(["1+1=2"], "2")
    '<think>\n<step>1+1=2</step>\n</think>\n<answer>\\boxed{2}</answer>'
    """
    if cut == "lines":
        return "\n".join([*steps, *([f"\\boxed{{{answer}}}"] if answer else [])])
    thought = "\n".join(["<think>", *(f"<step>{s}</step>" for s in steps), "</think>"])
    return thought + (f"\n<answer>\\boxed{{{answer}}}</answer>" if answer else "")


def solution_format(text: str, cut: Cut = "tags") -> float:
    r"""Return how well a solution keeps to its form, 0 to 1.

    In tags: 0 without an ``<answer>`` block; else 1, less 0.8 if it has neither a box nor a program, less 0.8 without steps or
    0.4 with fewer than three. By lines: 1 with such an answer and a step before it, else 0.

    >>> solution_format(solution_text(["1+1=2"], "2")), solution_format("Add them.\n```python\ndef f(xs): ...\n```", "lines")
    (0.6, 1.0)
    """
    steps = len(spans(text, cut))
    if cut == "lines":
        return float(steps > 0 and _answers(text))
    answer = _between(text, "answer")
    if answer is None:
        return 0.0
    score = 1 - 0.8 * (not _answers(answer)) - (0.8 if not steps else 0.4 if steps < 3 else 0.0)
    return max(0.0, score)


def _answers(text: str) -> bool:
    return last_boxed(text) is not None or last_program(text) is not None


@dataclass(frozen=True, slots=True)
class Critique:
    """What a verifier wrote.

    ``steps``: the verdict of each step block, None where it does not end with one. ``final``: the verdict on the whole, None
    if there is none. ``shape``: the text is the two blocks and nothing else. ``closed``: the final block ends with its
    verdict. ``loose``: there is text between the step blocks.
    """

    steps: list[bool | None]
    final: bool | None
    shape: bool
    closed: bool
    loose: bool

    def step_verdicts(self, count: int) -> list[bool] | None:
        """Return the verdicts on a solution of ``count`` steps if there is exactly one for each, else None."""
        known = [v for v in self.steps if v is not None]
        return known if len(known) == len(self.steps) == count > 0 else None

    def format(self, count: int, counted: bool = True) -> float:
        """Return the format score of the released code, 0 to 1, for a solution of ``count`` steps.

        0 unless the text is one step-verification block and one final-verification block; else 1, less 0.8 if the final
        block does not end with its verdict, 0.8 if there are no step blocks or (if ``counted``) not ``count`` that end
        with a verdict, 0.4 for text between step blocks.
        """
        if not self.shape:
            return 0.0
        miscounted = counted and sum(v is not None for v in self.steps) != count
        return max(0.0, 1 - 0.8 * (not self.closed) - 0.8 * (not self.steps or miscounted) - 0.4 * self.loose)


def read(text: str) -> Critique:
    r"""Read what a verifier wrote; verdicts on steps count in the first ``<step_verification>`` block only.

    ``\box{}`` counts as ``\boxed{}``, small letters as capitals; a full stop and spaces may follow a verdict.

    >>> c = read(r"<step_verification><step>\boxed{correct}. </step><step>\boxed{CORRECT} or not</step></step_verification>")
    >>> c.steps, c.final
    ([True, None], None)
    """
    body, final = _between(text, "step_verification"), _between(text, "final_verification")
    blocks = spans(body or "")
    outside = _without(body or "", blocks)
    judged = _VERDICT.findall(final or "")
    return Critique(
        steps=[_ending((body or "")[a:b].removesuffix("</step>")) for a, b in blocks],
        final=_right(judged[-1]) if judged else None,
        shape=_is_two_blocks(text),
        closed=_ending(final or "") is not None,
        loose=bool(outside.strip()),
    )


def _is_two_blocks(text: str) -> bool:
    tags = [f"<{slash}{name}_verification>" for name in ("step", "final") for slash in ("", "/")]
    if any(text.count(tag) != 1 for tag in tags):
        return False
    places = [text.index(tag) for tag in tags]
    between = text[places[1] + len(tags[1]) : places[2]]
    return places == sorted(places) and not (text[: places[0]] + between + text[places[3] + len(tags[3]) :]).strip()


def _between(text: str, name: str) -> str | None:
    """Return the content of the first block of this name; None if there is none or it is never closed."""
    _, opened, rest = text.partition(f"<{name}>")
    inside, closed, _ = rest.partition(f"</{name}>")
    return inside if opened and closed else None


def _without(text: str, blocks: Sequence[tuple[int, int]]) -> str:
    starts, ends = [a for a, _ in blocks], [b for _, b in blocks]
    return "".join(text[a:b] for a, b in zip([0, *ends], [*starts, len(text)], strict=True))


def _ending(block: str) -> bool | None:
    """Return the verdict that a block ends with, or None."""
    block = block.rstrip().removesuffix(".").rstrip()
    found = _VERDICT.search(block, max(0, len(block) - 20))
    return _right(found[1]) if found and found.end() == len(block) else None


def _right(word: str) -> bool:
    return word.upper() == "CORRECT"
