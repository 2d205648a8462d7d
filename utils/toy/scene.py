"""Cartoon scenes with exact labels for every pixel: `draw_scene(seed, index)` is a pure function of its arguments.

A scene has a backdrop of stuff (sky, mountain, sea, sand, grass, road) and things that stand, swim or fly in it.
The names are those of the ADE20K list; the label writers of utils.toy.world map them to the other lists.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.toy.shapes import DRAW, PALETTE, RGB, Canvas, shade

STUFF = ("sky", "mountain", "sea", "sand", "grass", "road")
THINGS = tuple(DRAW)
CLASSES = STUFF + THINGS
SIZES = ((256, 256), (240, 288), (288, 240), (224, 288), (256, 304))  # (height, width)
MIN_VISIBLE_PIXELS = 60
MIN_VISIBLE_FRACTION = 0.35

# Height of a thing at the foot of the image, as a fraction of the image's height.
HEIGHTS = {
    "tree": 0.42, "house": 0.34, "building": 0.56, "person": 0.34, "car": 0.17, "bus": 0.25, "boat": 0.28,
    "airplane": 0.11, "ball": 0.12, "flag": 0.34, "bench": 0.17, "streetlight": 0.56, "tent": 0.25, "fence": 0.16,
}  # fmt: skip
SHADOWS = {"car": 1.0, "bus": 1.0, "bench": 0.9, "tent": 0.8, "fence": 0.0, "house": 0.6, "flag": 0.12,
           "streetlight": 0.12, "ball": 0.5}  # fmt: skip  # half width, in heights
COLOURED = ("person", "car", "bus", "boat", "ball", "flag", "tent", "airplane")
WALLS: dict[str, RGB] = {"grey": (150, 152, 160), "brown": (150, 110, 84), "pink": (226, 172, 168)}
# What may stand on what, with the relative frequency of each thing there.
DWELLERS: dict[str, dict[str, float]] = {
    "grass": {"tree": 5, "house": 3, "person": 2, "ball": 2, "bench": 2, "flag": 2, "tent": 2, "fence": 2,
              "streetlight": 1},
    "road": {"car": 4, "bus": 3, "person": 2, "streetlight": 2, "ball": 1},
    "sand": {"person": 3, "ball": 3, "tent": 2, "flag": 2, "bench": 1, "fence": 1},
    "sea": {"boat": 1},
    "sky": {"airplane": 1},
}  # fmt: skip
PLACES: dict[str, tuple[str, ...]] = {  # ground stripes from the horizon down
    "park": ("grass",),
    "street": ("road",),
    "country road": ("grass", "road"),
    "avenue": ("road", "grass"),
    "beach": ("sea", "sand"),
    "coast": ("sea", "grass"),
    "harbour": ("sea", "road"),
    "open sea": ("sea",),
    "dunes": ("sand",),
}


@dataclass(frozen=True)
class Thing:
    """One visible thing. `box` is (left, top, right, bottom) of its visible pixels, exclusive at the end."""

    name: str
    colour: str | None  # colour name, for things that have one
    on: str  # the stuff that it stands on, swims in or flies in
    mask: np.ndarray  # (height, width) bool, visible pixels only
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the box's middle, in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """An image, the class of each pixel, and its things from back to front."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    label: np.ndarray  # (height, width) uint8, index into CLASSES
    things: tuple[Thing, ...]
    place: str

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the classes that have at least one pixel, in the order of CLASSES."""
        return tuple(CLASSES[index] for index in np.unique(self.label))

    def mask_of(self, name: str) -> np.ndarray:
        """(height, width) bool, all pixels of a class."""
        return self.label == CLASSES.index(name)


@dataclass(frozen=True)
class _Plan:
    """Where one thing will be drawn; `seed` fixes its details, so that it can be drawn again identically."""

    name: str
    colour: str | None
    on: str
    x: float
    y: float
    height: float
    seed: int


def _plan_stripes(rng: np.random.Generator, height: int) -> tuple[str, list[tuple[str, int, int]]]:
    """Choose a place; return it and its stripes (stuff, first row, last row + 1) from top to bottom."""
    place = list(PLACES)[int(rng.integers(len(PLACES)))]
    grounds = PLACES[place]
    horizon = 0 if rng.random() < 0.15 else int(height * rng.uniform(0.28, 0.55))
    stripes = [("sky", 0, horizon)] if horizon else []
    cuts = [horizon, height]
    if len(grounds) == 2:
        cuts.insert(1, int(horizon + (height - horizon) * rng.uniform(0.3, 0.55)))
    stripes += [(name, cuts[k], cuts[k + 1]) for k, name in enumerate(grounds)]
    return place, stripes


def _plan_thing(
    rng: np.random.Generator, name: str, stripe: tuple[str, int, int], size: tuple[int, int]
) -> _Plan:
    height, width = size
    on, first, last = stripe
    if name == "airplane":
        y, depth = rng.uniform(max(first + 0.16 * height, 0), max(last * 0.8, first + 0.2 * height)), 1.0
    else:
        margin = 0.12 * (last - first)
        y = rng.uniform(first + margin, last - margin * 0.3)
        depth = 0.5 + 0.5 * y / height
    tall = HEIGHTS[name] * height * depth * rng.uniform(0.75, 1.2)
    colour: str | None = None
    if name in COLOURED:
        colour = list(PALETTE)[int(rng.integers(len(PALETTE)))]
    elif name in ("house", "building"):
        colour = list(WALLS)[int(rng.integers(len(WALLS)))]
    return _Plan(name, colour, on, rng.uniform(0.08, 0.92) * width, y, tall, int(rng.integers(2**31)))


def _plan_things(
    rng: np.random.Generator, stripes: list[tuple[str, int, int]], size: tuple[int, int]
) -> list[_Plan]:
    plans = []
    for _ in range(int(rng.integers(2, 8))):
        stripe = stripes[int(rng.choice(len(stripes), p=_stripe_weights(stripes)))]
        names, weights = zip(*DWELLERS[stripe[0]].items(), strict=True)
        name = names[int(rng.choice(len(names), p=np.asarray(weights) / sum(weights)))]
        plans.append(_plan_thing(rng, name, stripe, size))
        if rng.random() < 0.35 and name not in (
            "building",
            "house",
            "fence",
        ):  # a second one, so that expressions have to distinguish
            plans.append(_plan_thing(rng, name, stripe, size))
    if stripes[0][0] == "sky" and stripes[1][0] != "sea" and rng.random() < 0.5:  # a skyline on the horizon
        ground = stripes[1]
        for _ in range(int(rng.integers(1, 4))):
            plan = _plan_thing(rng, "building", (ground[0], ground[1], ground[1] + 8), size)
            plans.append(plan)
    return sorted(plans, key=lambda plan: plan.y)


def _stripe_weights(stripes: list[tuple[str, int, int]]) -> np.ndarray:
    weights = np.asarray([{"sky": 0.2, "sea": 0.5}.get(name, 1.0) for name, _, _ in stripes])
    return weights / weights.sum()


def _paint_stuff(canvas: Canvas, rng: np.random.Generator, stripes: list[tuple[str, int, int]]) -> None:
    width = canvas.owner.shape[1] // canvas.scale
    base: dict[str, RGB] = {
        "sky": ((126, 186, 236), (238, 170, 120), (176, 190, 204))[int(rng.choice(3, p=[0.65, 0.15, 0.2]))],
        "sea": shade((34, 100, 158), rng.uniform(0.8, 1.25)),
        "sand": shade((226, 204, 150), rng.uniform(0.85, 1.08)),
        "grass": shade((102, 168, 74), rng.uniform(0.75, 1.2)),
        "road": shade((98, 98, 104), rng.uniform(0.75, 1.2)),
    }
    for name, first, last in stripes:
        canvas.current = STUFF.index(name)
        canvas.rectangle(0, first, width, last, base[name])
    if stripes[0][0] == "sky" and rng.random() < 0.4:
        canvas.current = STUFF.index("mountain")
        foot = stripes[0][2]
        rock = shade((122, 112, 126), rng.uniform(0.75, 1.2))
        for _ in range(int(rng.integers(1, 4))):
            x, half = rng.uniform(0, width), rng.uniform(0.18, 0.4) * width
            top = foot - rng.uniform(0.35, 0.8) * foot
            canvas.polygon([(x - half, foot), (x, top), (x + half, foot)], shade(rock, rng.uniform(0.9, 1.1)))
            canvas.polygon([(x - 0.16 * half, top + 0.16 * (foot - top)), (x, top),
                            (x + 0.16 * half, top + 0.16 * (foot - top))], (240, 244, 250))  # fmt: skip
    _paint_details(canvas, rng, stripes, width)


def _paint_details(
    canvas: Canvas, rng: np.random.Generator, stripes: list[tuple[str, int, int]], width: int
) -> None:
    """Clouds, waves, lane marks and tufts: pixels that keep the stripe's label."""
    for name, first, last in stripes:
        if name == "sky" and rng.random() < 0.7:
            for _ in range(int(rng.integers(1, 5))):
                x, y = rng.uniform(0, width), rng.uniform(first, max(last * 0.6, first + 1))
                for _ in range(3):
                    dx, dy = rng.uniform(-16, 16), rng.uniform(-4, 4)
                    size = rng.uniform(8, 18)
                    canvas.ellipse(x + dx, y + dy, size, 0.45 * size, (250, 250, 252), owned=False)
        elif name == "sea":
            for _ in range(int(rng.integers(6, 18))):
                x, y, half = rng.uniform(0, width), rng.uniform(first + 2, last), rng.uniform(5, 18)
                points = [(x - half, y), (x, y - 2), (x + half, y), (x, y + 1)]
                canvas.polygon(points, (128, 184, 216), owned=False)
        elif name == "road":
            middle = (first + last) / 2
            for x in np.arange(rng.uniform(0, 30), width, 44):
                points = [(x, middle - 2), (x + 22, middle - 2), (x + 20, middle + 2), (x - 2, middle + 2)]
                canvas.polygon(points, (232, 230, 214), owned=False)
        elif name in ("grass", "sand"):
            tuft = (70, 128, 52) if name == "grass" else (196, 170, 118)
            for _ in range(int(rng.integers(10, 40))):
                x, y = rng.uniform(0, width), rng.uniform(first + 3, last)
                canvas.polygon([(x - 3, y), (x, y - 5), (x + 3, y)], tuft, owned=False)


