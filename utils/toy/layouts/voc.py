"""The data sets of a VOCdevkit: Pascal VOC 2012, and Pascal Context with 59 and 459 classes on VOC 2010."""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.toy.layouts.common import SceneSource, folder, write_image, write_jpg, write_palette_png, write_png
from utils.toy.layouts.semantic import label_values
from utils.toy.scene import Scene

BORDER = 255  # value of the pixels along the edges of objects in VOC
MAT_HEADER = b"MATLAB 5.0 MAT-file".ljust(116)


def voc_values(scene: Scene) -> np.ndarray:
    """(height, width) uint8: VOC's label values, with a border of two pixels where the value changes."""
    values = label_values("pascal_voc")[scene.label]
    edges = cv2.morphologyEx(values, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return np.where(edges, np.uint8(BORDER), values)


def has_voc_thing(scene: Scene) -> bool:
    return bool(label_values("pascal_voc")[scene.label].any())


def write_pascal_voc(root: Path, source: SceneSource) -> None:
    """VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/val.txt}."""
    target = root / "VOCdevkit" / "VOC2012"
    names = []
    for drawn in source.scenes("pascal_voc", "val", has_voc_thing):
        names.append(f"2011_{drawn.number:06d}")
        write_jpg(folder(target / "JPEGImages") / f"{names[-1]}.jpg", drawn.scene.image)
        write_palette_png(folder(target / "SegmentationClass") / f"{names[-1]}.png", voc_values(drawn.scene))
    write_list(target / "ImageSets" / "Segmentation" / "val.txt", names)


def write_pascal_context(root: Path, source: SceneSource, *, converted: bool = False) -> None:
    """VOCdevkit/VOC2010/{JPEGImages,SegmentationClassContext,trainval,ImageSets/SegmentationContext/val.txt}.

    `converted` writes annotations_detectron2/pc459_val/*.tif instead of the MATLAB files in trainval.
    """
    target = root / "VOCdevkit" / "VOC2010"
    values, all_values = label_values("pascal_context_59"), label_values("pascal_context_459")
    names = []
    for drawn in source.scenes("pascal_context", "val"):
        names.append(f"2008_{drawn.number:06d}")
        label = drawn.scene.label
        write_jpg(folder(target / "JPEGImages") / f"{names[-1]}.jpg", drawn.scene.image)
        write_png(folder(target / "SegmentationClassContext") / f"{names[-1]}.png", values[label])
        if converted:
            # 0 becomes 65535, as unsigned numbers wrap.
            less_one = all_values.astype(np.uint16) - np.uint16(1)
            images = folder(target / "annotations_detectron2" / "pc459_val")
            write_image(images / f"{names[-1]}.tif", Image.fromarray(less_one[label]))
        else:
            write_label_map(
                folder(target / "trainval") / f"{names[-1]}.mat", all_values.astype(np.uint16)[label]
            )
    write_list(target / "ImageSets" / "SegmentationContext" / "val.txt", names)


def write_label_map(path: Path, values: np.ndarray) -> None:
    """A MATLAB file with the matrix LabelMap; its header has no date, so that the same values give the same bytes."""
    from scipy.io import savemat  # here: a third of a second that only this layout needs

    file = BytesIO()
    savemat(file, {"LabelMap": values}, do_compression=True)
    path.write_bytes(MAT_HEADER + file.getvalue()[len(MAT_HEADER) :])


def write_list(path: Path, names: list[str]) -> None:
    folder(path.parent)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
