"""The page itself: what lies where in gradio, and which action each button calls.

Needs gradio; chat.py imports this file when it is asked for a page.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import Response
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount

from utils.data.image_formats import IMAGE_SUFFIXES
from utils.data.images import read_image
from utils.reports.pages import data_url
from utils.serving import label_studio
from utils.serving.connection import Server
from utils.serving.page.actions import Actions, Shown
from utils.serving.page.guard import Guard
from utils.serving.page.view import HERE, TYPES, file_of
from utils.serving.server import PATHS
from utils.serving.service import DECODED_AT_ONCE, Service

THUMBNAIL = 160  # pixels of an example's longest side
FORM_BYTES = 10_000  # of an upload beside its file
FONTS = ["system-ui", "sans-serif"]  # of the browser: none is loaded
MAX_NAME = 200  # letters of the name of an upload
KEEP_SECONDS = 600  # that an upload may lie on the disk if it is never opened
HINT = '<p class="pale">Open an image, or take an example; then ask about it.</p>'
QUESTION_HINT = "Can you segment the blue car? What could one sit on?"
CLASSES_HINT = 'person, tree, "traffic light, red"'


def add_page(app: FastAPI, service: Service, *, examples: Sequence[Path] = (), with_api: bool) -> Actions:
    """Adds the page at / to an application that answers for `service`.

    Args:
        examples: images that the page offers.
        with_api: the application has the routes of the API as well.
    """
    folder = tempfile.mkdtemp(prefix="lasagna-page-")  # for uploads, until they are read
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    actions = Actions(service.asking, service.batcher, max_pixels=service.max_pixels)
    blocks = layout(actions, service, examples)
    guard = Middleware(
        Guard,
        others=frozenset((*PATHS, *label_studio.PATHS)) if with_api else frozenset({"/health"}),
        folder=folder,
        max_bytes=service.limits.max_bytes,
    )
    app.user_middleware.append(guard)  # behind the gate; add_middleware would put it in front

    @app.get("/results/{key}/{number}/{name}")
    def result(key: str, number: int, name: str) -> Response:
        visit = actions.visits.find(key, number)
        content = None if visit is None else file_of(visit, name)
        if content is None:
            raise HTTPException(404, "there is no such result, or not any more")
        return Response(
            content, media_type=TYPES[Path(name).suffix], headers={"Cache-Control": "private, max-age=3600"}
        )

    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        allowed_paths=[],
        show_error=False,
        max_file_size=max(service.limits.max_bytes - FORM_BYTES, 1),
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css=(HERE / "style.css").read_text(encoding="utf-8") + thumbnails(examples),
    )
    app.state.uploads = folder
    app.state.page = cast(Mount, app.routes[-1]).app  # gradio's own application
    blocks.has_launched = (
        True  # a mounted page would check no path of a file: gradio thinks it is not yet open
    )
    return actions


class PageServer(Server):
    """Ends the connections that open pages hold instead of waiting for them, and removes uploads."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        assert isinstance(self.config.app, FastAPI)
        self.config.app.state.page.stop_event.set()
        await super().shutdown(sockets)
        self.leave()

    def leave(self) -> None:
        assert isinstance(self.config.app, FastAPI)
        shutil.rmtree(self.config.app.state.uploads, ignore_errors=True)


