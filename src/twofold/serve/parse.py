"""Turn a request into the job of its thread. What cannot be served is refused here, before it costs anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twofold.compute.judge import Judging
from twofold.compute.plan import Plan, parse, settings
from twofold.compute.room import after
from twofold.compute.rules import RULES
from twofold.serve import jobs
from twofold.serve.detokenize import StopStrings
from twofold.serve.jobs import Job, Same
from twofold.serve.scheduler import RequestState
from twofold.serve.schema import MAX_SAMPLES, MAX_TOKENS, ChatRequest, Refused, Request, TextRequest
from twofold.text.chat import Chat
from twofold.types import COLDEST, Sampling

PLAN_LIMITS = {
    "rounds": 8, "times": 8, "windows": 8, "simulations": 64, "width": 16, "children": 16, "depth": 64, "judge.tokens": 4096,
    "judge.votes": 16, "make.votes": 16, "tournament.budget": 16, "top": 64,
}  # fmt: skip
"""The largest values of the options that multiply a plan's cost. Every other number is limited by ``MAX_TOKENS``."""
MAX_TOP_LOGPROBS = 131_072
"""The most likeliest tokens in one reply: as many as ``MAX_SAMPLES`` of 2,048 tokens have log-probs."""


def chat_job(body: ChatRequest, name: str, chat: Chat, context: int, same: Same) -> tuple[Job, Plan | None]:
    """Return what to do for a chat request, and its plan if it has one. Raises Refused."""
    messages = [("system" if m.role == "developer" else m.role, m.text) for m in body.messages]
    begun = messages.pop()[1] if _continues(body) else None
    if not messages or messages[-1][0] != "user":
        where = "last message" if begun is None else "message before the one to continue"
        hint = ", or use continue_final_message" if begun is None else ""
        raise Refused(400, f"the {where} must have the role user{hint}", param="messages")
    question = messages.pop()[1]
    try:
        chat = chat.within(messages)
        prompt = [*chat.prompt(question), *(chat.reply(begun) if begun is not None else [])]
    except ValueError as error:
        raise Refused(400, str(error), param="messages") from error
    plan = _plan(body, name)
    if plan is None:
        if body.top and not body.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        sampling = _sampling(body, _stop(body, chat), [prompt], context)
        run = partial(jobs.sample, chat=chat, prompts=[prompt], sampling=sampling, top=body.top)
        return Job(run, len(prompt)), None
    if body.n not in (None, 1):
        raise Refused(400, "a plan returns one choice and sets its own number of samples: leave n out", param="n")
    if body.logprobs or body.top:
        raise Refused(400, "a plan's choice has no logprobs: leave them out, or the plan", param="logprobs")
    for name in ("continue_final_message", "stop_token_ids", "ignore_eos"):
        if getattr(body, name):
            message = f"a plan begins and ends its solutions as the chat template does: leave {name} out, or the plan"
            raise Refused(400, message, param=name)
    try:
        asking = plan.judge.asking(chat)
    except ValueError as error:
        raise Refused(400, str(error), param="plan") from error
    asked = max(after(asking, way) for way in (Judging(), plan.judge))  # some strategies ask for P(Yes) besides
    plan = _adjusted(body, plan, len(prompt), context - asked)
    return Job(partial(jobs.run_plan, chat=chat, question=question, plan=plan, same=same), len(prompt)), plan


def text_job(body: TextRequest, name: str, chat: Chat, context: int) -> Job:
    """Return what to do for a text request. Raises Refused."""
    if _plan(body, name) is not None:
        raise Refused(400, "a plan needs a question: use /v1/chat/completions", param="plan")
    prompts = _prompts(body, chat)
    tokens = sum(map(len, prompts))
    if body.echo and body.stream:
        raise Refused(400, "echo and stream cannot be used together", param="echo")
    if body.limit == 0:
        if not body.echo:
            raise Refused(400, "max_tokens 0 scores a prompt and needs echo: true", param="max_tokens")
        _check_drawing(body)
        _check_length(max(map(len, prompts)), 0, context)
        _check_top(body, tokens)
        temperature = body.temperature or 1.0
        return Job(partial(jobs.score, chat=chat, prompts=prompts, temperature=temperature, top=body.top), tokens)
    sampling, echo = _sampling(body, _stop(body, chat), prompts, context), bool(body.echo)
    run = partial(jobs.sample, chat=chat, prompts=prompts, sampling=sampling, echo=echo, top=body.top)
    return Job(run, tokens)


