"""Configurations of models and tokenizers: code by name, wrong types, absurd sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks import TOY
from benchmarks.attack.desk import Attack, Desk, chat, edit_json, load

CODE, TYPES = "code beside weights", "configurations of wrong types and sizes"
Change = Callable[[dict[str, Any]], None]
BOTH = ["evil.X", "evil.X"]
AUTO = {"AutoConfig": "evil.X", "AutoModel": "evil.X", "AutoTokenizer": BOTH, "AutoProcessor": "evil.X",
        "AutoImageProcessor": BOTH, "AutoModelForCausalLM": "evil.X", "AutoModelForImageTextToText": "evil.X",
        "AutoFeatureExtractor": "evil.X", "AutoVideoProcessor": "evil.X"}  # fmt: skip


def put(*keys: str, value: Any) -> Change:
    """Sets an entry inside an entry."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content.setdefault(key, {})
        content[keys[-1]] = value

    return change


def decoder(kind: str, **changes: Any) -> dict[str, Any]:
    """A `sam_config` of another kind than the weights', with changes to its image encoder."""
    return {"kind": kind, "vision_config": {"backbone_config": changes}}


def in_model(file: str, changes: tuple[Change, ...], desk: Desk) -> int:
    """A sound model with one file changed."""
    folder = desk.copy_model()
    desk.evil_module(folder)
    for change in changes:
        edit_json(folder / file, change)
    return chat(folder)


def in_llava(file: str, changes: tuple[Change, ...], desk: Desk) -> int:
    folder = desk.copy_llava()
    desk.evil_module(folder)
    for change in changes:
        edit_json(folder / file, change)
    return load(folder)


def in_clip(file: str, changes: tuple[Change, ...], desk: Desk) -> int:
    folder = desk.here / "clip"
    shutil.copytree(TOY / "clip", folder)
    desk.evil_module(folder)
    for change in changes:
        edit_json(folder / file, change)
    return load(TOY / "llava", tower=folder)


def _as_text(file: str, text: str, desk: Desk) -> int:
    folder = desk.copy_model()
    (folder / file).write_text(text)
    return chat(folder)


def code_attacks() -> Iterator[Attack]:
    """`auto_map` and unknown classes in every file of a folder of weights."""
    tokenizer = (put("tokenizer_class", value="X"), put("auto_map", value=AUTO))
    auto = (put("auto_map", value=AUTO),)
    unknown = (*auto, put("model_type", value="evil"))
    yield Attack(CODE, "tokenizer_config.json", partial(in_model, "tokenizer_config.json", tokenizer), True)
    yield Attack(CODE, "tokenizer of LLaVA", partial(in_llava, "tokenizer_config.json", tokenizer))
    for place, run in (("model", in_model), ("LLaVA", in_llava), ("CLIP", in_clip)):
        yield Attack(CODE, f"config.json of {place}", partial(run, "config.json", auto))
        yield Attack(CODE, f"config.json of {place}, unknown type", partial(run, "config.json", unknown))
        image = (*auto, put("image_processor_type", value="X"), put("processor_class", value="X"))
        yield Attack(
            CODE, f"preprocessor_config.json of {place}", partial(run, "preprocessor_config.json", image)
        )
    for section in ("vlm_config", "text_config", "vision_config"):
        keys = (section,) if section == "vlm_config" else ("vlm_config", section)
        changes = (put(*keys, "auto_map", value=AUTO), put(*keys, "model_type", value="evil"))
        yield Attack(CODE, f"{section} of config.json", partial(in_model, "config.json", changes))
    yield Attack(CODE, "processor_config.json", partial(in_model, "processor_config.json", auto))
    yield Attack(CODE, "generation_config.json", partial(in_model, "generation_config.json", auto))
    remote = (*auto, put("trust_remote_code", value=True))
    yield Attack(CODE, "trust_remote_code in config.json", partial(in_model, "config.json", remote))
    yield Attack(
        CODE, "trust_remote_code in tokenizer_config.json",
        partial(in_model, "tokenizer_config.json", (*tokenizer, put("trust_remote_code", value=True))),
    )  # fmt: skip
    quantized = (put("quantization_config", value={"quant_method": "evil", "modules": ["evil"]}),)
    yield Attack(CODE, "quantization_config", partial(in_model, "config.json", quantized))
    attention = (
        put("_attn_implementation", value="evil/kernels"),
        put("attn_implementation", value="evil/kernels"),
    )
    yield Attack(CODE, "attention of a repository of kernels", partial(in_model, "config.json", attention))


