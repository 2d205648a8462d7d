"""Names that lead outside: in a model's folder, of a run, in annotations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial

from benchmarks.attack.configs import put
from benchmarks.attack.data import refcoco
from benchmarks.attack.desk import (
    Attack,
    Desk,
    chat,
    coco,
    edit_json,
    evaluate,
    merge,
    preview,
    train,
    write_image,
)
from benchmarks.attack.pickles import in_deepspeed

IN_MODELS, IN_DATA = "files of a model that lead outside", "data that lead outside"


def _vocab_file(key: str, desk: Desk) -> int:
    """A tokenizer whose settings name a file outside, which a copy of the model would carry away."""
    folder = desk.copy_model()
    (folder / "tokenizer.model").unlink(missing_ok=True)
    edit_json(folder / "tokenizer_config.json", put(key, value=str(desk.outside / "secret.txt")))
    import merge_lora_weights_and_save_hf_model as script

    return script.main([f"--weight={folder}", "--save_path=merged", f"--version={folder}"])


def _vocab_file_of_processor(key: str, desk: Desk) -> int:
    from model.checkpoints.load import load_model

    folder = desk.copy_model()
    (folder / "tokenizer.model").unlink(missing_ok=True)
    edit_json(folder / "tokenizer_config.json", put(key, value=str(desk.outside / "secret.txt")))
    load_model(folder)[0].save_pretrained("merged")
    return 0


def _shard_outside(name: str, desk: Desk) -> int:
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


def model_attacks() -> Iterator[Attack]:
    """Names in a model's folder and of a run that lead elsewhere."""
    for key in ("vocab_file", "tokenizer_file", "added_tokens_file", "special_tokens_map_file"):
        yield Attack(IN_MODELS, f"{key} of a tokenizer, merged", partial(_vocab_file, key))
        yield Attack(
            IN_MODELS,
            f"{key} of a tokenizer, saved",
            partial(_vocab_file_of_processor, key),
            key == "vocab_file",
        )
    yield Attack(IN_MODELS, "a shard by ..", partial(_shard_outside, "../../outside/model.safetensors"))
    yield Attack(IN_MODELS, "an absolute shard", partial(_shard_outside, "OUTSIDE/model.safetensors"), True)
    for text in ("../../outside", "/etc", "", "\x1b[31mred"):
        yield Attack(IN_MODELS, f"latest is {text!a}", partial(_latest, text))
    for name in ("../../x", "/tmp/../x", "a/b", "x" * 300, "\x1b[31m"):
        yield Attack(IN_MODELS, f"--exp_name {name[:20]!a}", partial(_exp_name, name))


def _named(name: str, kind: str, command: str, desk: Desk) -> int:
    """An entry of own data that names a file outside of its folder."""
    name = name.replace("OUTSIDE", str(desk.outside))
    folder = desk.here / "mine"
    folder.mkdir()
    write_image(folder / "b.png")
    line = {
        "image": "b.png",
        "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "[SEG]"}],
        "masks": [[[2, 2, 20, 2, 20, 20]]],
    }
    for split in ("train", "val"):
        if kind == "own_coco":
            (folder / f"{split}.json").write_text(json.dumps(coco(["dog"], ["b.png", name])))
        else:
            other = line | ({"image": name} if kind == "own_jsonl" else {"masks": [name]})
            (folder / f"{split}.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(other)}\n")
    entry = "own_coco:./mine" if kind == "own_coco" else "own_jsonl:./mine"
    return preview(entry) if command == "preview" else evaluate(desk.model, entry)


def _refcoco_name(name: str, desk: Desk) -> int:
    name = name.replace("OUTSIDE", str(desk.outside))
    return refcoco(
        lambda instances: instances["images"][0].update(file_name=name), None, desk, command="preview"
    )


def data_attacks() -> Iterator[Attack]:
    """Images, masks and references by names that leave the data's folder."""
    names = {
        "..": "../../outside/secret.png", "absolute": "OUTSIDE/secret.png", "file URL": "file://OUTSIDE/secret.png",
        "encoded": "..%2f..%2foutside%2fsecret.png", "backslashes": "..\\..\\outside\\secret.png",
        "through a folder": "x/../../../outside/secret.png", "home": "~/../OUTSIDE/secret.png",
        "not an image": "../../outside/secret.txt",
    }  # fmt: skip
    for what, name in names.items():
        for kind in ("own_coco", "own_jsonl", "a mask of own_jsonl"):
            for command in ("preview", "test_sem"):
                quick = what == ".." and command == "preview"
                yield Attack(
                    IN_DATA, f"{kind}, {what}, {command}", partial(_named, name, kind, command), quick
                )
    for name in ("../../../../outside/secret.png", "OUTSIDE/secret.png"):
        yield Attack(IN_DATA, f"refcoco, {name}", partial(_refcoco_name, name))


def attacks() -> Iterator[Attack]:
    yield from model_attacks()
    yield from data_attacks()
