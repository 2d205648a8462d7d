"""The toy LLaVA's vocabulary: a sentencepiece BPE in the files of the original LLaVA folders."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from model.text.phrases import phrases
from model.text.special_tokens import IM_END, IM_START
from model.text.templates import PROMPTS, PromptTemplate
from utils.data.class_lists import load_class_list
from utils.toy.pretrain.clip import pad_to_square
from utils.toy.pretrain.common import PRETRAIN_SEED
from utils.toy.pretrain.talk import GRID, conversation
from utils.toy.scene import draw_scene

VOCAB_SIZE = 1600


def corpus() -> Iterator[str]:
    """Training text of the tokenizer: texts about scenes, the names of the class lists and the prompt templates."""
    for index in range(3000):
        scene, rng = draw_scene(PRETRAIN_SEED, index), np.random.default_rng((index, 5))
        for turn in conversation(scene, rng, pad_to_square(scene)).turns:
            yield str(turn)
    names = [name for key in ("ade20k", "cocostuff", "cityscapes") for name in load_class_list(key)]
    yield from names * 20
    for lines in phrases().values():
        yield from [line for line in lines for _ in range(50)]
    template = PROMPTS["llava_v1"]
    assert isinstance(template, PromptTemplate)
    yield from [template.opening + template.cue] * 2000
    yield from ["Can you segment the person, tree, sky in this image?"] * 200
    yield from ["".join(str(number) for number in range(GRID))] * 200


def train_vocabulary(folder: Path) -> None:
    """Write tokenizer.model, tokenizer_config.json and added_tokens.json in the form of original LLaVA folders."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(), model_prefix=str(folder / "tokenizer"), vocab_size=VOCAB_SIZE,
        model_type="bpe", byte_fallback=True, split_digits=True, pad_id=-1, unk_id=0, bos_id=1, eos_id=2,
        character_coverage=1.0, num_threads=1, minloglevel=2, hard_vocab_limit=True,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    token = {
        "__type": "AddedToken",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    settings = {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": True,
        "bos_token": {**token, "content": "<s>"}, "eos_token": {**token, "content": "</s>"},
        "unk_token": {**token, "content": "<unk>"}, "model_max_length": 2048, "pad_token": None,
        "padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    added = {IM_START: VOCAB_SIZE, IM_END: VOCAB_SIZE + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
