"""How each kind of thing in the toy world is drawn: short functions of a canvas, a place, a size and a colour.

A thing stands at (x, y), the middle of its foot, and is `height` pixels tall; shapes scale with that.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

RGB = tuple[int, int, int]

PALETTE: dict[str, RGB] = {
    "red": (206, 44, 40),
    "blue": (40, 84, 200),
    "green": (38, 150, 66),
    "yellow": (240, 208, 42),
    "orange": (240, 134, 30),
    "purple": (138, 54, 168),
    "white": (242, 242, 238),
    "black": (38, 38, 44),
}
SKIN: tuple[RGB, ...] = ((244, 208, 178), (224, 172, 132), (164, 112, 76), (104, 70, 48))
GLASS: RGB = (188, 222, 238)
DARK: RGB = (46, 44, 48)


def shade(colour: RGB, factor: float) -> RGB:
    """The colour made darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (int(np.clip(channel * factor, 0, 255)) for channel in colour)
    return red, green, blue


class Canvas:
    """An image and the index of what is drawn at each pixel (its owner); both at `scale` times the final size."""

    def __init__(self, height: int, width: int, scale: int = 2) -> None:
        self.scale = scale
        self.image = np.zeros((height * scale, width * scale, 3), np.uint8)
        self.owner = np.full((height * scale, width * scale), 255, np.uint8)
        self.current = 255

    def polygon(self, points: Sequence[tuple[float, float]], colour: RGB, *, owned: bool = True) -> None:
        """Fill a polygon of (x, y) points in final pixels; `owned=False` paints without changing the labels."""
        corners = np.round(np.asarray(points, np.float64) * self.scale).astype(np.int32)
        cv2.fillPoly(self.image, [corners], colour)
        if owned:
            cv2.fillPoly(self.owner, [corners], int(self.current))

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: RGB) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: RGB, *, owned: bool = True) -> None:
        angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        points = list(zip(x + rx * np.cos(angles), y + ry * np.sin(angles), strict=True))
        self.polygon(points, colour, owned=owned)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The image (height, width, 3) uint8, anti-aliased, and its owners (height, width) uint8."""
        height, width = (size // self.scale for size in self.owner.shape)
        image = cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA)
        offset = self.scale // 2
        return image, self.owner[offset :: self.scale, offset :: self.scale].copy()


Draw = Callable[[Canvas, float, float, float, RGB, np.random.Generator], None]


def draw_tree(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    trunk = shade((112, 76, 44), rng.uniform(0.8, 1.2))
    leaves = shade((44, 118, 50), rng.uniform(0.7, 1.25))
    canvas.rectangle(x - 0.07 * height, y - 0.4 * height, x + 0.07 * height, y, trunk)
    if rng.random() < 0.4:  # a fir
        for step in range(3):
            top, half = y - height * (1 - 0.2 * step), height * (0.2 + 0.07 * step)
            canvas.polygon(
                [(x, top), (x - half, top + 0.42 * height), (x + half, top + 0.42 * height)], leaves
            )
        return
    canvas.ellipse(x, y - 0.66 * height, 0.3 * height, 0.34 * height, leaves)
    for _ in range(4):
        dx, dy = rng.uniform(-0.2, 0.2) * height, rng.uniform(-0.16, 0.16) * height
        canvas.ellipse(
            x + dx,
            y - 0.66 * height + dy,
            0.16 * height,
            0.15 * height,
            shade(leaves, rng.uniform(0.85, 1.2)),
        )


def draw_house(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    half = 0.55 * height
    canvas.rectangle(x - half, y - 0.6 * height, x + half, y, colour)
    roof = shade((158, 66, 46), rng.uniform(0.7, 1.1))
    eaves = y - 0.56 * height
    canvas.polygon([(x - 1.2 * half, eaves), (x, y - height), (x + 1.2 * half, eaves)], roof)
    canvas.rectangle(x - 0.1 * height, y - 0.34 * height, x + 0.1 * height, y, (96, 62, 40))
    for side in (-1, 1):
        middle = x + side * 0.34 * height
        canvas.rectangle(
            middle - 0.09 * height, y - 0.45 * height, middle + 0.09 * height, y - 0.26 * height, GLASS
        )


def draw_building(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    half = height * rng.uniform(0.2, 0.32)
    canvas.rectangle(x - half, y - height, x + half, y, colour)
    lit = GLASS if rng.random() < 0.6 else (250, 232, 150)
    rows, columns = int(rng.integers(4, 7)), int(rng.integers(3, 5))
    cell_h, cell_w = height * 0.94 / rows, 2 * half / columns
    for row in range(rows):
        for column in range(columns):
            left, top = x - half + (column + 0.25) * cell_w, y - height + (row + 0.3) * cell_h
            canvas.rectangle(
                left, top, left + 0.5 * cell_w, top + 0.5 * cell_h, shade(lit, rng.uniform(0.8, 1.0))
            )


def draw_person(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    skin = SKIN[int(rng.integers(len(SKIN)))]
    trousers = shade((70, 74, 110), rng.uniform(0.5, 1.4))
    stride, arm = rng.uniform(0.04, 0.12) * height, rng.uniform(-0.1, 0.12) * height
    hip, shoulder = y - 0.45 * height, y - 0.78 * height
    for side in (-1, 1):
        foot = x + side * stride
        canvas.polygon([(x - 0.09 * height, hip), (x + 0.09 * height, hip), (foot + 0.05 * height, y),
                        (foot - 0.06 * height, y)], trousers)  # fmt: skip
        hand = x + side * 0.23 * height
        canvas.polygon([(x, shoulder), (x + side * 0.12 * height, shoulder), (hand, hip + arm),
                        (hand - side * 0.07 * height, hip + arm)], shade(colour, 0.85))  # fmt: skip
    canvas.rectangle(x - 0.13 * height, shoulder, x + 0.13 * height, hip + 0.03 * height, colour)
    canvas.ellipse(x, y - 0.89 * height, 0.1 * height, 0.11 * height, skin)
    canvas.ellipse(
        x, y - 0.95 * height, 0.1 * height, 0.05 * height, shade((60, 40, 26), rng.uniform(0.5, 2.0))
    )


def draw_car(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    facing = 1 if rng.random() < 0.5 else -1
    cabin = [(-0.6, -0.5), (-0.35, -1.0), (0.35, -1.0), (0.75, -0.5)]
    canvas.polygon([(x + facing * a * height, y + b * height) for a, b in cabin], colour)
    body = [(-1.05, -0.55), (0.9, -0.52), (1.1, -0.36), (1.1, -0.14), (-1.05, -0.14)]
    canvas.polygon([(x + facing * a * height, y + b * height) for a, b in body], shade(colour, 0.92))
    for left, right in ((-0.45, -0.03), (0.06, 0.5)):
        pane = [(left, -0.55), (max(left, -0.29), -0.9), (min(right, 0.3), -0.9), (right, -0.55)]
        canvas.polygon([(x + facing * a * height, y + b * height) for a, b in pane], GLASS)
    for wheel in (-0.62, 0.62):
        canvas.ellipse(x + wheel * height, y - 0.2 * height, 0.21 * height, 0.21 * height, DARK)
        canvas.ellipse(x + wheel * height, y - 0.2 * height, 0.09 * height, 0.09 * height, (176, 176, 180))


def draw_bus(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    half = 1.05 * height
    canvas.rectangle(x - half, y - height, x + half, y - 0.12 * height, colour)
    canvas.rectangle(x - half, y - 0.38 * height, x + half, y - 0.3 * height, shade(colour, 0.65))
    for pane in range(5):
        left = x - half + (0.1 + pane * 0.4) * height
        canvas.rectangle(left, y - 0.85 * height, left + 0.3 * height, y - 0.5 * height, GLASS)
    for wheel in (-0.6, 0.6):
        canvas.ellipse(x + wheel * height, y - 0.14 * height, 0.16 * height, 0.15 * height, DARK)


def draw_boat(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    facing = 1 if rng.random() < 0.5 else -1
    hull = [(-0.72, -0.32), (0.85, -0.36), (0.55, 0.0), (-0.55, 0.0)]
    canvas.rectangle(x - 0.04 * height, y - height, x + 0.04 * height, y - 0.3 * height, (120, 84, 52))
    sail = shade((246, 244, 232), rng.uniform(0.9, 1.0))
    canvas.polygon([(x + facing * 0.05 * height, y - 0.98 * height), (x + facing * 0.05 * height, y - 0.4 * height),
                    (x + facing * 0.58 * height, y - 0.42 * height)], sail)  # fmt: skip
    canvas.polygon([(x - facing * 0.06 * height, y - 0.8 * height), (x - facing * 0.06 * height, y - 0.4 * height),
                    (x - facing * 0.4 * height, y - 0.42 * height)], shade(sail, 0.92))  # fmt: skip
    canvas.polygon([(x + facing * a * height, y + b * height) for a, b in hull], colour)


def draw_airplane(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    facing = 1 if rng.random() < 0.5 else -1
    middle = y - 0.5 * height
    tail = [(-1.35, -0.05), (-1.6, -0.62), (-1.2, -0.62), (-0.85, -0.05)]
    canvas.polygon([(x + facing * a * height, middle + b * height) for a, b in tail], shade(colour, 0.8))
    canvas.ellipse(x, middle, 1.45 * height, 0.26 * height, colour)
    wing = [(0.35, 0.02), (-0.2, 0.02), (-0.75, 0.62), (-0.42, 0.62)]
    canvas.polygon([(x + facing * a * height, middle + b * height) for a, b in wing], shade(colour, 0.7))
    for window in np.linspace(-0.7, 0.8, 6):
        canvas.ellipse(
            x + facing * window * height, middle - 0.07 * height, 0.07 * height, 0.07 * height, GLASS
        )


def draw_ball(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    radius = 0.5 * height
    canvas.ellipse(x, y - radius, radius, radius, colour)
    canvas.ellipse(x, y - radius, 0.38 * radius, radius, shade(colour, 0.72))
    canvas.ellipse(x - 0.35 * radius, y - 1.4 * radius, 0.2 * radius, 0.16 * radius, (255, 255, 255))


def draw_flag(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    side = 1 if rng.random() < 0.5 else -1
    canvas.rectangle(x - 0.035 * height, y - height, x + 0.035 * height, y, (150, 150, 156))
    wave = rng.uniform(0.02, 0.06) * height
    along = np.linspace(0, 0.72, 8)
    upper = [(x + side * a * height, y - 0.98 * height + wave * np.sin(9 * a)) for a in along]
    lower = [(x + side * a * height, y - 0.5 * height + wave * np.sin(9 * a)) for a in along[::-1]]
    canvas.polygon(upper + lower, colour)


def draw_bench(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    wood = shade((150, 98, 54), rng.uniform(0.8, 1.2))
    half = 0.95 * height
    for leg in (-0.8, 0.62):
        canvas.rectangle(x + leg * height, y - 0.5 * height, x + (leg + 0.18) * height, y, DARK)
    canvas.rectangle(x - half, y - 0.56 * height, x + half, y - 0.34 * height, wood)
    canvas.rectangle(x - half, y - height, x + half, y - 0.64 * height, shade(wood, 0.85))
    canvas.rectangle(x - 0.08 * height, y - 0.66 * height, x + 0.08 * height, y - 0.5 * height, DARK)


def draw_streetlight(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    side = 1 if rng.random() < 0.5 else -1
    iron = shade((74, 82, 92), rng.uniform(0.8, 1.2))
    canvas.rectangle(x - 0.03 * height, y - height, x + 0.03 * height, y, iron)
    canvas.rectangle(x - 0.06 * height, y - 0.1 * height, x + 0.06 * height, y, iron)
    left, right = sorted((x - side * 0.03 * height, x + side * 0.26 * height))
    canvas.rectangle(left, y - height, right, y - 0.94 * height, iron)
    lamp = x + side * 0.24 * height
    canvas.ellipse(lamp, y - 0.91 * height, 0.085 * height, 0.06 * height, (252, 240, 160))


def draw_tent(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    canvas.polygon([(x, y - height), (x - 0.85 * height, y), (x + 0.85 * height, y)], colour)
    canvas.polygon([(x, y - height), (x + 0.2 * height, y), (x + 0.85 * height, y)], shade(colour, 0.78))
    canvas.polygon([(x, y - 0.72 * height), (x - 0.2 * height, y), (x + 0.14 * height, y)], DARK)


def draw_fence(
    canvas: Canvas, x: float, y: float, height: float, colour: RGB, rng: np.random.Generator
) -> None:
    wood = shade((206, 186, 150), rng.uniform(0.75, 1.15))
    posts = int(rng.integers(7, 12))
    gap = 0.42 * height
    left, right = x - 0.5 * posts * gap, x + 0.5 * posts * gap
    canvas.rectangle(left, y - 0.86 * height, right, y, shade(wood, 0.62))
    for post in range(posts):
        middle = left + (post + 0.5) * gap
        canvas.polygon([(middle - 0.34 * gap, y), (middle - 0.34 * gap, y - 0.86 * height), (middle, y - height),
                        (middle + 0.34 * gap, y - 0.86 * height), (middle + 0.34 * gap, y)], wood)  # fmt: skip


DRAW: dict[str, Draw] = {
    "tree": draw_tree,
    "house": draw_house,
    "building": draw_building,
    "person": draw_person,
    "car": draw_car,
    "bus": draw_bus,
    "boat": draw_boat,
    "airplane": draw_airplane,
    "ball": draw_ball,
    "flag": draw_flag,
    "bench": draw_bench,
    "streetlight": draw_streetlight,
    "tent": draw_tent,
    "fence": draw_fence,
}
