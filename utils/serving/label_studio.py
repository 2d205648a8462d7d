"""Label Studio's machine learning backend, on our server: its tasks in, brush masks and boxes out.

The label config of a project is the list of classes; one query for all of them fills an image. See
docs/label_studio.md.

Source: the routes and bodies of label_studio_ml (github.com/HumanSignal/label-studio-ml-backend).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from model.errors import UserError
from model.exports import FoundMask
from utils.serving.answers import answer_of
from utils.serving.brush import brush_code
from utils.serving.dialect import SegmentRequest
from utils.serving.label_config import Control, LabelConfig, read_label_config
from utils.serving.label_host import LabelHost
from utils.serving.service import Service

logger = logging.getLogger(__name__)

MAX_REASONS = 3  # in one message
PATHS = ("/setup", "/predict", "/webhook", "/versions")


class Task(BaseModel):
    """A task of Label Studio: an image to be labelled."""

    id: int | str = "?"
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """POST /predict."""

    tasks: list[Task]
    label_config: str


class SetupRequest(BaseModel):
    """POST /setup: somebody connects a project to the model."""

    label_config: str = Field("", alias="schema")
    extra_params: Any = None


def add_label_studio(app: FastAPI, service: Service, host: LabelHost) -> None:
    """The routes of a machine learning backend; /health is the server's own."""

    @app.post("/setup")
    async def setup(body: SetupRequest) -> dict[str, Any]:
        with_reason_in_log(read_label_config, body.label_config)
        if body.extra_params not in (None, "", "{}", {}):
            raise UserError(
                "extra params are not used by this model; write settings into the label config, as in "
                '<BrushLabels model_instances="true">'
            )
        return {"model_version": service.name}

    @app.post("/predict")
    async def predict(body: PredictRequest, request: Request) -> dict[str, Any]:
        config = with_reason_in_log(read_label_config, body.label_config)
        found: list[Any] = []
        size = min(service.batcher.max_batch, service.batcher.max_waiting)
        for start in range(0, len(body.tasks), size):
            part = (
                prediction(service, host, config, task, request) for task in body.tasks[start : start + size]
            )
            found += await asyncio.gather(*part, return_exceptions=True)
        return {"results": with_reason_in_log(results_of, body.tasks, found)}

    @app.post("/webhook")
    async def webhook() -> dict[str, Any]:
        return {"status": "ok", "result": "annotations do not train this model"}

    @app.get("/versions")
    @app.post("/versions")
    async def versions() -> dict[str, Any]:
        return {"versions": [service.name]}


def with_reason_in_log(function: Any, *arguments: Any) -> Any:
    """What the function returns. Label Studio shows only the status of an error, so the reason is logged as well."""
    try:
        return function(*arguments)
    except UserError as problem:
        logger.warning("Label Studio: %s", problem)
        raise


def results_of(tasks: Sequence[Task], found: Sequence[Any]) -> list[Any]:
    """The predictions of some tasks, and an empty list for each one that failed for a reason of its own.

    Label Studio takes a list of predictions for a task and then stores none. An empty prediction it would keep as the
    model's word, and not ask again.

    Raises:
        UserError: all tasks failed; the message names them. What a task raised if it is another exception.
    """
    reasons = []
    for task, one in zip(tasks, found, strict=True):
        if isinstance(one, BaseException):
            if type(one) is not UserError:
                raise one
            reasons.append(f"task {task.id}: {one}")
    if reasons and len(reasons) == len(tasks):
        more = f"; and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
        raise UserError("; ".join(reasons[:MAX_REASONS]) + more)
    for reason in reasons:
        logger.warning("Label Studio: no prediction for %s", reason)
    return [[] if isinstance(one, BaseException) else one for one in found]


async def prediction(
    service: Service, host: LabelHost, config: LabelConfig, task: Task, request: Request
) -> dict[str, Any]:
    """The model's prediction for one task, as Label Studio stores it."""
    image = await service.image_of(partial(task_file, service, host, config, task), service.fetchers)
    results: list[dict[str, Any]] = []
    scores: list[float] = []
    for threshold in dict.fromkeys(control.wish.threshold for control in config.controls):
        controls = [control for control in config.controls if control.wish.threshold == threshold]
        names = list(dict.fromkeys(name for control in controls for name in control.labels))
        query = SegmentRequest(image="", classes=names, threshold=threshold, min_area=0)
        found = await service.answer(service.segment_job(query, image), request)
        answer = answer_of(found, service.model.processor.format, len(names))
        if answer.remark:
            logger.warning("Label Studio: task %s: %s", task.id, answer.remark)
        for control in controls:
            wish = control.wish
            masks = await run_in_threadpool(answer.found, instances=wish.instances, min_area=wish.min_area)
            for mask in masks:
                if mask.area and mask.label in control.labels:
                    results.append(await run_in_threadpool(region, control, mask))
                    scores.append(mask.score)
    score = float(np.mean(scores)) if scores else 0.0
    return {"result": results, "score": score, "model_version": service.name}


def task_file(service: Service, host: LabelHost, config: LabelConfig, task: Task) -> bytes:
    """The content of the file of a task's image."""
    value = task.data.get(config.field)
    if not isinstance(value, str) or not value:
        known = ", ".join(sorted(task.data)) or "nothing"
        raise UserError(
            f"its data have no image as {config.field!r}, which the label config names; they have {known}"
        )
    return host.image_bytes(value, task.id, service.limits)


def region(control: Control, mask: FoundMask) -> dict[str, Any]:
    """A region of an annotation: a brush mask, or a box in per cent of the image."""
    height, width = mask.pixels.shape
    value: dict[str, Any] = {control.kind: [control.labels[mask.label]]}
    if control.kind == "brushlabels":
        value |= {"format": "rle", "rle": brush_code(mask.pixels)}
    else:
        x, y, box_width, box_height = mask.box
        value |= {
            "x": 100 * x / width,
            "y": 100 * y / height,
            "width": 100 * box_width / width,
            "height": 100 * box_height / height,
            "rotation": 0,
        }
    return {
        "id": uuid.uuid4().hex[:10],
        "from_name": control.name,
        "to_name": control.to_name,
        "type": control.kind,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
        "score": mask.score,
    }
