"""Cityscapes."""

from collections.abc import Iterator
from pathlib import Path

from utils.data.base import MISSING, UNLABELLED
from utils.data.class_lists import load_class_list, load_id_table
from utils.data.files import is_hidden, locate
from utils.data.semantic import SemanticDataset

IMAGE_SUFFIX = "_leftImg8bit.png"
LABEL_SUFFIX = "_gtFine_labelIds.png"


class Cityscapes(SemanticDataset):
    """Cityscapes, fine annotations: the 19 training classes among the labelIds; all other ids are ignored."""

    name = "cityscapes"
    classes = load_class_list("cityscapes")
    id_table = load_id_table("cityscapes")

    def find_pairs(self) -> Iterator[tuple[Path, Path]]:
        images = locate(self.dataset_dir, (f"cityscapes/leftImg8bit/{self.split}",), self.name)
        labels = locate(self.dataset_dir, (f"cityscapes/gtFine/{self.split}",), self.name)
        used = set()
        for image_path in sorted(images.glob(f"*/*{IMAGE_SUFFIX}")):
            if is_hidden(image_path.name) or is_hidden(image_path.parent.name):
                continue
            stem = image_path.name.removesuffix(IMAGE_SUFFIX)
            label_path = labels / image_path.parent.name / f"{stem}{LABEL_SUFFIX}"
            used.add(label_path)
            if label_path.exists():
                yield image_path, label_path
            else:
                self.drop(image_path, f"no label {label_path}", UNLABELLED)
        for label_path in sorted(set(labels.glob(f"*/*{LABEL_SUFFIX}")) - used):
            self.drop(label_path, f"no image of it in {images}", MISSING)
