"""Configurations of models, tokenizers and runs: code by name, YAML tags, absurd sizes, names that lead outside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attack.desk import TOY, Attack, Desk, chat, check, edit_json, load, merge, train
from benchmarks.attack.pickles import in_deepspeed

CODE, YAML, TYPES, TEMPLATES, OUTSIDE = (
    "code beside weights", "YAML", "configurations of wrong types and sizes", "chat templates",
    "files of a model that lead outside",
)  # fmt: skip
Change = Callable[[dict[str, Any]], None]
BOTH = ["evil.X", "evil.X"]
AUTO = {"AutoConfig": "evil.X", "AutoModel": "evil.X", "AutoTokenizer": BOTH, "AutoProcessor": "evil.X",
        "AutoImageProcessor": BOTH, "AutoModelForCausalLM": "evil.X", "AutoModelForImageTextToText": "evil.X",
        "AutoFeatureExtractor": "evil.X", "AutoVideoProcessor": "evil.X"}  # fmt: skip


def _set(*keys: str, value: Any) -> Change:
    """Sets an entry inside an entry."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content.setdefault(key, {})
        content[keys[-1]] = value

    return change


def _in_model(file: str, changes: tuple[Change, ...], desk: Desk) -> int:
    """A sound model with one file changed."""
    folder = desk.copy_model()
    desk.evil_module(folder)
    for change in changes:
        edit_json(folder / file, change)
    return chat(folder)


def _in_llava(file: str, changes: tuple[Change, ...], desk: Desk) -> int:
    folder = desk.copy_llava()
    desk.evil_module(folder)
    for change in changes:
        edit_json(folder / file, change)
    return load(folder)


def _in_clip(file: str, changes: tuple[Change, ...], desk: Desk) -> int:
    import shutil

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
    tokenizer = (_set("tokenizer_class", value="X"), _set("auto_map", value=AUTO))
    auto = (_set("auto_map", value=AUTO),)
    unknown = (*auto, _set("model_type", value="evil"))
    yield Attack(CODE, "tokenizer_config.json", partial(_in_model, "tokenizer_config.json", tokenizer), True)
    yield Attack(CODE, "tokenizer of LLaVA", partial(_in_llava, "tokenizer_config.json", tokenizer))
    for place, run in (("model", _in_model), ("LLaVA", _in_llava), ("CLIP", _in_clip)):
        yield Attack(CODE, f"config.json of {place}", partial(run, "config.json", auto))
        yield Attack(CODE, f"config.json of {place}, unknown type", partial(run, "config.json", unknown))
        image = (*auto, _set("image_processor_type", value="X"), _set("processor_class", value="X"))
        yield Attack(
            CODE, f"preprocessor_config.json of {place}", partial(run, "preprocessor_config.json", image)
        )
    for section in ("vlm_config", "text_config", "vision_config"):
        keys = (section,) if section == "vlm_config" else ("vlm_config", section)
        changes = (_set(*keys, "auto_map", value=AUTO), _set(*keys, "model_type", value="evil"))
        yield Attack(CODE, f"{section} of config.json", partial(_in_model, "config.json", changes))
    yield Attack(CODE, "processor_config.json", partial(_in_model, "processor_config.json", auto))
    yield Attack(CODE, "generation_config.json", partial(_in_model, "generation_config.json", auto))
    remote = (*auto, _set("trust_remote_code", value=True))
    yield Attack(CODE, "trust_remote_code in config.json", partial(_in_model, "config.json", remote))
    yield Attack(
        CODE, "trust_remote_code in tokenizer_config.json",
        partial(_in_model, "tokenizer_config.json", (*tokenizer, _set("trust_remote_code", value=True))),
    )  # fmt: skip
    quantized = (_set("quantization_config", value={"quant_method": "evil", "modules": ["evil"]}),)
    yield Attack(CODE, "quantization_config", partial(_in_model, "config.json", quantized))
    attention = (
        _set("_attn_implementation", value="evil/kernels"),
        _set("attn_implementation", value="evil/kernels"),
    )
    yield Attack(CODE, "attention of a repository of kernels", partial(_in_model, "config.json", attention))


def _config_file(text: str, desk: Desk) -> int:
    Path("evil.yaml").write_text(text.replace("SHELL", desk.shell))
    return train("--config=evil.yaml")


def _check_config(text: str, desk: Desk) -> int:
    Path("evil.yaml").write_text(text.replace("SHELL", desk.shell))
    return check("", "--config=evil.yaml")


