"""PACO-LVIS."""

from utils.data.datasets.coco_parts import PartDataset


class PacoLvis(PartDataset):
    """PACO-LVIS: 75 things and 456 of their parts, on COCO's images ("train2017/..." in `file_name`).

    As in LVIS, an image's `neg_category_ids` are verified to be absent, and of its `not_exhaustive_category_ids` only
    some instances are annotated. About all other categories without annotation nothing is known.
    """

    name = "paco_lvis"
    annotation_files = (
        "vlpart/paco/annotations/paco_lvis_v1_train.json",
        "vlpart/paco/annotations/paco_lvis_v1/paco_lvis_v1_train.json",
    )
    image_folders = ("coco",)
