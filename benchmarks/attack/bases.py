"""Folders of other bases and mask decoders: code in their processors, absurd sizes, templates, pickles."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import TOY
from benchmarks.attack.configs import AUTO, CODE, TYPES, Change, put
from benchmarks.attack.desk import Attack, Desk, chat, edit_json, load
from benchmarks.attack.pickles import KIND as PICKLES
from benchmarks.attack.pickles import PAYLOADS, zipped
from benchmarks.attack.texts import TEMPLATE_TEXTS, TEMPLATES

BASE, OTHER, SAM2 = "sound_base", "sound_other", "sound_sam2"  # beside the sound model; see `write`
INSIDE = "base_processor"  # of a model of ours: its base's processor
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAM2_SIZES: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {
            "hidden_size": 8, "image_size": 64, "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [4, 2, 4, 2], "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [3, 3],
        },
        "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 16},
}  # fmt: skip


def write(folder: Path) -> None:
    """Three sound folders: a tiny Qwen3-VL, a model of ours around it, and a tiny SAM 2."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    from model.checkpoints.load import load_model
    from model.decoders.sam2 import KINDS, Sam2Settings
    from model.text.tokenizer_files import load_tokenizer

    tokenizer = load_tokenizer(TOY / "llava")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", *VISION], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(("vision_start", "vision_end", "image", "video"), VISION, strict=True)
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        **ids,
    )  # fmt: skip
    size = {"shortest_edge": 4 * 32**2, "longest_edge": 16 * 32**2}
    images = Qwen2VLImageProcessor(patch_size=16, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=TEMPLATE)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder / BASE)
    processor.save_pretrained(folder / BASE)
    settings = Sam2Settings(**SAM2_SIZES)
    KINDS["sam2"].model(settings.config).save_pretrained(folder / SAM2)
    load_model(folder / BASE, sam=str(TOY / "sam2"))[0].save_pretrained(folder / OTHER)


def copy(desk: Desk, name: str) -> Path:
    """A copy of one of the sound folders."""
    source, target = desk.model.parent / name, desk.here / name
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            os.link(path, place)
        elif path.is_file():
            shutil.copy(path, place)
    return target


def open_copy(desk: Desk, name: str, folder: Path) -> int:
    """What a command makes of a changed copy."""
    if name == SAM2:
        return load(TOY / "llava", sam=folder)
    return chat(folder) if name == OTHER else load(folder)


def changed(name: str, file: str, changes: tuple[Change, ...], desk: Desk) -> int:
    """One file of a sound folder changed."""
    folder = copy(desk, name)
    for place in (folder, folder / INSIDE, desk.here):
        if place.is_dir():
            desk.evil_module(place)
    for change in changes:
        edit_json(folder / file, change)
    return open_copy(desk, name, folder)


def in_part(part: str, **values: Any) -> tuple[Change, ...]:
    """Changes of a section of processor_config.json."""
    return tuple(put(part, key, value=value) for key, value in values.items())


