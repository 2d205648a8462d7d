"""Cityscapes."""

from collections.abc import Iterator
from pathlib import Path

from utils.data import storage
from utils.data.class_lists import load_class_list, load_id_table
from utils.data.coverage import MISSING, UNLABELLED
from utils.data.files import locate, visible
from utils.data.semantic import SemanticDataset

IMAGE_SUFFIX = "_leftImg8bit.png"
LABEL_SUFFIX = "_gtFine_labelIds.png"


class Cityscapes(SemanticDataset):
    """Cityscapes, fine annotations: the 19 training classes of the labelIds; all other ids are ignored."""

    name = "cityscapes"
    classes = load_class_list("cityscapes")
    id_table = load_id_table("cityscapes")

    def find_pairs(self) -> Iterator[tuple[Path, Path]]:
        images = locate(self.dataset_dir, (f"cityscapes/leftImg8bit/{self.split}",), self.name)
        labels = locate(self.dataset_dir, (f"cityscapes/gtFine/{self.split}",), self.name)
        used = set()
        for image_path in files_of_cities(images, IMAGE_SUFFIX):
            stem = image_path.name.removesuffix(IMAGE_SUFFIX)
            label_path = labels / image_path.parent.name / f"{stem}{LABEL_SUFFIX}"
            used.add(label_path)
            if storage.is_named(label_path):
                yield image_path, label_path
            else:
                self.drop(image_path, f"no label {label_path}", UNLABELLED)
        for label_path in files_of_cities(labels, LABEL_SUFFIX):
            if label_path not in used:
                self.drop(label_path, f"no image of it in {images}", MISSING)


def files_of_cities(folder: Path, suffix: str) -> list[Path]:
    """The files CITY/*`suffix` below a folder, sorted; hidden ones are skipped."""
    cities = (city for city in visible(folder) if storage.is_folder(city))
    return [path for city in cities for path in visible(city) if path.name.endswith(suffix)]
