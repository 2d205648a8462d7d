"""COCO instances files as annotation tools write them: ids, sizes and file names in several forms.

The format: https://cocodataset.org/#format-data; LVIS's additions: https://www.lvisdataset.org/dataset.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.errors import UserError
from utils.data.class_lists import normalize_name
from utils.data.files import read_annotations, require_keys
from utils.data.polygons import short

logger = logging.getLogger(__name__)

ID = int | str
LISTS: dict[str, dict[str, Any]] = {  # of the file -> what each entry of it must have
    "categories": {"id": ID, "name": str},
    "images": {"id": ID, "file_name": str},
    "annotations": {"image_id": ID, "category_id": ID},
}
A_TEXT, AN_ID = "a text", "an id, a whole number or a text"
WHOLE_NUMBER = re.compile(r"-?\d{1,18}(\.0+)?")
# Keys that a file of another tool or format has -> what it is.
FOREIGN_KEYS = (
    ({"shapes", "imagePath"}, "a file of labelme or X-AnyLabeling"),
    ({"_via_img_metadata"}, "a project of the VGG Image Annotator"),
    ({"regions", "filename"}, "an export of the VGG Image Annotator"),
    ({"data", "annotations"}, "an export of Label Studio as JSON"),
    ({"objects", "size"}, "an annotation of Supervisely"),
    ({"segmentation", "image_id", "score"}, "a list of COCO results"),
    ({"type", "features"}, "GeoJSON"),
)
CLASS_ID_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")  # of an image of LVIS
CHECKED_IF_THERE = frozenset({"height", "width", *CLASS_ID_LISTS})


def id_of(value: Any) -> Any:
    """An id in the form that ids are compared in: 1, 1.0, "1" and "1.0" become 1; any other text stays as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and WHOLE_NUMBER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return value


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO instances file: required keys and references are checked, ids are unified by `id_of`.

    Raises UserError naming the file, the entry and the fault.
    """
    content = read_annotations(path)
    if (tool := foreign_format(content)) and not (
        isinstance(content, dict) and LISTS.keys() <= content.keys()
    ):
        raise UserError(f"{path}: this is {tool}, not COCO instances; export as COCO instance segmentation")
    require_keys(content, tuple(LISTS), path)
    for name, keys in LISTS.items():
        if not isinstance(content[name], list):
            raise UserError(f"{path}: {name!r} must be a list, got {type(content[name]).__name__}")
        for position, entry in enumerate(content[name]):
            if name == "annotations" and _is_usual(entry):
                continue
            where = f"{path}: {name}[{position}]"
            if not isinstance(entry, dict):
                raise UserError(f"{where} is {short(entry)}, not an object with {', '.join(keys)}")
            _unify(entry)
            _check_entry(entry, keys, where)
    if not content["categories"]:
        raise UserError(f"{path}: no categories; they are the classes")
    image_ids = _unique_ids(content["images"], f"{path}: images")
    category_ids = _unique_ids(content["categories"], f"{path}: categories")
    for position, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] in image_ids and annotation["category_id"] in category_ids:
            continue
        for key, ids in (("image_id", image_ids), ("category_id", category_ids)):
            if annotation[key] not in ids:
                raise UserError(
                    f"{path}: annotations[{position}] has {key} {short(annotation[key])}, which no entry of "
                    f"{'images' if key == 'image_id' else 'categories'} has; add it, or remove the annotation"
                )
    return content


def _is_usual(annotation: Any) -> bool:
    """Whether an annotation has whole numbers for ids and nothing else that is checked, as in COCO."""
    return (
        type(annotation) is dict
        and type(annotation.get("image_id")) is int
        and type(annotation.get("category_id")) is int
        and type(annotation.get("id", 0)) is int
        and annotation.keys().isdisjoint(CHECKED_IF_THERE)
    )


def foreign_format(content: Any) -> str:
    """Whose format an annotation file is in that is not COCO's, as far as its keys tell; "" if they do not."""
    first = content[0] if isinstance(content, list) and content else content
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        first = next(iter(content.values()))  # of VIA, an entry for each image
    keys = set(first) if isinstance(first, dict) else set()
    if isinstance(content, dict):
        keys |= content.keys()
    for needed, name in FOREIGN_KEYS:
        if needed <= keys:
            return name
    return ""


