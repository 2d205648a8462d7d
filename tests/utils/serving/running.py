"""A server in this process, and what its clients send."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request

import numpy as np
import openai
from PIL import Image

from benchmarks.local_server import ThreadedServer
from utils.serving.answers import Asking
from utils.serving.fetch import Limits
from utils.serving.server import build_app
from utils.serving.service import Service


def data_url(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> str:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


class Running(ThreadedServer):
    """A small server with its clients."""

    def __init__(self, model, *, api_key: str = "", hosts: frozenset[str] | None = None, **options) -> None:
        limits = Limits(max_bytes=200_000)
        settings = {
            "name": "tiny",
            "limits": limits,
            "max_pixels": 500_000,
            "max_batch": 8,
            "max_waiting": 64,
        }
        settings |= options
        asking = settings.pop("asking", Asking(max_new_tokens=12))
        self.service = Service(model, asking, **settings)
        super().__init__(build_app(self.service, api_key=api_key, hosts=hosts))

    def client(self, key: str = "none"):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)

    def call(
        self, path: str, content: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body; POST if there is a content."""
        body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            body,
            {"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as problem:
            return problem.code, problem.read()

    def error(self, path: str, content: object, headers: dict[str, str] | None = None) -> tuple[int, str]:
        status, body = self.call(path, content, headers)
        return status, json.loads(body)["error"]["message"]


def question(text: str, url: str | None = None) -> dict:
    parts: list[dict] = [{"type": "text", "text": text}]
    if url is not None:
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": parts}
