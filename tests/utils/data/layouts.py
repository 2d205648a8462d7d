"""Miniature data sets in the official layouts, drawn pixel by pixel so that tests know every mask."""

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 24, 32


def seeded_image(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width, 3) uint8 noise: different for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def blocks(values: list[int], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width) uint8, or uint16 where a value needs it, of upright stripes, one a value."""
    stripes = np.array(values, dtype=np.uint8 if max(values) < 256 else np.uint16)
    return np.repeat(stripes, -(-width // len(values)))[None, :width].repeat(height, 0)


def write_ade20k(root: Path, labels: list[np.ndarray], split: str = "training") -> None:
    for index, label in enumerate(labels):
        name = f"ADE_{split}_{index:08d}"
        save(root / f"ade20k/images/{split}/{name}.jpg", seeded_image(index, *label.shape))
        save(root / f"ade20k/annotations/{split}/{name}.png", label)


def write_cocostuff(root: Path, labels: list[np.ndarray], split: str = "train2017") -> None:
    for index, label in enumerate(labels):
        save(root / f"coco/{split}/{index:012d}.jpg", seeded_image(index, *label.shape))
        save(root / f"cocostuff/{split}/{index:012d}.png", label)


def write_cityscapes(root: Path, labels: list[np.ndarray], split: str = "train") -> None:
    for index, label in enumerate(labels):
        name = f"ulm_{index:06d}_000019"
        save(
            root / f"cityscapes/leftImg8bit/{split}/ulm/{name}_leftImg8bit.png",
            seeded_image(index, *label.shape),
        )
        save(root / f"cityscapes/gtFine/{split}/ulm/{name}_gtFine_labelIds.png", label)
        save(root / f"cityscapes/gtFine/{split}/ulm/{name}_gtFine_color.png", seeded_image(0, *label.shape))


def box_polygon(x: int, y: int, width: int, height: int) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def compressed_rle(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def uncompressed_rle(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.astype(np.uint8).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = [0, *edges.tolist(), flat.size]
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": counts if not flat[0] else [0, *counts]}


def reference(
    ref_id: int, ann_id: int | list[int], image_id: int, split: str, *sentences: str
) -> dict[str, Any]:
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": 1,
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "image_id": image_id,
        "split": split,
        "sent_ids": [ref_id * 10 + k for k in range(len(sentences))],
        "sentences": [
            {"sent_id": ref_id * 10 + k, "sent": sent, "raw": sent.title(), "tokens": sent.split()}
            for k, sent in enumerate(sentences)
        ],
    }


def write_refer(
    root: Path,
    name: str,
    refs: list[dict[str, Any]],
    segmentations: dict[int, Any],
    image_ids: list[int],
    *,
    refs_file: str = "refs(unc).p",
    image_dir: str = "mscoco/images/train2014",
    file_name: str = "COCO_train2014_{:012d}.jpg",
) -> None:
    """References, COCO instances (all annotations on the first image), and the images."""
    images = [
        {"id": i, "file_name": file_name.format(i), "height": HEIGHT, "width": WIDTH} for i in image_ids
    ]
    annotations = [
        {"id": ann_id, "image_id": image_ids[0], "category_id": 1, "segmentation": segmentation}
        for ann_id, segmentation in segmentations.items()
    ]
    categories = [{"id": 1, "name": "thing", "supercategory": "thing"}]
    folder = root / "refer_seg" / name
    save_json(
        folder / "instances.json", {"images": images, "annotations": annotations, "categories": categories}
    )
    if refs_file.endswith(".json"):
        save_json(folder / refs_file, refs)
    else:
        (folder / refs_file).write_bytes(pickle.dumps(refs))
    for image in images:
        save(root / "refer_seg/images" / image_dir / image["file_name"], seeded_image(image["id"]))


def write_reason_seg(root: Path, split: str, name: str, annotation: Any) -> None:
    folder = root / "reason_seg/ReasonSeg" / split
    save(folder / f"{name}.jpg", seeded_image(len(name)))
    save_json(folder / f"{name}.json", annotation)


def drawn(points: list[list[int]], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A polygon with its outline, as OpenCV draws it."""
    canvas = np.zeros((height, width), dtype=np.uint8)
    corners = np.array([points], dtype=np.int32)
    cv2.fillPoly(cv2.polylines(canvas, corners, True, 1, 1), corners, 1)
    return canvas


def write_llava(root: Path, entries: list[dict[str, Any]], split: str = "train") -> None:
    suffix = "" if split == "train" else f"_{split}"
    save_json(root / f"llava_dataset/llava_instruct_150k{suffix}.json", entries)
    for entry in entries:
        save(root / f"coco/{split}2017" / entry["image"], seeded_image(0))


def dialogue(image: str, *texts: str) -> dict[str, Any]:
    turns = [
        {"from": "gpt" if k % 2 else "human", "value": text if k else f"{text}\n<image>"}
        for k, text in enumerate(texts)
    ]
    return {"id": image.split(".")[0], "image": image, "conversations": turns}
