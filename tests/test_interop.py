"""Other projects' programs against our server, each run as its users run it: their results equal what the library computes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from serving import Served, exact, serving

from twofold.compute.plan import parse
from twofold.compute.solve import solve
from twofold.run import Model, load, same
from twofold.tasks.procedural import Sums
from twofold.text.prompts import JUDGE
from twofold.types import Sampling

EXAMPLES = Path(__file__).parents[1] / "docs" / "interop"
PROBLEMS = [Sums().problem("test", i) for i in range(6)]


@pytest.fixture(scope="module")
def model() -> Model:
    return exact()


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    with serving(model) as running:
        yield running


@pytest.fixture(scope="module")
def batched() -> Iterator[Served]:
    """The server as users run it, not in exact mode."""
    with serving(load("tiny")) as running:
        yield running


def example(name: str) -> Any:
    """Import a file of ``docs/interop``."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def p_yes(model: Model, question: str, text: str) -> float:
    """Return P(Yes) of a solution as a conversation has it: with its stop token, in the tokenizer's own tokens."""
    chat = model.chat
    solved = [*chat.prompt(question), *chat.encode(text, tags=True), chat.stop[0]]
    ((logprob,),) = model.engine.session().logprobs([chat.ask(solved, JUDGE)], [[chat.yes_no_ids[0]]])
    return math.exp(logprob)


# its_hub --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def its_hub() -> Any:
    return pytest.importorskip("its_hub", reason="needs its_hub[lm], of the extra dev")


def test_its_hub_picks_by_our_verdicts(its_hub: Any, batched: Served, model: Model) -> None:
    """Best of n with the served model as language model and as outcome reward model."""
    lm = its_hub.OpenAICompatibleLanguageModel(batched.url, "none", "tiny", max_completion_tokens=48, temperature=1.0)
    algorithm = its_hub.BestOfN(example("its_hub_sums").PYes(batched.url, "tiny"))
    solved = 0
    for problem in PROBLEMS:
        found = algorithm.infer(lm, problem.question, budget=8, return_response_only=False)
        texts = [r["content"] for r in found.responses]
        assert len(texts) == 8
        if len(set(texts)) > 1:  # its_hub does not score equal texts
            assert found.scores == pytest.approx([p_yes(model, problem.question, t) for t in texts], abs=1e-5)
            assert found.selected_index == found.scores.index(max(found.scores))
        solved += Sums().grade(problem, found.the_one["content"])[1].label == "correct"
    assert solved >= 1  # of six; the mean is five


def test_its_hub_votes(its_hub: Any, batched: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The example as documented, which includes self-consistency."""
    solved = example("its_hub_sums").main(batched.url, "tiny", problems=2, budget=8)
    lines = [f"{name}: {n} of 2 problems with 8 samples each" for name, n in solved.items()]
    assert [line for line in capsys.readouterr().out.splitlines() if "problems with" in line] == lines
    assert set(solved) == {"best of n", "self-consistency"} and set(solved.values()) <= {0, 1, 2}


def test_its_hubs_scores_of_one_conversation(its_hub: Any, batched: Served, model: Model) -> None:
    from its_hub.api import ChatMessage

    problem = PROBLEMS[0]
    said = [ChatMessage("user", problem.question), ChatMessage("assistant", rf"\boxed{{{problem.answer}}}")]
    score = example("its_hub_sums").PYes(batched.url, "tiny").score(said)
    assert score == pytest.approx(p_yes(model, problem.question, rf"\boxed{{{problem.answer}}}"), abs=1e-5)


# Inspect --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def inspected(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs the example task with a model and options of Inspect's ``GenerateConfig``, and returns its log."""
    inspect_ai = pytest.importorskip("inspect_ai", reason="needs the extra interop")
    monkeypatch.setenv("TWOFOLD_BASE_URL", served.url)
    monkeypatch.setenv("TWOFOLD_API_KEY", "none")
    monkeypatch.chdir(tmp_path)

    def run(name: str, **options: Any) -> Any:
        task = example("inspect_sums").sums(len(PROBLEMS))
        model = f"openai-api/twofold/{name}"
        (log,) = inspect_ai.eval(task, model=model, log_dir=str(tmp_path), display="none", **options)
        assert log.status == "success", log.error
        return log

    return run


@pytest.mark.slow
def test_inspect_evaluates_a_plan(inspected: Any, model: Model) -> None:
    log = inspected("tiny:weighted-8", max_tokens=48, seed=3)
    plan = replace(parse("weighted-8"), max_tokens=48, seed=3)
    want = [solve(model.engine.session(), model.chat, [p.question], plan, same)[0] for p in PROBLEMS]
    said = {s.id: s.output.completion for s in log.samples}
    assert [said[p.id] for p in PROBLEMS] == [w.text for w in want]
    right = [Sums().grade(p, w.text)[1].label == "correct" for p, w in zip(PROBLEMS, want, strict=True)]
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(sum(right) / len(right))
    spent = sum(s.output.usage.output_tokens for s in log.samples)
    assert spent == sum(w.cost.generated + w.cost.verified for w in want)


@pytest.mark.slow
def test_inspect_reads_logprobs(inspected: Any) -> None:
    log = inspected("tiny", max_tokens=48, temperature=0, logprobs=True, top_logprobs=2)
    for sample in log.samples:
        content = sample.output.choices[0].logprobs.content
        assert all(len(entry.top_logprobs) == 2 for entry in content)
        assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in content)  # sampling was greedy