SIZES: dict[str, tuple[Change, ...]] = {
    "hidden_size 1e9": (put("vlm_config", "text_config", "hidden_size", value=10**9),),
    "vocab_size 1e12": (put("vlm_config", "text_config", "vocab_size", value=10**12),),
    "100,000 layers": (put("vlm_config", "text_config", "num_hidden_layers", value=100_000),),
    "1e9 layers": (put("vlm_config", "text_config", "num_hidden_layers", value=10**9),),
    "100,000 layers of CLIP": (put("vlm_config", "vision_config", "num_hidden_layers", value=100_000),),
    "100,000 layers of SAM": (put("sam_config", value={"encoder_depth": 100_000}),),
    "SAM of 1e9 pixels": (put("sam_config", value={"image_size": 16 * 10**8}),),
    "IoU head of 1e6 layers": (put("sam_config", value={"iou_head_depth": 10**6}),),
    "layers as a text": (put("vlm_config", "text_config", "num_hidden_layers", value="many"),),
    "layers below zero": (put("vlm_config", "text_config", "num_hidden_layers", value=-1),),
    "hidden_size null": (put("vlm_config", "text_config", "hidden_size", value=None),),
    "hidden_size 0": (put("vlm_config", "text_config", "hidden_size", value=0),),
    "heads 0": (put("vlm_config", "text_config", "num_attention_heads", value=0),),
    "heads as a list": (put("vlm_config", "text_config", "num_attention_heads", value=[4]),),
    "patch_size 0": (put("vlm_config", "vision_config", "patch_size", value=0),),
    "patch_size of SAM 0": (put("sam_config", value={"patch_size": 0}),),
    "dtype os": (put("dtype", value="os"), put("torch_dtype", value="os")),
    "dtype a number": (put("dtype", value=7), put("torch_dtype", value=7)),
    "dtype load": (put("dtype", value="load"),),
    "dtype int8": (put("dtype", value="int8"),),
    "dtype of the inner model": (put("vlm_config", "dtype", value="os"),),
    "vlm_config a list": (put("vlm_config", value=[]),),
    "vlm_config a text": (put("vlm_config", value="llava"),),
    "text_config a number": (put("vlm_config", "text_config", value=5),),
    "sam_config a text": (put("sam_config", value="vit_h"),),
    "sam_config unknown": (put("sam_config", "evil", value=1),),
    "mask decoder of no kind": (put("sam_config", "kind", value=["sam2"]),),
    "SAM 2 of 1e6 blocks": (put("sam_config", value=decoder("sam2", blocks_per_stage=[1, 10**6])),),
    "SAM 3 with windows of 1e5": (put("sam_config", value=decoder("sam3_tracker", window_size=10**5)),),
    "sequence_format a list": (put("sequence_format", value=["paper"]),),
    "sequence_format of numbers": (put("sequence_format", "seg", value=5),),
    "prompt a list": (put("prompt", value=["llava_v1"]),),
    "num_all_classes a text": (put("num_all_classes", value="80"),),
    "num_all_classes 1e30": (put("num_all_classes", value=1e30),),
    "seg_token_id 1e9": (put("seg_token_id", value=10**9),),
    "image_token_id a text": (put("image_token_id", value="<image>"),),
    "clip_mean a number": (put("clip_mean", value=1),),
    "loss_weights a list": (put("loss_weights", value=[1]),),
    "model_type a list": (put("model_type", value=["lasagna"]),),
    "architectures a number": (put("architectures", value=1),),
    "activation os.system": (put("vlm_config", "text_config", "hidden_act", value="os.system"),),
    "rope of nonsense": (
        put("vlm_config", "text_config", "rope_scaling", value={"type": [1], "factor": "x"}),
    ),
    "id2label a text": (put("id2label", value="evil"),),
    "NaN": (put("vlm_config", "text_config", "rms_norm_eps", value=float("nan")),),
}
LLAVA_SIZES: dict[str, tuple[Change, ...]] = {
    "hidden_size 1e9": (put("hidden_size", value=10**9),),
    "100,000 layers": (put("num_hidden_layers", value=100_000),),
    "vocab_size a text": (put("vocab_size", value="all"),),
    "dtype os": (put("torch_dtype", value="os"),),
    "dtype a number": (put("torch_dtype", value=3),),
    "mm_vision_tower a list": (put("mm_vision_tower", value=["a"]),),
    "mm_vision_select_layer a text": (put("mm_vision_select_layer", value="x"),),
    "mm_vision_select_layer 1e6": (put("mm_vision_select_layer", value=10**6),),
    "mm_projector_type": (put("mm_projector_type", value="mlp999999999x_gelu"),),
    "architectures a text": (put("architectures", value="LlavaLlamaForCausalLM"),),
}
PROCESSORS: dict[str, tuple[str, tuple[Change, ...]]] = {
    "sam_image_size 1e9": ("processor_config.json", (put("sam_image_size", value=10**9),)),
    "sam_image_size a text": ("processor_config.json", (put("sam_image_size", value="big"),)),
    "num_image_tokens 1e9": ("processor_config.json", (put("num_image_tokens", value=10**9),)),
    "num_image_tokens -1": ("processor_config.json", (put("num_image_tokens", value=-1),)),
    "format a list": ("processor_config.json", (put("format", value=[1]),)),
    "prompt a list": ("processor_config.json", (put("prompt", value=[1]),)),
    "image_aspect_ratio a dictionary": ("processor_config.json", (put("image_aspect_ratio", value={}),)),
    "CLIP size 1e6": ("preprocessor_config.json", (put("size", value={"shortest_edge": 10**6}),)),
    "CLIP crop 1e6": ("preprocessor_config.json", (put("crop_size", value={"height": 10**6, "width": 10**6}),)),
    "CLIP size a text": ("preprocessor_config.json", (put("size", value="large"),)),
    "CLIP size 0": ("preprocessor_config.json", (put("size", value={"shortest_edge": 0}),)),
    "resample 99": ("preprocessor_config.json", (put("resample", value=99),)),
    "image_mean a text": ("preprocessor_config.json", (put("image_mean", value="grey"),)),
    "model_max_length a text": ("tokenizer_config.json", (put("model_max_length", value="x"),)),
    "added tokens": (
        "tokenizer_config.json",
        (put("added_tokens_decoder", value={"1000000000": {"content": "x"}}),),
    ),
    "eos_token a list": ("tokenizer_config.json", (put("eos_token", value=[1]),)),
    "vocabulary a list": ("tokenizer.json", (put("model", "vocab", value=[1]),)),
    "truncation of the tokenizer": ("tokenizer.json", (put("truncation", value={"max_length": -5}),)),
}  # fmt: skip
TEXTS = {
    "config.json a list": ("config.json", "[]"),
    "config.json a number": ("config.json", "1e400"),
    "config.json of 50,000 brackets": ("config.json", '{"a":' + "[" * 50_000 + "]" * 50_000 + "}"),
    "config.json with half a character": ("config.json", '{"model_type": "\\ud83d"}'),
    "config.json with a terminal's commands": (
        "config.json",
        '{"model_type": "\\u001b[2J\\u001b]0;x\\u0007"}',
    ),
    "processor_config.json a list": ("processor_config.json", "[]"),
    "preprocessor_config.json a list": ("preprocessor_config.json", "[1]"),
    "preprocessor_config.json a text": ("preprocessor_config.json", '"x"'),
    "tokenizer_config.json a list": ("tokenizer_config.json", "[]"),
    "tokenizer.json a list": ("tokenizer.json", "[]"),
    "tokenizer.json a number of digits": ("tokenizer.json", "9" * 10_000),
    "generation_config.json a list": ("generation_config.json", "[]"),
}
INDEXES: dict[str, Any] = {
    "a list": [],
    "a text": "model.safetensors",
    "weight_map a list": {"weight_map": ["model.safetensors"]},
    "weight_map of numbers": {"weight_map": {"a": 1}},
    "weight_map of lists": {"weight_map": {"a": ["model.safetensors"]}},
    "weight_map empty": {"weight_map": {}},
    "weight_map of null": {"weight_map": {"a": None}},
}


