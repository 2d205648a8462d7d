"""COCO files of a few boxes, their images, and what is drawn from them."""

import numpy as np

from tests.utils.data.layouts import HEIGHT, WIDTH, box_polygon, save, save_json, seeded_image
from utils.data.registry import parse_entry

BOX = box_polygon(2, 3, 10, 8)
NAMES = ("Boat", "traffic_light", "gull_(bird)")
SPOKEN = ("boat", "traffic light", "gull")


def box(x, y, width, height):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def annotation(category_id, segmentation, image_id=1, **more):
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, **more}


def content(*annotations, num_images=1, **of_image):
    images = [{"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH, **of_image}
              for k in range(1, num_images + 1)]  # fmt: skip
    categories = [{"id": 5 * k, "name": name} for k, name in enumerate(NAMES, start=1)]  # ids with gaps
    return {"images": images, "annotations": list(annotations), "categories": categories}


def write(root, annotations, name="boats.json", image_dir=""):
    path = save_json(root / name, annotations)
    for image in annotations["images"]:
        save(root / image_dir / image["file_name"], seeded_image(image["id"]))
    return path


def training(path, *fields):
    return parse_entry("|".join((f"own_coco:{path}", *fields)), "--dataset").open("nowhere", training=True)


def draws(dataset, recipe, count=20):
    """Samples, each with {class name: present?} and {class name: mask}."""
    for seed in range(count):
        sample = dataset.draw(np.random.default_rng(seed), recipe)
        (answer,) = sample.conversations[0].answers
        choices = recipe.format.parse(answer)
        named = [name for name, present in choices if present]
        yield dict(choices), dict(zip(named, sample.masks, strict=True))


def spoiled(key, position, **changes):
    """A file in which one entry has `changes`; a value None removes the key."""
    made = content(annotation(5, [BOX]), num_images=2)
    made[key][position] = {k: v for k, v in (made[key][position] | changes).items() if v is not None}
    return made