def _light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Time of day, a brightness gradient across the image and slight noise."""
    height, width = image.shape[:2]
    tint = rng.uniform(0.72, 1.12) * (1 + rng.uniform(-0.06, 0.06, 3))
    slope_x, slope_y = rng.uniform(-0.14, 0.14, 2)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    grain = rng.standard_normal((height // 2, width // 2), dtype=np.float32) * rng.uniform(1, 6)
    noise = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    lit = (
        image.astype(np.float32) * (tint.astype(np.float32) * (1 + slope_x * across + slope_y * down)) + noise
    )
    return np.clip(lit, 0, 255).astype(np.uint8)


def _render(
    seed: tuple[int, ...], size: tuple[int, int], stripes: list[tuple[str, int, int]], plans: list[_Plan]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draws; returns the image, each pixel's owner (stuff first, then plans) and each plan's unoccluded area."""
    rng = np.random.default_rng((*seed, 1))
    canvas = Canvas(*size)
    _paint_stuff(canvas, rng, stripes)
    areas = []
    for index, plan in enumerate(plans):
        details = np.random.default_rng(plan.seed)
        colour = PALETTE.get(plan.colour or "") or WALLS.get(plan.colour or "") or (128, 128, 128)
        if plan.on not in ("sky", "sea"):
            half = SHADOWS.get(plan.name, 0.3) * plan.height
            dark = shade((70, 72, 66), details.uniform(0.8, 1.1))
            canvas.ellipse(plan.x, plan.y, half, 0.06 * plan.height + 1, dark, owned=False)
        canvas.current = len(STUFF) + index
        DRAW[plan.name](
            canvas, plan.x, plan.y, plan.height, shade(colour, details.uniform(0.85, 1.1)), details
        )
        areas.append(int((canvas.owner == canvas.current).sum()) // canvas.scale**2)
    image, owner = canvas.finish()
    return _light(image, rng), owner, areas


def draw_scene(seed: int, index: int) -> Scene:
    """Draw scene `index` of world `seed`; things that would be (almost) completely occluded are left out."""
    key = (seed, index)
    rng = np.random.default_rng(key)
    size = SIZES[int(rng.integers(len(SIZES)))]
    place, stripes = _plan_stripes(rng, size[0])
    plans = _plan_things(rng, stripes, size)
    while True:
        image, owner, areas = _render(key, size, stripes, plans)
        visible = np.bincount(owner.ravel(), minlength=256)[len(STUFF) : len(STUFF) + len(plans)]
        kept = [
            plan
            for plan, seen, area in zip(plans, visible, areas, strict=True)
            if seen >= MIN_VISIBLE_PIXELS and seen >= MIN_VISIBLE_FRACTION * area
        ]
        if len(kept) == len(plans):
            break
        plans = kept
    things = []
    class_of_owner = np.arange(256, dtype=np.uint8)
    for number, plan in enumerate(plans):
        mask = owner == len(STUFF) + number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        things.append(Thing(plan.name, plan.colour, plan.on, mask, box))
        class_of_owner[len(STUFF) + number] = CLASSES.index(plan.name)
    return Scene(image=image, label=class_of_owner[owner], things=tuple(things), place=place)