def code_attacks() -> Iterator[Attack]:
    """`auto_map` and unknown classes in all that describes a processor."""
    auto = (put("auto_map", value=AUTO),)
    classes = (*auto, put("processor_class", value="X"), put("tokenizer_class", value="X"),
               put("image_processor_type", value="X"), put("video_processor_type", value="X"))  # fmt: skip
    files = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
             "video_preprocessor_config.json", "generation_config.json")  # fmt: skip
    for file in files:
        for what, changes in (("auto_map", auto), ("unknown classes", classes)):
            quick = (file, what) == ("processor_config.json", "unknown classes")
            yield Attack(CODE, f"{file} of a base, {what}", partial(changed, BASE, file, changes), quick)
            if file != "config.json":
                place = f"{INSIDE}/{file}"
                yield Attack(CODE, f"{place}, {what}", partial(changed, OTHER, place, changes))
    for part in ("image_processor", "video_processor"):
        inner = (put(part, "auto_map", value=AUTO), put(part, f"{part}_type", value="X"))
        yield Attack(
            CODE, f"{part} of processor_config.json", partial(changed, BASE, "processor_config.json", inner)
        )
        remote = (*inner, put(part, "trust_remote_code", value=True), put("trust_remote_code", value=True))
        yield Attack(
            CODE, f"{part} that trusts itself", partial(changed, BASE, "processor_config.json", remote)
        )
    for name in ("os.system", "evil.X", "evil/kernels--evil.X", ["X"], 5, {"a": 1}):
        odd = (put("image_processor", "image_processor_type", value=name),)
        yield Attack(CODE, f"image processor {name!a}", partial(changed, BASE, "processor_config.json", odd))
    unknown = (*auto, put("model_type", value="evil"))
    yield Attack(CODE, "config.json of a base, unknown type", partial(changed, BASE, "config.json", unknown))
    for file in ("config.json", "preprocessor_config.json"):
        yield Attack(CODE, f"{file} of SAM 2", partial(changed, SAM2, file, (*auto, *classes)))
    yield Attack(CODE, "base_processor that leads outside", partial(
        changed, OTHER, "processor_config.json", (put("base_processor", value="../../outside"),)))  # fmt: skip
    draws = {"temperature": "x", "num_beams": 10**9, "max_length": 10**12, "custom_generate": "evil/repo",
             "do_sample": True, "top_k": -5, "cache_implementation": "evil", "eos_token_id": 10**9,
             "watermarking_config": {"a": 1}, "compile_config": {"backend": "evil.X"}, "use_cache": "no"}  # fmt: skip
    for place, file in ((BASE, "generation_config.json"), (OTHER, "generation_config.json")):
        yield Attack(CODE, f"sampling settings of {place}", partial(
            changed, place, file, tuple(put(key, value=value) for key, value in draws.items())))  # fmt: skip


ABSURD: dict[str, Any] = {
    "0": 0, "-1": -1, "1e9": 10**9, "1e30": 1e30, "a text": "x", "a list": [1], "null": None, "true": True,
    "an object": {"a": 1},
}  # fmt: skip
IMAGE_FIELDS = ("patch_size", "merge_size", "temporal_patch_size", "size", "image_mean", "rescale_factor", "resample",
                "do_resize")  # fmt: skip
CONFIG_FIELDS: dict[str, tuple[str, ...]] = {
    "patch_size": ("vision_config", "patch_size"), "spatial_merge_size": ("vision_config", "spatial_merge_size"),
    "temporal_patch_size": ("vision_config", "temporal_patch_size"), "depth": ("vision_config", "depth"),
    "num_heads": ("vision_config", "num_heads"), "out_hidden_size": ("vision_config", "out_hidden_size"),
    "num_position_embeddings": ("vision_config", "num_position_embeddings"),
    "deepstack_visual_indexes": ("vision_config", "deepstack_visual_indexes"),
    "head_dim": ("text_config", "head_dim"), "num_key_value_heads": ("text_config", "num_key_value_heads"),
    "rope_parameters": ("text_config", "rope_parameters"), "image_token_id": ("image_token_id",),
    "tie_word_embeddings": ("tie_word_embeddings",),
}  # fmt: skip
SAM2_FIELDS: dict[str, tuple[str, ...]] = {
    **{name: ("vision_config", "backbone_config", name)
       for name in ("image_size", "blocks_per_stage", "embed_dim_per_stage", "num_attention_heads_per_stage",
                    "window_size_per_stage", "global_attention_blocks", "patch_stride", "mlp_ratio",
                    "window_positional_embedding_background_size")},
    **{name: ("vision_config", name)
       for name in ("backbone_config", "backbone_channel_list", "fpn_hidden_size", "backbone_feature_sizes",
                    "num_feature_levels")},
    **{f"{name} of the mask decoder": ("mask_decoder_config", name)
       for name in ("mlp_dim", "num_hidden_layers", "num_attention_heads", "iou_head_depth", "num_multimask_outputs",
                    "attention_downsample_rate", "hidden_act")},
    "patch_size of the prompt encoder": ("prompt_encoder_config", "patch_size"),
    "mask_input_channels": ("prompt_encoder_config", "mask_input_channels"),
}  # fmt: skip