def request_state(body: Request, chat: Chat, context: int, seconds: float) -> RequestState:
    """Return what the request's calls have in common; its deadline is at most ``seconds`` from now."""
    deadline = time.monotonic() + min(seconds, body.timeout or seconds)
    continues = isinstance(body, TextRequest) or _continues(body)
    decode = chat.codec.continued if continues else chat.decode
    return RequestState(StopStrings(body.stops, decode), chat.yes_no_ids[0], context, deadline)


def check_logprobs(body: Request, raw: bool) -> None:
    """Raise Refused if the request asks for the log-probs of a distribution that the engine, a ``raw`` one, does not report."""
    asked = body.logprobs if isinstance(body, ChatRequest) else isinstance(body, TextRequest) and body.logprobs == 0
    if asked and raw and body.temperature != 0 and (body.temperature not in (None, 1) or _filters(body)):
        message = "the upstream server reports logprobs only at temperature 1 without top_p, top_k and min_p, or at 0"
        raise Refused(400, message, param="logprobs")


def _continues(body: Request) -> bool:
    """Return whether the last message is to be continued. Raises Refused if it cannot be."""
    if not isinstance(body, ChatRequest):
        return False
    if body.add_generation_prompt is not None and body.add_generation_prompt == bool(body.continue_final_message):
        message = "of add_generation_prompt and continue_final_message, one must be true and the other false"
        raise Refused(400, message, param="add_generation_prompt")
    if body.continue_final_message and body.messages[-1].role != "assistant":
        raise Refused(400, "continue_final_message needs a last message of the role assistant", param="messages")
    return bool(body.continue_final_message)


def _stop(body: Request, chat: Chat) -> list[int]:
    """Return the tokens that end a completion."""
    return [*(() if body.ignore_eos else chat.stop), *(body.stop_token_ids or ())]


def _filters(body: Request) -> list[str]:
    """Return the names of the options that leave tokens out of the distribution."""
    everything = {"top_p": 1, "top_k": 0, "min_p": 0}
    return [name for name, value in body.drawing.items() if name in everything and value != everything[name]]


def _prompts(body: TextRequest, chat: Chat) -> list[list[int]]:
    """Return the prompts as token ids. In a text, the literal of a control token is text."""
    prompts: list[list[int]] = []
    for given in _separate(body.prompt):
        prompts.append(chat.text(given) if isinstance(given, str) else given)
    size = len(chat.tokenizer)
    if not all(prompts):
        raise Refused(400, "a prompt needs at least one token", param="prompt")
    if (worst := max(t for p in prompts for t in p)) >= size:
        raise Refused(400, f"token {worst} is not in the vocabulary of {size} tokens", param="prompt")
    return prompts


