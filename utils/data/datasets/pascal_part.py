"""Pascal-Part."""

from utils.data.datasets.coco_parts import PartDataset


class PascalPart(PartDataset):
    """Pascal-Part in COCO's format (as in VLPart): parts of 20 things. No class is known to be absent."""

    name = "pascal_part"
    annotation_files = ("vlpart/pascal_part/train.json",)
    image_folders = ("vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages", "VOCdevkit/VOC2010/JPEGImages")