def _run_yaml(text: str, desk: Desk) -> int:
    """run.yaml beside weights of a run, to be merged."""
    tag = desk.here / "ckpt_model" / "global_step7"
    tag.mkdir(parents=True)
    (tag.parent / "latest").write_text("global_step7")
    (tag / "mp_rank_00_model_states.pt").write_bytes(b"")
    (tag.parent / "lasagna").mkdir()
    (tag.parent / "lasagna" / "run.yaml").write_text(text.replace("SHELL", desk.shell))
    return merge("ckpt_model")


LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
TAGS = {
    "!!python/object/apply": "lr: !!python/object/apply:os.system ['SHELL']\n",
    "!!python/object/new": "lr: !!python/object/new:os.system ['SHELL']\n",
    "!!python/object": "lr: !!python/object:subprocess.Popen {args: 'SHELL'}\n",
    "!!python/name": "lr: !!python/name:os.system\n",
    "!!python/module": "lr: !!python/module:evil\n",
    "!!python/object/apply by %TAG": "%TAG !p! "
    "tag:yaml.org,2002:python/object/apply:\n---\nlr: !p!os.system ['SHELL']\n",
    "nested aliases": LAUGHS + "lr: *a9\n",
    "nested aliases as version": LAUGHS + "version: *a9\n",
    "an alias of itself": "lr: &a [*a]\n",
    "nested lists": "lr: " + "[" * 20000 + "]" * 20000 + "\n",
    "merge keys": "a: &a {lr: 1}\n" + "b: {" + "<<: *a, " * 5 + "}\n",
    "a number of 10 million digits": "lr: " + "9" * 10_000_000 + "\n",
    "control characters": 'lr: "\\e[31m\\a\\e]0;title"\n',
}  # fmt: skip


def yaml_attacks() -> Iterator[Attack]:
    """Tags that construct objects, and aliases that multiply, in both kinds of YAML that are read."""
    for name, text in TAGS.items():
        quick = name == "!!python/object/apply"
        yield Attack(YAML, f"--config, {name}", partial(_config_file, text), quick)
        yield Attack(YAML, f"run.yaml, {name}", partial(_run_yaml, text), quick)
    yield Attack(
        YAML, "--config of the check, nested aliases", partial(_check_config, TAGS["nested aliases"])
    )


