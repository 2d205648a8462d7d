"""Sharing a model's folder on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from model.errors import UserError


def check_login(name: str) -> str:
    """The account that would upload; checked before hours of work.

    Raises:
        ValueError: nobody is logged in, or the hub cannot be reached.
    """
    try:
        return str(HfApi().whoami()["name"])
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            f"--push_to_hub {name} needs a Hugging Face account: run `hf auth login` with a token that "
            "may write, or set HF_TOKEN"
        ) from error
    except (OfflineModeIsEnabled, OSError) as error:
        raise UserError(f"--push_to_hub {name}: the hub cannot be reached ({error})") from error


def push_folder(folder: Path, name: str) -> str:
    """Upload a folder to a private repository, created if it does not exist; returns its URL.

    Raises:
        ValueError: the hub refused; the folder is as it was.
    """
    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="LaSagnA model, adapters merged"
        )
    except (OSError, HFValidationError) as error:  # HfHubHTTPError is an OSError
        raise UserError(
            f"--push_to_hub {name} failed: {error}; {folder} is complete, upload it with "
            f"`hf upload {name} {folder}`"
        ) from error
    return str(repository)
