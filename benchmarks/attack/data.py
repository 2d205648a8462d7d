"""Annotations of wrong types and absurd numbers; pickles that announce more than they hold."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.attack.desk import Attack, Desk, check, coco, preview, write_image
from benchmarks.attack.pickles import refer_data

TYPES = "annotations of wrong types"
Change = Callable[[dict[str, Any]], Any]
REFERENCE = {"ref_id": 1, "ann_id": 101, "image_id": 1, "split": "train", "category_id": 1,
             "sentences": [{"sent": "the dog", "raw": "the dog"}]}  # fmt: skip


def refcoco(
    change: Change | None, references: Any, desk: Desk, *, name: str = "refcoco", command: str = "check"
) -> int:
    refer_data(desk.here)
    root = desk.here / "refer_seg"
    if name != "refcoco":
        (root / "refcoco").rename(root / name)
    path = root / name / "instances.json"
    content = json.loads(path.read_text())
    if change is not None:
        change(content)
    path.write_text(json.dumps(content))
    refs = [REFERENCE] if references is None else references
    if name == "grefcoco":
        refs = [{**ref, "ann_id": [ref["ann_id"]]} if isinstance(ref, dict) else ref for ref in refs]
        (root / name / "grefs(unc).json").write_text(json.dumps(refs))
    else:
        (root / name / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    entry = ("refer_seg", f"--refer_seg_data={name}")
    return check(*entry) if command == "check" else preview(*entry)


def _own_coco(change: Change, desk: Desk) -> int:
    content = coco(["dog", "cat"], ["a.png"])
    change(content)
    (desk.here / "train.json").write_text(json.dumps(content))
    return check("own_coco:.")


def _put(*keys: Any, value: Any) -> Change:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


VALUES: dict[str, Any] = {
    "1e9": 1e9, "1e400": float("inf"), "NaN": float("nan"), "true": True, "null": None, "a text": "evil",
    "a list": [1], "an object": {"a": 1}, "2^70": 2**70, "-1": -1,
}  # fmt: skip
FIELDS: dict[str, tuple[Any, ...]] = {
    "annotations": ("annotations",), "images": ("images",), "categories": ("categories",),
    "annotations[0]": ("annotations", 0), "images[0]": ("images", 0), "categories[0]": ("categories", 0),
    "annotation id": ("annotations", 0, "id"), "image_id": ("annotations", 0, "image_id"),
    "category_id": ("annotations", 0, "category_id"), "segmentation": ("annotations", 0, "segmentation"),
    "polygon": ("annotations", 0, "segmentation", 0), "coordinate": ("annotations", 0, "segmentation", 0, 0),
    "image id": ("images", 0, "id"), "file_name": ("images", 0, "file_name"), "height": ("images", 0, "height"),
    "category name": ("categories", 0, "name"),
}  # fmt: skip
REFERENCES: dict[str, tuple[Any, ...]] = {
    "reference": (0,), "ann_id": (0, "ann_id"), "image_id": (0, "image_id"), "split": (0, "split"),
    "sentences": (0, "sentences"), "sentence": (0, "sentences", 0), "sent": (0, "sentences", 0, "sent"),
}  # fmt: skip
CODES: dict[str, Any] = {
    "a size of 1e9": {"size": [10**9, 10**9], "counts": [10**18]},
    "counts of 2^40": {"size": [30, 40], "counts": [2**40]},
    "counts below zero": {"size": [30, 40], "counts": [-5, 1205]},
    "counts that overflow": {"size": [30, 40], "counts": "~~~~~~~~~~~~~~~~~~~~"},
    "counts with a terminal's commands": {"size": [30, 40], "counts": "\x1b[31m"},
    "size a text": {"size": "big", "counts": "abc"},
    "counts an object": {"size": [30, 40], "counts": {}},
    "coordinates of 1e8": [[1e8, 1e8, 0, 1e8, 1e8, 0]],
    "coordinates of 1e308": [[1e308, -1e308, 0, 1e308, 1e308, 0]],
    "100,000 polygons": [[1, 1, 9, 1, 9, 9]] * 100_000,
    "a polygon of a million points": [[1, 1, 9, 1, 9, 9] * 300_000],
    "lists in lists": [[[[[[[[[[1]]]]]]]]]],
}  # fmt: skip
HUGE_PICKLES = {
    "bytearray of 8 GB": b"\x80\x05\x96" + (8 * 2**30).to_bytes(8, "little") + b"x.",
    "text of 4 GB": b"\x80\x02X" + (2**32 - 1).to_bytes(4, "little") + b"x.",
    "text of 2^62 bytes": b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x.",
    "bytes of 2^62": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",
    "memo index 2^31": b"\x80\x02]r\xff\xff\xff\x7f.",
    "memo index 10^18 as text": b"]p1000000000000000000\n.",
    "memo index 2^32 - 1": b"\x80\x02]r\xff\xff\xff\xff.",
    "frame of 2^62 bytes": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"].",
    "integer of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "integer of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "lists in lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "doubling lists": b"\x80\x02](lq\x00h\x00h\x00eq\x01(lh\x01h\x01e.",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "tuples that double": b"\x80\x02N" + b"2\x86" * 60 + b".",
    "nothing": b"",
    "a million marks": b"(" * 1_000_000 + b".",
    "next buffer": b"\x80\x05\x97.",
}  # fmt: skip


def _pickle(content: bytes, desk: Desk) -> int:
    refer_data(desk.here)
    (desk.here / "refer_seg/refcoco/refs(unc).p").write_bytes(content)
    return check("refer_seg", "--refer_seg_data=refcoco")


def _reference(keys: tuple[Any, ...], value: Any, desk: Desk) -> int:
    import copy

    refs = copy.deepcopy([REFERENCE, REFERENCE])
    _put(*keys, value=value)(refs)
    return refcoco(None, refs, desk)


def _reason(text: str, desk: Desk) -> int:
    folder = desk.here / "reason_seg/ReasonSeg/train"
    folder.mkdir(parents=True)
    (desk.here / "reason_seg/ReasonSeg/explanatory").mkdir()
    (desk.here / "reason_seg/ReasonSeg/explanatory/train.json").write_text("[]")
    for name in ("a", "b"):
        write_image(folder / f"{name}.jpg")
        (folder / f"{name}.json").write_text(
            json.dumps({"text": ["dog"], "is_sentence": False,
                        "shapes": [{"label": "target", "points": [[2, 2], [20, 2], [20, 20]]}]})
        )  # fmt: skip
    (folder / "b.json").write_text(text)
    return check("reason_seg")


def attacks() -> Iterator[Attack]:
    """A wrong value in each field, masks and pickles that announce too much."""
    for field, keys in FIELDS.items():
        for what, value in VALUES.items():
            first = (field, what) == ("annotations[0]", "1e9")
            yield Attack(TYPES, f"own_coco, {field} is {what}", partial(_own_coco, _put(*keys, value=value)))
            yield Attack(
                TYPES, f"refcoco, {field} is {what}", partial(refcoco, _put(*keys, value=value), None), first
            )
    for field in ("annotations[0]", "images[0]", "image_id"):
        for what in ("1e9", "true", "a list"):
            change = _put(*FIELDS[field], value=VALUES[what])
            yield Attack(
                TYPES, f"grefcoco, {field} is {what}", partial(refcoco, change, None, name="grefcoco")
            )
    for field, keys in REFERENCES.items():
        for what, value in VALUES.items():
            yield Attack(TYPES, f"refs, {field} is {what}", partial(_reference, keys, value))
    for what, code in CODES.items():
        change = _put(*FIELDS["segmentation"], value=code)
        yield Attack(TYPES, f"own_coco, {what}", partial(_own_coco, change))
        yield Attack(TYPES, f"refcoco, {what}", partial(refcoco, change, None, command="preview"))
    for what, content in HUGE_PICKLES.items():
        quick = what in ("bytearray of 8 GB", "memo index 2^31")
        yield Attack(TYPES, f"refs(unc).p, {what}", partial(_pickle, content), quick)
    shape = '{"text": ["dog"], "is_sentence": false, "shapes": [{"label": "target", "points": %s}]}'
    for what, text in {
        "a list": "[]", "a number": "5", "points a number": shape % "5",
        "points of 1e308": shape % "[[1e308, 1], [5, 5], [9, 1]]",
        "points of NaN": shape % "[[NaN, 1], [5, 5], [9, 1]]",
        "text a number": '{"text": 5, "is_sentence": true, "shapes": []}',
        "deep": "[" * 100_000,
    }.items():  # fmt: skip
        yield Attack(TYPES, f"ReasonSeg, {what}", partial(_reason, text))