SIZES: dict[str, tuple[Change, ...]] = {
    "hidden_size 1e9": (_set("vlm_config", "text_config", "hidden_size", value=10**9),),
    "vocab_size 1e12": (_set("vlm_config", "text_config", "vocab_size", value=10**12),),
    "100,000 layers": (_set("vlm_config", "text_config", "num_hidden_layers", value=100_000),),
    "1e9 layers": (_set("vlm_config", "text_config", "num_hidden_layers", value=10**9),),
    "100,000 layers of CLIP": (_set("vlm_config", "vision_config", "num_hidden_layers", value=100_000),),
    "100,000 layers of SAM": (_set("sam_config", "encoder_depth", value=100_000),),
    "SAM of 1e9 pixels": (_set("sam_config", "image_size", value=16 * 10**8),),
    "IoU head of 1e6 layers": (_set("sam_config", "iou_head_depth", value=10**6),),
    "layers as a text": (_set("vlm_config", "text_config", "num_hidden_layers", value="many"),),
    "layers below zero": (_set("vlm_config", "text_config", "num_hidden_layers", value=-1),),
    "hidden_size null": (_set("vlm_config", "text_config", "hidden_size", value=None),),
    "hidden_size 0": (_set("vlm_config", "text_config", "hidden_size", value=0),),
    "heads 0": (_set("vlm_config", "text_config", "num_attention_heads", value=0),),
    "heads as a list": (_set("vlm_config", "text_config", "num_attention_heads", value=[4]),),
    "patch_size 0": (_set("vlm_config", "vision_config", "patch_size", value=0),),
    "patch_size of SAM 0": (_set("sam_config", "patch_size", value=0),),
    "dtype os": (_set("dtype", value="os"), _set("torch_dtype", value="os")),
    "dtype a number": (_set("dtype", value=7), _set("torch_dtype", value=7)),
    "dtype load": (_set("dtype", value="load"),),
    "dtype int8": (_set("dtype", value="int8"),),
    "dtype of the inner model": (_set("vlm_config", "dtype", value="os"),),
    "vlm_config a list": (_set("vlm_config", value=[]),),
    "vlm_config a text": (_set("vlm_config", value="llava"),),
    "text_config a number": (_set("vlm_config", "text_config", value=5),),
    "sam_config a text": (_set("sam_config", value="vit_h"),),
    "sam_config unknown": (_set("sam_config", "evil", value=1),),
    "sequence_format a list": (_set("sequence_format", value=["paper"]),),
    "sequence_format of numbers": (_set("sequence_format", "seg", value=5),),
    "prompt a list": (_set("prompt", value=["llava_v1"]),),
    "num_all_classes a text": (_set("num_all_classes", value="80"),),
    "num_all_classes 1e30": (_set("num_all_classes", value=1e30),),
    "seg_token_id 1e9": (_set("seg_token_id", value=10**9),),
    "image_token_id a text": (_set("image_token_id", value="<image>"),),
    "clip_mean a number": (_set("clip_mean", value=1),),
    "loss_weights a list": (_set("loss_weights", value=[1]),),
    "model_type a list": (_set("model_type", value=["lasagna"]),),
    "architectures a number": (_set("architectures", value=1),),
    "activation os.system": (_set("vlm_config", "text_config", "hidden_act", value="os.system"),),
    "rope of nonsense": (
        _set("vlm_config", "text_config", "rope_scaling", value={"type": [1], "factor": "x"}),
    ),
    "id2label a text": (_set("id2label", value="evil"),),
    "NaN": (_set("vlm_config", "text_config", "rms_norm_eps", value=float("nan")),),
}
LLAVA_SIZES: dict[str, tuple[Change, ...]] = {
    "hidden_size 1e9": (_set("hidden_size", value=10**9),),
    "100,000 layers": (_set("num_hidden_layers", value=100_000),),
    "vocab_size a text": (_set("vocab_size", value="all"),),
    "dtype os": (_set("torch_dtype", value="os"),),
    "dtype a number": (_set("torch_dtype", value=3),),
    "mm_vision_tower a list": (_set("mm_vision_tower", value=["a"]),),
    "mm_vision_select_layer a text": (_set("mm_vision_select_layer", value="x"),),
    "mm_vision_select_layer 1e6": (_set("mm_vision_select_layer", value=10**6),),
    "mm_projector_type": (_set("mm_projector_type", value="mlp999999999x_gelu"),),
    "architectures a text": (_set("architectures", value="LlavaLlamaForCausalLM"),),
}
PROCESSORS: dict[str, tuple[str, tuple[Change, ...]]] = {
    "sam_image_size 1e9": ("processor_config.json", (_set("sam_image_size", value=10**9),)),
    "sam_image_size a text": ("processor_config.json", (_set("sam_image_size", value="big"),)),
    "num_image_tokens 1e9": ("processor_config.json", (_set("num_image_tokens", value=10**9),)),
    "num_image_tokens -1": ("processor_config.json", (_set("num_image_tokens", value=-1),)),
    "format a list": ("processor_config.json", (_set("format", value=[1]),)),
    "prompt a list": ("processor_config.json", (_set("prompt", value=[1]),)),
    "image_aspect_ratio a dictionary": ("processor_config.json", (_set("image_aspect_ratio", value={}),)),
    "CLIP size 1e6": ("preprocessor_config.json", (_set("size", value={"shortest_edge": 10**6}),)),
    "CLIP crop 1e6": ("preprocessor_config.json", (_set("crop_size", value={"height": 10**6, "width": 10**6}),)),
    "CLIP size a text": ("preprocessor_config.json", (_set("size", value="large"),)),
    "CLIP size 0": ("preprocessor_config.json", (_set("size", value={"shortest_edge": 0}),)),
    "resample 99": ("preprocessor_config.json", (_set("resample", value=99),)),
    "image_mean a text": ("preprocessor_config.json", (_set("image_mean", value="grey"),)),
    "model_max_length a text": ("tokenizer_config.json", (_set("model_max_length", value="x"),)),
    "added tokens": (
        "tokenizer_config.json",
        (_set("added_tokens_decoder", value={"1000000000": {"content": "x"}}),),
    ),
    "eos_token a list": ("tokenizer_config.json", (_set("eos_token", value=[1]),)),
    "vocabulary a list": ("tokenizer.json", (_set("model", "vocab", value=[1]),)),
    "truncation of the tokenizer": ("tokenizer.json", (_set("truncation", value={"max_length": -5}),)),
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
            TYPES, f"config.json, {name}", partial(_in_model, "config.json", changes), name == "1e9 layers"
        )
    for name, changes in LLAVA_SIZES.items():
        yield Attack(TYPES, f"config.json of LLaVA, {name}", partial(_in_llava, "config.json", changes))
    for name, (file, changes) in PROCESSORS.items():
        yield Attack(TYPES, f"{file}, {name}", partial(_in_model, file, changes), name == "format a list")
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


