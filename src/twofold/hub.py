"""The Hugging Face hub, asked once and for a few seconds: its own clients try for a minute before they say what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

SECONDS = 3
"""How long to wait for an answer."""


class Unreachable(OSError):
    """The hub gave no answer."""


def check(name: str, kind: Literal["model", "dataset"]) -> None:
    """Raise FileNotFoundError if the hub has no such repository, and Unreachable if it does not answer.

    With HF_HUB_OFFLINE nothing is asked: the clients then use what was downloaded before.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=SECONDS)
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such file, and no such {kind} on the hub, or it is private") from error
    except Exception as error:  # of an HTTP library, which is another one in each version of huggingface_hub
        raise Unreachable(
            f"{name}: no such file, and the hub cannot be reached ({error}). HF_HUB_OFFLINE=1 uses what was downloaded before"
        ) from error


def model(name: str, *, weights: bool = True) -> Path:
    """Return the directory with a model of the hub, fetched if need be, or as it was fetched before if the hub does not answer.

    Only plain data are fetched: no code, and no weights in other files than safetensors. Raises FileNotFoundError or
    Unreachable if there is no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", *(["*.safetensors"] if weights else [])]
    only: dict[str, Any] = {"allow_patterns": wanted, "ignore_patterns": ["*/*", "consolidated*"]}
    try:
        check(name, "model")
        return Path(snapshot_download(name, **only))
    except (Unreachable, LocalEntryNotFoundError) as unreachable:
        try:
            return Path(snapshot_download(name, local_files_only=True, **only))
        except LocalEntryNotFoundError:
            raise (
                unreachable if isinstance(unreachable, Unreachable) else Unreachable(f"{name}: {unreachable}")
            ) from None


def upload(name: str, files: Mapping[str, Path | bytes], *, private: bool) -> None:
    """Write files into a model's repository on the hub, in one commit; the repository is made if need be.

    The user must be logged in (HF_TOKEN, or ``hf auth login``). Raises Unreachable if the hub does not take them.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    added = [CommitOperationAdd(path, content) for path, content in files.items()]
    try:
        HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().create_commit(name, added, commit_message="A model trained with twofold, and its card")
    except Exception as error:  # of an HTTP library, which is another one in each version of huggingface_hub
        raise Unreachable(f"{name}: the hub did not take the model: {error}") from error
