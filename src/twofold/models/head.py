"""A scalar head on a language model: the ablation of RL^V (arXiv:2505.04842) that judges by a number instead of a word.

The head reads the hidden state of a text's last token and learns whether the text is right. It is no part of the
architecture, so ``transformers`` does not know it: it is ``model.value_head``, and a file in a folder of its own, as vLLM
takes every ``*.safetensors`` beside a model for the model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from twofold.models.outside import reading

Kind = Literal["bce", "regression"]
NAME, FILE = "value_head", "head/value_head.safetensors"
OLD_FILE = "value_head.safetensors"
"""Where older versions wrote it, beside the model."""


class Head(nn.Linear):
    """One number for each hidden state, 0 at first. ``kind`` says what it is: a logit, trained by binary cross-entropy, or
    a probability, trained by squared error. It is None for a head from a file that does not say."""

    def __init__(self, width: int, kind: Kind | None, device: torch.device | str = "cpu") -> None:
        super().__init__(width, 1, device=device)
        self.kind = kind
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def loss(self, hidden_V_D: Tensor, labels_V: Tensor, weights_V: Tensor) -> Tensor:
        """The weighted sum of the losses of V texts, whose labels are 1 (right) or 0."""
        each = binary_cross_entropy_with_logits if self.kind == "bce" else mse_loss
        return (weights_V * each(self(hidden_V_D.to(self.weight.dtype))[:, 0], labels_V, reduction="none")).sum()

    def probability(self, hidden_V_D: Tensor) -> Tensor:
        """P(right) of V texts. Raises ValueError if the head's kind is not known."""
        numbers_V = self(hidden_V_D.to(self.weight.dtype))[:, 0]
        match self.kind:
            case "bce":
                return numbers_V.sigmoid()
            case "regression":
                return numbers_V.clamp(0, 1)
        raise ValueError(
            f'{FILE} does not say how the head was trained (an older version wrote it): set model.{NAME}.kind to "bce" '
            'or "regression" and save the model again'
        )


def attach(model: Any, kind: Kind | None) -> None:
    """Give ``model`` a new head, in the place of any that it has."""
    model.value_head = Head(model.config.hidden_size, kind, model.device)


def save(folder: Path, model: Any) -> None:
    """Write the model's head, if it has one, and its kind."""
    if head := getattr(model, NAME, None):
        (folder / FILE).parent.mkdir(exist_ok=True)
        save_file(head.state_dict(), folder / FILE, {"kind": head.kind} if head.kind else None)


def load(folder: Path, model: Any) -> None:
    """Give ``model`` the head that was saved in ``folder``, if there is one."""
    if path := _found(folder):
        with reading(path), safe_open(path, "pt") as file:
            kind = (file.metadata() or {}).get("kind")
            held = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (it is no dict)
        attach(model, kind)
        if held != {k: [*v.shape] for k, v in model.value_head.state_dict().items()} or kind not in (
            None,
            *get_args(Kind),
        ):
            raise ValueError(f"{path} holds no head of this model: {str(held)[:200]}, of kind {kind}")
        model.load_state_dict(read(folder), strict=False)


def read(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the head in ``folder`` by the names that they have in the model; none if there is no head."""
    path = _found(folder)
    return {f"{NAME}.{k}": v for k, v in load_file(path).items()} if path else {}


def _found(folder: Path) -> Path | None:
    return next((folder / name for name in (FILE, OLD_FILE) if (folder / name).is_file()), None)
