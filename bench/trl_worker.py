"""A TRL trainer that takes one step at a time on request. ``against_trl.py`` runs it in TRL's own environment.

    python trl_worker.py '{"algorithm": "grpo", "model": DIR, ...}'

Stdin has lines: "go" for a step, or the path of a stored batch whose loss and gradient norm are wanted. Each is answered by one
JSON line on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
from common import timed
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

asked: dict[str, Any] = json.loads(sys.argv[1])
say = os.fdopen(os.dup(1), "w")  # the libraries print to stdout, which is now stderr
os.dup2(2, 1)
spent: dict[str, float] = {}
began = 0.0
tokens = 0


def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
    global tokens
    tokens = sum(map(len, completion_ids))
    return [float(i % 2) for i in range(len(completions))]


class OneByOne(TrainerCallback):
    """Wait for "go" before each step and report after it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        global began
        line = sys.stdin.readline().strip()
        while line and line != "go":
            print(json.dumps(stored(line)), file=say, flush=True)
            line = sys.stdin.readline().strip()
        if not line:
            os._exit(0)
        spent.clear()
        began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        report = {"seconds": time.perf_counter() - began, "tokens": tokens, **spent}
        print(json.dumps(report), file=say, flush=True)


def stored(path: str) -> dict[str, float]:
    """The loss and the gradient norm of a stored batch, which holds the tensors that TRL's ``compute_loss`` reads."""
    with open(path) as file:
        batch = {k: torch.tensor(v) for k, v in json.load(file).items()}
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    trainer.model.zero_grad()
    return {"loss": float(loss), "gradient": float(norm)}


settings: dict[str, Any] = {
    "output_dir": asked["out"], "use_cpu": not torch.cuda.is_available(), "bf16": asked["bf16"], "num_generations": asked["n"],
    "per_device_train_batch_size": asked["micro"], "gradient_accumulation_steps": asked["batch"] // asked["micro"],
    "max_completion_length": asked["max_tokens"], "temperature": 1.0, "top_k": 0, "beta": 0.0, "learning_rate": 1e-6,
    "lr_scheduler_type": "constant", "gradient_checkpointing": False, "max_steps": 10**6, "report_to": [],
    "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "shuffle_dataset": False,
}  # fmt: skip
settings["use_transformers_continuous_batching"] = asked["paged"]
if asked["algorithm"] == "grpo":
    settings |= {"scale_rewards": "none", "loss_type": "dapo"}
config, kind = (GRPOConfig, GRPOTrainer) if asked["algorithm"] == "grpo" else (RLOOConfig, RLOOTrainer)
trainer = kind(
    model=AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32),
    processing_class=AutoTokenizer.from_pretrained(asked["model"]),
    args=config(**settings),
    reward_funcs=reward,
    train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": q}] for q in asked["questions"]]}),
    callbacks=[OneByOne()],
)
timed(trainer, "_generate", spent, "generation")
timed(trainer, "_calculate_rewards", spent, "grading")
timed(trainer, "compute_loss", spent, "loss")
timed(trainer.accelerator, "backward", spent, "backward")
create = trainer.create_optimizer


def create_timed(*args: Any, **kwargs: Any) -> Any:
    made = create(*args, **kwargs)
    timed(trainer.optimizer, "step", spent, "optimizer")
    return made


trainer.create_optimizer = create_timed
trainer.train()
