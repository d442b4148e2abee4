"""The names that other libraries have for the options of a training run."""

ALIASES = {
    "model_name_or_path": "model", "num_generations": "recipe.rollouts", "group_size": "recipe.rollouts",
    "rollout.n": "recipe.rollouts", "n_samples_per_prompt": "recipe.rollouts", "max_completion_length": "rollout.max_tokens",
    "learning_rate": "optim.lr", "lr_scheduler_type": "optim.schedule", "warmup_ratio": "optim.warmup", "max_grad_norm": "optim.clip",
    "epsilon": "loss.clip_low", "epsilon_high": "loss.clip_high", "loss_type": "loss.normalise", "scale_rewards": "recipe.estimator",
    "importance_sampling_level": "loss.kind", "vllm_importance_sampling_mode": "loss.correction", "rollout_is": "loss.correction",
    "vllm_importance_sampling_clip_max": "loss.correction_cap", "rollout_is_threshold": "loss.correction_cap",
    "use_vllm": "engine.name", "vllm_gpu_memory_utilization": "engine.kv_gib", "vllm_max_model_length": "engine.context",
    "loss_mode": "loss.kind", "filter_groups": "recipe.refills",
    "mask_truncated_completions": "recipe.truncated", "per_device_train_batch_size": "train.micro_tokens",
    "gradient_accumulation_steps": "train.micro_tokens", "max_steps": "train.steps", "save_steps": "train.save_every",
    "save_total_limit": "train.keep", "eval_steps": "eval.every", "report_to": "log.to", "reward_funcs": "reward",
    "bf16": "train.precision", "dataset_name": "task.source", "lambda": "recipe.lam", "kl_coef": "loss.beta",
    "lora_r": "lora.rank", "lora_alpha": "lora.alpha", "target_modules": "lora.targets", "lora_target_modules": "lora.targets",
    "gradient_checkpointing": "train.checkpointing", "num_train_epochs": "train.epochs", "output_dir": "--out",
}  # fmt: skip
"""The name of an option in other libraries -> its name here. The error about an unknown option uses it."""
