"""CVAT's auto-annotation: a detection function that segments the labels of a task.

    PYTHONPATH=. cvat-cli task auto-annotate 42 --function-module utils.serving.cvat \\
      -p version=str:FOLDER -p "classes=str:person, tree, dog"

cvat-cli calls `create` with the parameters, and then `detect` for each image; an agent (`cvat-cli function
run-agent`) and programs that use CVAT's SDK do the same. Needs cvat-sdk. See docs/cvat.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import PIL.Image

from model.checkpoints.load import load_model
from model.errors import UserError
from model.exports import FoundMask
from model.lasagna import LasagnaForConditionalGeneration
from model.text.format import spoken
from utils.common.commands import USER_MISTAKE, one_line
from utils.common.distributed import device_of
from utils.common.logs import start_logging
from utils.config.chat import ChatConfig
from utils.config.inference import TOY_REMARK
from utils.data.images import image_of_pillow
from utils.serving.answers import Asking, ask_classes, split_list

if TYPE_CHECKING:
    import cvat_sdk.auto_annotation as cvataa
    from cvat_sdk import models

logger = logging.getLogger(__name__)

PACKAGES = "'cvat-sdk[masks]' cvat-cli"
SHAPES = ("mask", "polygon", "rectangle")
# What `create` takes beside classes and shape, as chat.py's flags of the same names.
SETTINGS = {
    "version": str, "precision": str, "attn_implementation": str, "load_in_8bit": bool, "load_in_4bit": bool,
    "presence_threshold": float, "classes_per_query": int, "instances": bool, "min_area": int,
}  # fmt: skip


class LasagnaFunction:
    """CVAT's DetectionFunction.

    Args:
        model: on its device.
        labels: as the task has them; each is asked for as a class, in lower case.
        shape: what is made of each mask, one of SHAPES.
        asking: threshold and classes of one query.
        instances, min_area: as in `Segmentation.found`.

    Raises:
        UserError: cvat-sdk is missing; an unknown shape; no labels, or two that are one class to the model.
    """

    def __init__(
        self,
        model: LasagnaForConditionalGeneration,
        labels: list[str],
        *,
        shape: str = "mask",
        asking: Asking | None = None,
        instances: bool = False,
        min_area: int = 0,
    ) -> None:
        check_package()
        if shape not in SHAPES:
            raise UserError(f"shape {shape!r} is unknown; known: {', '.join(SHAPES)}")
        self.model, self.shape = model, shape
        self.labels = {spoken(label): label for label in labels}
        if len(self.labels) != len(labels):
            raise UserError(
                f"classes: {', '.join(labels)}: two of them are one class to the model, which reads them in lower "
                "case; leave one out"
            )
        if not labels:
            raise UserError('classes is empty; name labels of the task: -p "classes=str:person, tree, dog"')
        self.numbers = {name: number for number, name in enumerate(self.labels)}
        self.asking = asking or Asking()
        self.instances, self.min_area = instances, min_area

    @cached_property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """The labels, numbered from 0."""
        import cvat_sdk.auto_annotation as cvataa

        labels = [
            cvataa.label_spec(label, self.numbers[name], type=self.shape)
            for name, label in self.labels.items()
        ]
        return cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[models.LabeledShapeRequest]:
        """The shapes of one image. UserError for an image that cannot be decoded, or is too large."""
        pixels = image_of_pillow(image, f"frame {context.frame_name}")
        answer = ask_classes(self.model, pixels, list(self.labels), self.asking)
        if answer.remark:
            logger.warning("frame %s: %s", context.frame_name, answer.remark)
        found = answer.found(instances=self.instances, min_area=self.min_area)
        least = context.conf_threshold or 0.0
        shape = "polygon" if self.shape == "mask" and context.conv_mask_to_poly else self.shape
        return [
            made for mask in found if mask.area and mask.score >= least for made in self._shapes(mask, shape)
        ]

    def _shapes(self, mask: FoundMask, shape: str) -> Iterator[models.LabeledShapeRequest]:
        """A mask as one shape, or as a polygon for each of its outer outlines."""
        import cvat_sdk.auto_annotation as cvataa
        from cvat_sdk.masks import encode_mask

        number = self.numbers[mask.label]
        x, y, width, height = mask.box
        box = [x, y, x + width, y + height]
        if shape == "mask":
            yield cvataa.mask(number, encode_mask(mask.pixels, box), score=mask.score)
        elif shape == "rectangle":
            yield cvataa.rectangle(number, [float(side) for side in box], score=mask.score)
        else:
            for outline in mask.polygons:
                yield cvataa.polygon(number, outline, score=mask.score)


def check_package() -> None:
    """UserError unless cvat-sdk is installed, with what it needs for masks."""
    try:
        import cvat_sdk.auto_annotation
        import cvat_sdk.masks  # noqa: F401
    except ImportError as problem:
        raise UserError(f"CVAT needs an optional package, {problem.name}: pip install {PACKAGES}") from None


def function_of(classes: str, shape: str = "mask", **settings: Any) -> LasagnaFunction:
    """A function with the model and the settings that the parameters name; UserError for what is wrong with them."""
    for name, value in settings.items():
        if name not in SETTINGS:
            raise UserError(f"{name} is no parameter; known: classes, shape, {', '.join(SETTINGS)}")
        kind = SETTINGS[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(
                f"{name} is {value!r}, and has to be {kind.__name__}: -p {name}={kind.__name__}:..."
            )
    labels = [label for label in split_list(classes) if label]
    check_package()
    config = ChatConfig(**settings)
    if not config.version:
        print(TOY_REMARK, file=sys.stderr)
    model, _ = load_model(config.model_folder, device=device_of(), **config.loading)
    asking = Asking.of(config)
    return LasagnaFunction(
        model, labels, shape=shape, asking=asking, instances=config.instances, min_area=config.min_area
    )


def create(classes: str = "", shape: str = "mask", **settings: Any) -> LasagnaFunction:
    """What cvat-cli calls with its parameters; a mistake in them ends the program with one line."""
    start_logging()
    try:
        return function_of(classes, shape, **settings)
    except (UserError, OSError) as problem:
        print(f"utils.serving.cvat: {one_line(problem)}", file=sys.stderr)
        raise SystemExit(USER_MISTAKE) from None
