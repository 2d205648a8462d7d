"""Shared fixtures: a small LLaMA tokenizer made on the spot, and the reference numbers where they exist."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
import sentencepiece

REPOSITORY = Path(__file__).resolve().parent.parent

NAMES = (
    *("person", "tree", "dog", "cat", "sky", "grass", "house", "river", "mountain", "crt screen", "sofa"),
    *("chest of drawers", "pool table", "traffic light", "fire hydrant", "teddy bear", "tennis racket"),
    *("wall", "floor", "ceiling", "road", "sidewalk"),
)
SENTENCES = (
    "Can you segment the {a}, {b} in this image?",
    "Where is the {a} next to the {b}? It is on the left side.",
    "USER: Please show me the {a}. ASSISTANT: Sure, it is behind the {b}.",
    "A chat between a curious human and an artificial intelligence assistant about the {a} and the {b}.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions on {a}, {b}.",
)


@pytest.fixture(scope="session")
def llama_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as original LLaMA v1 models have it: tokenizer.model and two json files."""
    folder = tmp_path_factory.mktemp("llama_tokenizer")
    pairs = itertools.permutations(NAMES, 2)
    lines = [SENTENCES[i % len(SENTENCES)].format(a=a, b=b) for i, (a, b) in enumerate(pairs)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    write_json(
        folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    write_json(folder / "tokenizer_config.json", settings | {"bos_token": "<s>", "eos_token": "</s>"})
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers of the released code; tests that need it are skipped without it."""
    folder = Path(os.environ.get("LASAGNA_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no reference numbers at {folder}; set LASAGNA_GOLDEN")
    return folder


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")