def type_attacks() -> Iterator[Attack]:
    """Values that no processor, base or mask decoder has."""
    for what, value in ABSURD.items():
        for field in IMAGE_FIELDS:
            change = in_part("image_processor", **{field: value})
            yield Attack(TYPES, f"image processor, {field} {what}",
                         partial(changed, BASE, "processor_config.json", change))  # fmt: skip
        for field in ("shortest_edge", "longest_edge"):
            change = (put("image_processor", "size", field, value=value),)
            quick = (field, what) == ("longest_edge", "1e9")
            yield Attack(TYPES, f"{INSIDE}, {field} {what}",
                         partial(changed, OTHER, f"{INSIDE}/processor_config.json", change), quick)  # fmt: skip
        for field, keys in CONFIG_FIELDS.items():
            yield Attack(TYPES, f"config.json of a base, {field} {what}",
                         partial(changed, BASE, "config.json", (put(*keys, value=value),)))  # fmt: skip
        for field, keys in SAM2_FIELDS.items():
            yield Attack(TYPES, f"config.json of SAM 2, {field} {what}",
                         partial(changed, SAM2, "config.json", (put(*keys, value=value),)))  # fmt: skip
        pixels = tuple(put(name, value=value) for name in ("image_mean", "image_std"))
        yield Attack(TYPES, f"preprocessor_config.json of SAM 2, mean {what}",
                     partial(changed, SAM2, "preprocessor_config.json", pixels))  # fmt: skip
    for name, weights in ODD_WEIGHTS.items():
        yield Attack(TYPES, f"SAM 2, {name}", partial(_original, weights))


ODD_WEIGHTS: dict[str, dict[str, tuple[int, ...]]] = {  # name of a weight -> its shape
    "positions of one axis": {"image_encoder.trunk.pos_embed": (4,)},
    "positions alone": {"image_encoder.trunk.pos_embed": (1, 96, 7, 7)},
    "a block of number 1e9": {"image_encoder.trunk.pos_embed": (1, 96, 7, 7),
                              "image_encoder.trunk.blocks.999999999.norm1.weight": (96,)},
    "a number of 5,000 digits": {"image_encoder.trunk.pos_embed": (1, 96, 7, 7),
                                 f"image_encoder.trunk.blocks.{'9' * 5000}.norm1.weight": (96,)},
    "numbers with nothing between": {
        "image_encoder.trunk.pos_embed": (1, 96, 7, 7), "image_encoder.neck.convs.0.conv.weight": (0,),
        **{f"image_encoder.trunk.blocks.{number}.norm1.weight": (96,) for number in (0, 5, 7)}},
}  # fmt: skip


def _original(shapes: dict[str, tuple[int, ...]], desk: Desk) -> int:
    """A file of facebookresearch/sam2 of these weights."""
    import torch

    torch.save({"model": {name: torch.zeros(shape) for name, shape in shapes.items()}}, "sam2_hiera_tiny.pt")
    return load(TOY / "llava", sam="sam2_hiera_tiny.pt")


def _pickled(name: str, desk: Desk) -> int:
    """A pickle in the place of the weights of a folder."""
    folder = copy(desk, name)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(zipped(PAYLOADS["REDUCE"](desk.shell)))
    return open_copy(desk, name, folder)


def _sam2_file(payload: str, desk: Desk) -> int:
    desk.evil_module(desk.here)
    Path("sam2.1_hiera_tiny.pt").write_bytes(zipped(PAYLOADS[payload](desk.shell)))
    return load(TOY / "llava", sam="sam2.1_hiera_tiny.pt")


def _template(file: str, text: str, desk: Desk) -> int:
    """A template beside the processor of a base, instead of all others."""
    folder = copy(desk, OTHER)
    text = text.replace("SHELL", desk.shell)
    for name in (
        "tokenizer_config.json",
        f"{INSIDE}/tokenizer_config.json",
        f"{INSIDE}/processor_config.json",
    ):
        edit_json(folder / name, put("chat_template", value=text))
    for place in (folder, folder / INSIDE):
        path = place / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return chat(folder)


def attacks() -> Iterator[Attack]:
    yield from code_attacks()
    yield from type_attacks()
    for name in (BASE, SAM2):
        yield Attack(PICKLES, f"pytorch_model.bin of {name}", partial(_pickled, name))
    for payload in ("REDUCE", "BUILD", "runpy"):
        yield Attack(PICKLES, f"SAM 2 .pt, {payload}", partial(_sam2_file, payload))
    for name, text in TEMPLATE_TEXTS.items():
        for file in ("chat_template.jinja", "additional_chat_templates/default.jinja"):
            quick = (name, file) == ("code through cycler", "chat_template.jinja")
            yield Attack(TEMPLATES, f"{file} of a base, {name}", partial(_template, file, text), quick)
