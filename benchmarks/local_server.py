"""An app that is served in a thread of this process, for its clients in the same process."""

from __future__ import annotations

import socket
import threading
import time
from typing import Self

from starlette.types import ASGIApp

from utils.serving.connection import server_of

STOP_SECONDS = 20  # that a server is waited for


class ThreadedServer:
    """The server at a free port of 127.0.0.1, while the context lasts."""

    def __init__(self, app: ASGIApp) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.server = server_of(app)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True
        )

    def __enter__(self) -> Self:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(STOP_SECONDS)
        self.listener.close()
