"""Loading the tokenizer of a model folder (ours, Hugging Face's or an original LLaVA's), and saving ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import normalizers
from transformers import (
    AddedToken,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from model.downloads import check_download
from model.errors import UserError
from model.files import read_json
from model.huggingface import from_pretrained

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; it pads on the right.

    A folder with `tokenizer.json` (ours, Hugging Face's) is read by the stock classes. One that has only a
    sentencepiece model is an original LLaVA, LISA or LaSagnA folder: its tokenizer is rebuilt to give the same ids as
    in transformers 4.31, which the stock classes no longer do.
    """
    folder = Path(folder)
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    for path in files:
        check_download(path)
    try:
        tokenizer = _load_stored(folder)
    except UserError:
        raise
    except Exception as problem:  # tokenizers and sentencepiece raise bare Exceptions for a damaged file
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise UserError(
            f"{' or '.join(map(str, files))} cannot be read ({reason}); copy or download the tokenizer again"
        ) from problem
    if tokenizer is None:
        raise FileNotFoundError(
            f"{folder} has neither tokenizer.json nor tokenizer.model; pass the folder of a whole model"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _load_stored(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder, or None if the folder has none."""
    if (folder / "tokenizer.json").is_file():
        # AutoTokenizer reads config.json first, and warns unless the type "lasagna" is registered by then.
        is_ours = read_json(folder / "config.json").get("model_type") == "lasagna"
        return from_pretrained(PreTrainedTokenizerFast if is_ours else AutoTokenizer, folder)
    return _load_original(folder) if (folder / "tokenizer.model").is_file() else None


def _load_original(folder: Path) -> PreTrainedTokenizerBase:
    """A sentencepiece LLaMA tokenizer with the behaviour of transformers 4.31.

    "Legacy" meant there that each span of text between special tokens is tokenized on its own, with a space
    prepended. Added tokens stripped the white space on both sides.
    """
    tokenizer = from_pretrained(LlamaTokenizer, folder)
    if read_json(folder / "tokenizer_config.json").get("legacy", True) is not False:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    added = read_json(folder / "added_tokens.json")
    for content, index in sorted(added.items(), key=lambda item: item[1]):
        token = AddedToken(content, lstrip=True, rstrip=True, normalized=False, special=True)
        tokenizer.add_tokens([token], special_tokens=True)
        if tokenizer.convert_tokens_to_ids(content) != index:
            raise UserError(
                f"{folder}/added_tokens.json gives {content!r} the id {index}, but the vocabulary puts it at "
                f"{tokenizer.convert_tokens_to_ids(content)}; is tokenizer.model the one of these weights?"
            )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save the tokenizer so that `AutoTokenizer.from_pretrained(folder)` gives the same ids."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    # Our loader does not need the sentencepiece model, but an export for other tools does.
    sentencepiece = Path(getattr(tokenizer, "vocab_file", None) or "")
    if sentencepiece.is_file() and not (folder / "tokenizer.model").exists():
        shutil.copyfile(sentencepiece, folder / "tokenizer.model")
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    # The LLaMA class builds its own pre-tokenizer on load and ignores the one in tokenizer.json.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for stale in ("legacy", "vocab_file", "add_prefix_space", "name_or_path", "is_local", "local_files_only"):
        settings.pop(stale, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
