"""chat.py --serve: from the flags to a listening server."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
from pathlib import Path

from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from utils.common.settings import declared
from utils.common.terminal import printable
from utils.config.chat import SERVER, ChatConfig
from utils.config.data import OUTPUT
from utils.config.inference import QUESTION
from utils.serving.answers import Asking
from utils.serving.label_host import TOKEN_VARIABLE, URL_VARIABLE, LabelHost

logger = logging.getLogger(__name__)

PACKAGES = "fastapi uvicorn prometheus-client"
KEY_VARIABLE = "LASAGNA_API_KEY"


def check_server(config: ChatConfig) -> None:
    """UserError for settings of the server without --serve, and for those of one answer with it."""
    for one in declared(config):
        if getattr(config, one.name) == one.default or one.name == "serve":
            continue
        if one.group == SERVER and not config.serve:
            raise UserError(f"--{one.name} is a setting of the server; pass --serve too")
        if one.group in (QUESTION, OUTPUT) and config.serve:
            raise UserError(
                f"--{one.name} is no setting of the server, as requests say what they want; leave it out"
            )
    if config.serve:
        label_host_of(config)


def check_packages() -> None:
    """UserError unless the optional packages of the server are installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as problem:
        raise UserError(
            f"--serve needs optional packages, of which {problem.name} is missing: pip install {PACKAGES}"
        ) from None


def serve(model: LasagnaForConditionalGeneration, config: ChatConfig, listener: socket.socket) -> None:
    """Answers requests until the process is stopped."""
    from utils.serving.connection import server_of
    from utils.serving.fetch import Limits
    from utils.serving.server import build_app
    from utils.serving.service import Service

    host, port = listener.getsockname()[:2]
    api_key = config.api_key or os.environ.get(KEY_VARIABLE, "")
    is_local = ipaddress.ip_address(host).is_loopback
    service = Service(
        model,
        Asking.of(config),
        name=config.model_name or Path(config.version).name or "lasagna",
        limits=Limits(max_bytes=round(config.max_request_mb * 1e6), allow_urls=config.allow_urls),
        max_pixels=round(config.max_megapixels * 1e6),
        max_batch=config.max_batch,
        max_waiting=config.max_waiting,
    )
    # A page in a browser can be made to ask a local server under a name of its own; only a key stops the others.
    hosts = frozenset({"localhost", "127.0.0.1", "::1", host}) if is_local and not api_key else None
    app = build_app(service, api_key=api_key, hosts=hosts, label_host=label_host_of(config))
    if not is_local and not api_key:
        logger.warning("listening on %s without --api_key: everybody who reaches this machine can ask", host)
    shown = f"[{host}]" if ":" in host else host
    print(printable(f"{service.name} at http://{shown}:{port}/v1 (Ctrl-C stops it)"), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[listener])


def label_host_of(config: ChatConfig) -> LabelHost:
    """The Label Studio of the flags or of the environment. UserError for an address or a token that is none."""
    return LabelHost(
        config.label_studio_url or os.environ.get(URL_VARIABLE, ""),
        config.label_studio_token or os.environ.get(TOKEN_VARIABLE, ""),
    )


def listen(config: ChatConfig) -> socket.socket:
    """A socket at --host and --port; UserError where they cannot be had, before a model is loaded."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, number)
    except (OSError, UnicodeError):
        raise UserError(f"--host {config.host} is no address of this machine; try 127.0.0.1") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as problem:
        listener.close()
        raise UserError(
            f"--host {config.host} --port {config.port}: {problem.strerror or problem}; choose another port"
        ) from None
    return listener