# lm-eval --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated() -> Any:
    """A function that runs one of the example tasks and returns (its results, its samples by question)."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra interop")
    from lm_eval.tasks import TaskManager

    def run(kind: str, task: str, **options: Any) -> Any:
        manager = TaskManager(include_path=str(EXAMPLES / "lm_eval"), include_defaults=False)
        found = lm_eval.simple_evaluate(
            kind,
            model_args=options,
            tasks=[task],
            task_manager=manager,
            apply_chat_template=True,
            limit=len(PROBLEMS),
            bootstrap_iters=0,
        )
        return found["results"][task], {s["doc"]["question"]: s for s in found["samples"][task]}

    return run


@pytest.mark.slow
def test_lm_eval_generates(evaluated: Any, served: Served, model: Model) -> None:
    results, samples = evaluated(
        "local-chat-completions",
        "twofold_sums",
        model="tiny",
        base_url=f"{served.url}/chat/completions",
        num_concurrent=4,
    )
    sampling = Sampling(temperature=0, max_tokens=48, stop=model.chat.stop)
    done = model.engine.session().generate([model.chat.prompt(p.question) for p in PROBLEMS], sampling)
    texts = [model.chat.decode(c.tokens) for (c,) in done]
    assert [samples[p.question]["resps"][0][0] for p in PROBLEMS] == texts
    right = [Sums().grade(p, t)[1].label == "correct" for p, t in zip(PROBLEMS, texts, strict=True)]
    assert results["acc,none"] == pytest.approx(sum(right) / len(right))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_concurrent": 4, "batch_size": 3}], ids=["one by one", "batches"])
def test_lm_eval_scores_choices(evaluated: Any, served: Served, model: Model, options: Any) -> None:
    """lm-eval reads sums of log-probs, and whether each token was the likeliest."""
    results, samples = evaluated(
        "local-completions",
        "twofold_sums_choice",
        model="tiny",
        base_url=f"{served.url}/completions",
        tokenizer=str(files("twofold") / "assets" / "tiny"),
        **options,
    )
    right = 0
    for question, sample in samples.items():
        choices = [model.chat.encode(c, tags=True) for c in sample["doc"]["choices"]]
        scored = model.engine.session().scored([model.chat.prompt(question)] * 3, choices, 1.0, 1)
        want = [sum(logprobs) for logprobs, _ in scored]
        greedy = [
            all(t in top for t, top in zip(c, tops, strict=True)) for c, (_, tops) in zip(choices, scored, strict=True)
        ]
        found = [r[0] for r in sample["resps"]]
        assert [float(x) for x, _ in found] == pytest.approx(want, abs=1e-4)
        assert [str(g) == "True" for _, g in found] == greedy
        right += want.index(max(want)) == sample["doc"]["label"]
    assert len(samples) == len(PROBLEMS)
    assert results["acc,none"] == pytest.approx(right / len(samples))
