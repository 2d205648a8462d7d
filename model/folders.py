"""Where a model is: a folder here, or a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.utils import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from model.downloads import check_folder


def local_folder(name: str | Path, *, flag: str) -> Path:
    """The folder `name`, or the local copy of the model repository of that name on the Hugging Face hub.

    Raises:
        FileNotFoundError: there is neither; the message names the flag that asked for it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        check_folder(path)
        return path
    looks_like_a_repository = str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))
    if looks_like_a_repository and path.parent.is_dir():
        # A misspelt folder: the hub's repository of that name would be a stranger's.
        there = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:12]) or "nothing"
        raise FileNotFoundError(f"{flag} {name} is not there; the folder {path.parent} holds {there}")
    if looks_like_a_repository and not path.exists():
        try:
            return Path(
                snapshot_download(str(name), ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "*.gguf"])
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(
                f"{flag} {name} is neither a folder here nor a repository that can be fetched: {error}"
            ) from error
    cure = "pass a folder, or the name of a repository on the Hugging Face hub"
    what = "a file; pass the folder of a whole model" if path.is_file() else f"not there; {cure}"
    raise FileNotFoundError(f"{flag} {name} is {what}")
