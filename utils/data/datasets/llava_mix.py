"""LLaVA-1.5's instruction mixture of 665k entries: several sources, several image folders."""

from __future__ import annotations

from pathlib import Path

from utils.data.datasets.llava_instruct import DialogueDataset
from utils.data.files import locate

FILE_NAME = "llava_v1_5_mix665k.json"


class LlavaMix(DialogueDataset):
    """llava_v1_5_mix665k.json; in `llava_dataset`, or beside the image folders, where LLaVA's own scripts have it.

    The image names contain their folders, which are in `dataset_dir`: coco/train2017, gqa/images, ocr_vqa/images,
    textvqa/train_images, vg/VG_100K and vg/VG_100K_2. Entries without an image are conversations with a language
    model (ShareGPT); a sample of this family has an image, so they are left out and counted.
    """

    name = "llava_mix"
    splits = ("train",)
    val_split = None
    may_have_no_image = True

    def find_files(self) -> tuple[Path, Path]:
        path = locate(self.dataset_dir, (f"llava_dataset/{FILE_NAME}", FILE_NAME), self.name)
        return path, self.dataset_dir