def _unify(entry: dict[str, Any]) -> None:
    """Ids, sizes and the file name of an entry in their usual form, in place."""
    for key in ("id", "image_id", "category_id"):
        if key in entry:
            entry[key] = id_of(entry[key])
    for key in ("height", "width"):
        if isinstance(entry.get(key), float) and entry[key].is_integer():
            entry[key] = int(entry[key])
        elif key in entry and entry[key] is None:  # as good as not stated
            del entry[key]
    if entry.get("file_name") is None and isinstance(entry.get("coco_url"), str):
        entry["file_name"] = entry["coco_url"]  # LVIS has no other name


def _check_entry(entry: Mapping[str, Any], keys: Mapping[str, Any], where: str) -> None:
    for key, kind in keys.items():
        if key not in entry:
            raise UserError(f"{where} has no {key!r}; in COCO instances each of them has {', '.join(keys)}")
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            raise UserError(
                f"{where}: {key!r} is {short(entry[key])}; it is {A_TEXT if kind is str else AN_ID}"
            )
    for key in ("height", "width"):
        if key in entry and (type(entry[key]) is not int or entry[key] < 1):
            raise UserError(f"{where}: {key!r} is {short(entry[key])}; it is a number of pixels, or left out")
    for key in CLASS_ID_LISTS:
        if not isinstance(entry.get(key) or [], list):
            raise UserError(
                f"{where}: {key!r} is {short(entry[key])}; it is a list of category ids, or left out"
            )


def _unique_ids(entries: Sequence[Mapping[str, Any]], what: str) -> set[Any]:
    ids = set()
    for entry in entries:
        if entry["id"] in ids:
            raise UserError(f"{what}: id {short(entry['id'])} comes twice; ids tell entries apart")
        ids.add(entry["id"])
    return ids


def classes_in(image: Mapping[str, Any], key: str, class_of: Mapping[Any, int]) -> set[int]:
    """The classes in one of LVIS's category lists of an image; categories unknown to the file are skipped."""
    ids = image.get(key) or []
    if not isinstance(ids, list):
        raise UserError(f"{key!r} is {short(ids)}; it is a list of category ids")
    return {class_of[category] for written in ids if (category := id_of(written)) in class_of}


TOOL_WORDS = ("_background_", "__background__", "__ignore__")  # of labelme and torchvision, for no class


def means_no_class(name: str) -> bool:
    """Whether a category is one that tools put into every list for what has no class."""
    return name.strip().lower() in TOOL_WORDS


def split_groups(content: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The categories that are classes, and the names of those that are not.

    A category that is the supercategory of another one and that no annotation or list of an image refers to is only a
    heading (Roboflow writes one for every project): nobody looked for it, so it is neither present nor absent. The
    same holds for categories that tools add for pixels without a class, such as labelme's `_background_`.
    """
    used = {annotation["category_id"] for annotation in content["annotations"]}
    for image in content["images"]:
        used.update(id_of(written) for key in CLASS_ID_LISTS for written in image.get(key) or ())
    groups = Counter(
        normalize_name(category["supercategory"])
        for category in content["categories"]
        if isinstance(category.get("supercategory"), str)
    )
    classes, headings = [], []
    for category in content["categories"]:
        name = normalize_name(category["name"])
        above = category.get("supercategory")
        is_own = isinstance(above, str) and normalize_name(above) == name
        if category["id"] not in used and (groups[name] > is_own or means_no_class(category["name"])):
            headings.append(category["name"])
        else:
            classes.append(category)
    return classes, headings


def speakable(name: str) -> str:
    """The spoken form of a category's name: "car" for "Car_(automobile)", "laptop computer" for "laptop_computer"."""
    return _words(re.sub(r"_\(.*?\)", "", name))


def spoken_names(names: Sequence[str]) -> list[str]:
    """The spoken form of each name; `_(...)` is kept only where names would be the same without it.

    "bow_(weapon)" and "bow_(decorative_ribbons)" are "bow (weapon)" and "bow (decorative ribbons)".
    """
    distinct = dict.fromkeys(names)
    short_names = {name: speakable(name) for name in distinct}
    count = Counter(normalize_name(spoken) for spoken in short_names.values())
    return [
        short_names[name] if count[normalize_name(short_names[name])] == 1 else _words(name) for name in names
    ]


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