TEMPLATE_TEXTS = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a text of 10 GB": "{{ 'x' * 10000000000 }}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a text that doubles": "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "a width of 10^10": "{{ '%10000000000d' | format(1) }}",
    "code through a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "code through cycler": "{{ cycler.__init__.__globals__.os.system('SHELL') }}",
    "code through lipsum": "{{ lipsum.__globals__['os'].popen('SHELL').read() }}",
    "code through raise_exception": "{{ raise_exception.__globals__['sys'].modules['os'].system('SHELL') }}",
    "code through strftime_now": "{{ strftime_now.__globals__['os'].system('SHELL') }}",
    "a file": "{% include '../outside/secret.txt' %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "an exception with a terminal's commands": "{{ raise_exception('\x1b[31m') }}",
}


def _template(text: str, asked: bool, desk: Desk) -> int:
    """A chat template in the tokenizer, and a processor that asks for it."""
    folder = desk.copy_model()
    text = text.replace("SHELL", desk.shell)
    (folder / "chat_template.jinja").write_text(text)
    edit_json(folder / "tokenizer_config.json", _set("chat_template", value=text))
    if asked:
        edit_json(folder / "processor_config.json", _set("prompt", value="chat_template"))
        edit_json(folder / "config.json", _set("prompt", value="chat_template"))
    return chat(folder)


def template_attacks() -> Iterator[Attack]:
    """Templates with code, loops and sizes without end."""
    for name, text in TEMPLATE_TEXTS.items():
        yield Attack(
            TEMPLATES, name, partial(_template, text, True), name in ("endless loops", "code through cycler")
        )
    yield Attack(
        TEMPLATES, "endless loops, not asked for", partial(_template, TEMPLATE_TEXTS["endless loops"], False)
    )


def _vocab_file(key: str, desk: Desk) -> int:
    """A tokenizer whose settings name a file outside, which a copy of the model would carry away."""
    folder = desk.copy_model()
    (folder / "tokenizer.model").unlink(missing_ok=True)
    edit_json(folder / "tokenizer_config.json", _set(key, value=str(desk.outside / "secret.txt")))
    import merge_lora_weights_and_save_hf_model as script

    return script.main([f"--weight={folder}", "--save_path=merged", f"--version={folder}"])


def _vocab_file_of_processor(key: str, desk: Desk) -> int:
    from model.checkpoints.load import load_model

    folder = desk.copy_model()
    (folder / "tokenizer.model").unlink(missing_ok=True)
    edit_json(folder / "tokenizer_config.json", _set(key, value=str(desk.outside / "secret.txt")))
    load_model(folder)[0].save_pretrained("merged")
    return 0


def _shard_outside(name: str, desk: Desk) -> int:
    import shutil

    folder = desk.copy_model()
    shutil.move(folder / "model.safetensors", desk.outside / "model.safetensors")
    target = name.replace("OUTSIDE", str(desk.outside))
    from safetensors import safe_open

    with safe_open(desk.outside / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, target)})
    )
    code = chat(folder)
    (desk.outside / "model.safetensors").unlink()
    if code == 0:
        (desk.outside / "weights of another folder were read").touch()
    return code


def _latest(text: str, desk: Desk) -> int:
    """`latest` of a DeepSpeed checkpoint that names another folder."""
    code = in_deepspeed(b"", desk)  # writes the folder; what is in it is damaged
    del code
    (desk.here / "ckpt_model" / "latest").write_text(text)
    return merge("ckpt_model")


def _exp_name(name: str, desk: Desk) -> int:
    return train(f"--exp_name={name}", "--dataset=own_sem:./nothing")


def outside_attacks() -> Iterator[Attack]:
    """Names in a model's folder and of a run that lead elsewhere."""
    for key in ("vocab_file", "tokenizer_file", "added_tokens_file", "special_tokens_map_file"):
        yield Attack(OUTSIDE, f"{key} of a tokenizer, merged", partial(_vocab_file, key))
        yield Attack(
            OUTSIDE,
            f"{key} of a tokenizer, saved",
            partial(_vocab_file_of_processor, key),
            key == "vocab_file",
        )
    yield Attack(OUTSIDE, "a shard by ..", partial(_shard_outside, "../../outside/model.safetensors"))
    yield Attack(OUTSIDE, "an absolute shard", partial(_shard_outside, "OUTSIDE/model.safetensors"), True)
    for text in ("../../outside", "/etc", "", "\x1b[31mred"):
        yield Attack(OUTSIDE, f"latest is {text!a}", partial(_latest, text))
    for name in ("../../x", "/tmp/../x", "a/b", "x" * 300, "\x1b[31m"):
        yield Attack(OUTSIDE, f"--exp_name {name[:20]!a}", partial(_exp_name, name))


def attacks() -> Iterator[Attack]:
    yield from code_attacks()
    yield from yaml_attacks()
    yield from type_attacks()
    yield from template_attacks()
    yield from outside_attacks()
