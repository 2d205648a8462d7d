"""The page as it is served, for requests and a browser; a test file that imports this is skipped without gradio."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from model.checkpoints.load import load_model
from utils.config.chat import ChatConfig
from utils.config.inference import TOY_ASSISTANT

pytest.importorskip("gradio", reason="an optional package of the page")
uvicorn = pytest.importorskip("uvicorn", reason="an optional package of the server")

from utils.serving.page import app as page_app  # noqa: E402
from utils.serving.serve import listen, serve  # noqa: E402

MAX_MB = 1.0  # of a request
SECONDS = 60  # for anything to happen, on a busy machine too


class Running:
    """The page on the toy assistant, served as chat.py --web does, in a thread of this process."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(tempfile, "tempdir", str(folder))
        self.folder = folder
        self.config = ChatConfig(web=True, port=0, max_request_mb=MAX_MB, max_megapixels=1.0)
        self.listener = listen(self.config)
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.ready = threading.Event()
        startup, add_page = uvicorn.Server.startup, page_app.add_page

        async def noted(server: object, sockets: list[socket.socket] | None = None) -> None:
            await startup(server, sockets)
            self.server = server
            self.ready.set()

        def kept(*arguments: object, **options: object) -> object:
            self.actions = add_page(*arguments, **options)
            return self.actions

        patch.setattr(uvicorn.Server, "startup", noted)
        patch.setattr(page_app, "add_page", kept)
        model, _ = load_model(TOY_ASSISTANT)
        self.thread = threading.Thread(target=serve, args=(model, self.config, self.listener), daemon=True)
        self.thread.start()
        assert self.ready.wait(60)

    @property
    def uploads(self) -> list[Path]:
        """The files in the folder of uploads."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def get(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body; POST if there is a body. The path goes out as it is."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json", **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as problem:
            return problem.code, problem.read()

    def upload(self, content: bytes, name: str) -> tuple[int, bytes]:
        """POST /gradio_api/upload, as a browser sends a form."""
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        request = urllib.request.Request(
            f"{self.address}/gradio_api/upload",
            head + content + b"\r\n--x--\r\n",
            {"Content-Type": "multipart/form-data; boundary=x"},
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as problem:
            return problem.code, problem.read()

    def event(self, number: int, *data: object, session: str = "me") -> str:
        """What the page's event `number` answers, as text."""
        content = {"fn_index": number, "data": list(data), "session_hash": session}
        status, body = self.get("/gradio_api/queue/join", content)
        if status != 200:
            return f"{status} {body.decode()}"
        return self.get(f"/gradio_api/queue/data?session_hash={session}")[1].decode()