def _index(content: Any, desk: Desk) -> int:
    folder = desk.copy_model()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return chat(folder)


def _safetensors(header: bytes, size: int, desk: Desk) -> int:
    folder = desk.copy_model()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header)
    return chat(folder)


def type_attacks() -> Iterator[Attack]:
    """Values that make a loader allocate, loop or fail in ways that nobody foresaw."""
    for name, changes in SIZES.items():
        yield Attack(
            TYPES, f"config.json, {name}", partial(in_model, "config.json", changes), name == "1e9 layers"
        )
    for name, changes in LLAVA_SIZES.items():
        yield Attack(TYPES, f"config.json of LLaVA, {name}", partial(in_llava, "config.json", changes))
    for name, (file, changes) in PROCESSORS.items():
        yield Attack(TYPES, f"{file}, {name}", partial(in_model, file, changes), name == "format a list")
    for name, (file, text) in TEXTS.items():
        yield Attack(TYPES, name, partial(_as_text, file, text))
    for name, content in INDEXES.items():
        yield Attack(TYPES, f"index of shards, {name}", partial(_index, content), name == "a list")
    yield Attack(TYPES, "safetensors, header of 2^63 bytes", partial(_safetensors, b"{}", 2**63))
    yield Attack(
        TYPES,
        "safetensors, header of 90 MB",
        partial(_safetensors, b"{" + b" " * 90_000_000 + b"}", 90_000_002),
    )
    huge = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    yield Attack(TYPES, "safetensors, 4 TB announced", partial(_safetensors, huge, len(huge)))


def attacks() -> Iterator[Attack]:
    yield from code_attacks()
    yield from type_attacks()