def _separate(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    """Return the prompts that a request's ``prompt`` holds: one or several, texts or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [t for t in prompt if isinstance(t, int)]
    return [ids] if ids else [p for p in prompt if not isinstance(p, int)]


def _plan(body: Request, name: str) -> Plan | None:
    """Return the plan that the request asks for in its body or after its model's name."""
    named = plan_named(body.model, name)
    if named and body.plan is not None:
        raise Refused(400, "there are two plans, one in the model's name and one in the body", param="plan")
    if isinstance(body.plan, dict):
        options = {"rule": "weighted", "n": 16, **body.plan}
        rest = ",".join(f"{k}={_value(v)}" for k, v in options.items() if k not in ("rule", "n"))
        return read_plan(f"{options['rule']}-{options['n']}" + (f":{rest}" if rest else ""))
    return read_plan(body.plan) if body.plan else named


def plan_named(model: str, name: str) -> Plan | None:
    """Return the plan in a model's name, as in ``tiny:weighted-16``. Raises Refused if the model is not ``name``."""
    base, _, alias = model.partition(":") if model != name else (name, "", "")
    if base != name:
        message = f"there is no model {model!r} here, only {name!r} and {name + ':PLAN'!r}"
        raise Refused(404, message[:400], "model_not_found", "model")
    return read_plan(alias) if alias else None


def _value(value: Any) -> str:
    """Return a plan option's value as its short form writes it."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def read_plan(spec: str) -> Plan:
    """Return the plan of a short form, which ``compute.plan.parse`` describes. Raises Refused."""
    try:
        plan = parse(spec)
    except (ValueError, OverflowError) as error:
        raise Refused(400, str(error)[:400], "invalid_plan", "plan") from error
    if plan.rule not in RULES:
        raise Refused(
            400, "a rule of your own is a file, and a server runs no file that a request names", "invalid_plan", "plan"
        )
    if plan.n > MAX_SAMPLES:
        raise Refused(400, f"a plan may have at most {MAX_SAMPLES} samples here, not {plan.n}", "invalid_plan", "plan")
    for place, value, _ in settings(replace(plan, seed=0)):
        most = PLAN_LIMITS.get(place, PLAN_LIMITS.get(place.rpartition(".")[2], MAX_TOKENS))
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not abs(number) <= most:  # this refuses NaN, too
                raise Refused(400, f"{place} may be at most {most} here, not {number}", "invalid_plan", "plan")
    return plan


def _adjusted(body: Request, plan: Plan, prompt: int, context: int) -> Plan:
    """Return the plan with the request's own sampling options, and no more tokens than there is room for."""
    given: dict[str, Any] = {"max_tokens": body.limit, "seed": body.seed}
    _check_drawing(body)
    plan = replace(plan, **body.drawing, **{k: v for k, v in given.items() if v is not None})
    limited = body.limit is not None or plan.max_tokens != Plan().max_tokens
    if plan.max_tokens < 1:
        raise Refused(400, "a plan needs max_tokens of at least 1", param="max_tokens")
    solutions = 2 if plan.judge.name == "pairs" else 1  # a comparison quotes another one
    _check_length(prompt, solutions * (plan.max_tokens if limited else 1), context)
    return replace(plan, max_tokens=min(plan.max_tokens, (context - prompt) // solutions))


def _sampling(body: Request, stop: Sequence[int], prompts: Sequence[Sequence[int]], context: int) -> Sampling:
    longest = max(map(len, prompts))
    _check_drawing(body)
    _check_length(longest, 1 if body.limit is None else body.limit, context)
    n = body.n or 1
    if n * len(prompts) > MAX_SAMPLES:
        message = f"{len(prompts)} prompts x n = {n} is more than {MAX_SAMPLES} completions in one request"
        raise Refused(400, message, param="n")
    if body.limit == 0:
        raise Refused(400, "max_tokens must be at least 1", param="max_tokens")
    if body.progress is not None:
        raise Refused(400, "progress needs a plan", param="progress")
    sampling = Sampling(
        n=n,
        max_tokens=min(context - longest, MAX_TOKENS) if body.limit is None else body.limit,
        stop=tuple(stop),
        seed=time.time_ns() if body.seed is None else body.seed,
        **body.drawing,
    )
    _check_top(body, n * sum(len(p) + sampling.max_tokens for p in prompts))
    return sampling


def _check_drawing(body: Request) -> None:
    """Raise Refused for what the fields' own bounds allow and ``Sampling`` does not."""
    if 0 < (body.temperature or 0.0) < COLDEST:
        raise Refused(400, f"temperature must be 0 or at least {COLDEST}", param="temperature")


def _check_top(body: Request, tokens: int) -> None:
    if body.top * tokens > MAX_TOP_LOGPROBS:
        message = f"{body.top} likeliest of up to {tokens} tokens are more than {MAX_TOP_LOGPROBS}: lower max_tokens"
        raise Refused(400, message, param="max_tokens")
    if body.top and (filters := _filters(body)):
        message = f"the likeliest tokens are those of the whole distribution: leave {filters[0]} out"
        raise Refused(400, message, param=filters[0])


def _check_length(prompt: int, tokens: int, context: int) -> None:
    if prompt + tokens > context:
        message = f"prompt and completion may have {context} tokens together, not {prompt} + {tokens}"
        raise Refused(400, message, "context_length_exceeded", "max_tokens")