def layout(actions: Actions, service: Service, examples: Sequence[Path]) -> gr.Blocks:
    """The components, and what each of them does."""
    with gr.Blocks(title=f"LaSagnA: {service.name}", analytics_enabled=False,
                   delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as blocks:  # fmt: skip
        with gr.Row():
            with gr.Column(scale=3):
                view = gr.HTML(HINT, elem_id="view")
                slider = gr.Slider(
                    0, 1, 0.5, step=0.01, visible=False, interactive=True, elem_id="threshold",
                    label="Threshold: the probability from which a class is present",
                )  # fmt: skip
            with gr.Column(scale=2):
                upload = gr.File(label="Image", file_types=list(IMAGE_SUFFIXES), height=120, elem_id="upload")
                with gr.Row(visible=bool(examples)):
                    buttons = [
                        gr.Button(
                            path.stem, elem_id=f"example-{number}", elem_classes="example", min_width=90
                        )
                        for number, path in enumerate(examples)
                    ]
                with gr.Tab("Question"):
                    question = gr.Textbox(
                        show_label=False, placeholder=QUESTION_HINT, lines=2, max_lines=6, elem_id="question"
                    )
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                with gr.Tab("Classes"):
                    classes = gr.Textbox(
                        show_label=False, placeholder=CLASSES_HINT, lines=2, max_lines=6, elem_id="classes"
                    )
                    segment = gr.Button("Segment", variant="primary", elem_id="segment")
                with gr.Row():
                    stop = gr.Button("Stop", elem_id="stop", size="sm", min_width=90)
                    restart = gr.Button("New conversation", elem_id="restart", size="sm", min_width=90)
                talk = gr.HTML(elem_id="talk")
        connect(actions, examples, locals())
    # Questions wait in the queue of the server, not in gradio's, so that they are answered in batches.
    return blocks.queue(api_open=False, default_concurrency_limit=None)


def connect(actions: Actions, examples: Sequence[Path], parts: dict[str, Any]) -> None:
    """Which action each component calls. Every function tells the visitors apart by their session."""
    seen = [parts["view"], parts["talk"], parts["slider"]]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    opening = {**quiet, "concurrency_limit": DECODED_AT_ONCE, "concurrency_id": "images"}

    def opened(upload: dict[str, Any] | None, request: gr.Request) -> list[Any]:
        if upload is None:
            return [None, *([gr.skip()] * 3)]
        file = Path(upload["path"])
        content = file.read_bytes()
        file.unlink(missing_ok=True)  # nobody needs it any more
        name = str(upload.get("orig_name") or file.name)[:MAX_NAME]
        return [None, *updates(actions.open(visitor(request), content, name))]

    def example(path: Path) -> Any:
        return lambda request: updates(actions.open(visitor(request), path.read_bytes(), path.name))

    async def asked(text: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for shown in actions.ask(visitor(request), text or ""):
            yield updates(shown)

    async def segmented(names: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for shown in actions.segment(visitor(request), names or ""):
            yield updates(shown)

    def decided(threshold: float, request: gr.Request) -> list[Any]:
        return updates(actions.decide(visitor(request), threshold))[:2]

    def stopped(request: gr.Request) -> None:
        actions.stop(visitor(request))

    def restarted(request: gr.Request) -> list[Any]:
        return updates(actions.restart(visitor(request)))

    def left(request: gr.Request) -> None:
        actions.leave(visitor(request))

    upload = parts["upload"]
    # Not preprocessed, which would lose the name and leave an empty file behind.
    upload.upload(opened, upload, [upload, *seen], preprocess=False, **opening)
    for button, path in zip(parts["buttons"], examples, strict=True):
        function = example(path)
        function.__annotations__ = {"request": gr.Request}  # how gradio knows what to hand over
        button.click(function, None, seen, **opening)
    gr.on([parts["ask"].click, parts["question"].submit], asked, parts["question"], seen, **quiet)
    gr.on([parts["segment"].click, parts["classes"].submit], segmented, parts["classes"], seen, **quiet)
    parts["slider"].input(decided, parts["slider"], seen[:2], trigger_mode="always_last", **quiet)
    parts["stop"].click(stopped, None, None, **quiet)
    parts["restart"].click(restarted, None, seen, **quiet)
    parts["blocks"].unload(left)


def updates(shown: Shown) -> list[Any]:
    """What changes of the view, the conversation and the slider, as gradio takes it."""
    slider: Any = gr.skip()
    if shown.can_decide is not None:
        slider = gr.Slider(value=shown.threshold, visible=shown.can_decide)
    return [gr.skip() if shown.view is None else shown.view or HINT, shown.talk, slider]


def visitor(request: gr.Request) -> str:
    """The name that a browser gives its session."""
    name = request.session_hash
    if not name:
        raise gr.Error("the browser sends no session; load the page again", print_exception=False)
    return name


def thumbnails(examples: Sequence[Path]) -> str:
    """Style sheet with a small image behind each example's button."""
    rules = []
    for number, path in enumerate(examples):
        image = Image.fromarray(read_image(path))
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        rules.append(f'#example-{number} {{ background-image: url("{data_url(image, quality=80)}") }}\n')
    return "".join(rules)
