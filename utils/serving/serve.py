"""chat.py --serve and --web: from the flags to a listening server."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import logging
import os
import secrets
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from utils.common.commands import one_line
from utils.common.settings import declared
from utils.common.terminal import printable
from utils.config.chat import SERVER, ChatConfig
from utils.config.data import OUTPUT
from utils.config.inference import QUESTION, TOY_ASSISTANT
from utils.evaluation.predict import find_images
from utils.serving.answers import Asking
from utils.serving.label_host import TOKEN_VARIABLE, URL_VARIABLE, LabelHost

logger = logging.getLogger(__name__)

TOY_EXAMPLES = TOY_ASSISTANT.parent / "examples"
PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus-client": "prometheus_client"}
PAGE_PACKAGES = {"gradio": "gradio", **PACKAGES}  # package -> module
OF_THE_PAGE = ("share", "examples", "open_browser")
KEY_VARIABLE = "LASAGNA_API_KEY"


def check_server(config: ChatConfig) -> None:
    """UserError for settings of the server without --serve or --web, and for those of one answer with them."""
    is_server = config.serve or config.web
    for one in declared(config):
        if getattr(config, one.name) == one.default or one.name in ("serve", "web"):
            continue
        if one.group == SERVER and not is_server:
            raise UserError(f"--{one.name} is a setting of the server; pass --serve or --web too")
        if one.name in OF_THE_PAGE and not config.web:
            raise UserError(f"--{one.name} is a setting of the page; pass --web too")
        if one.group in (QUESTION, OUTPUT) and is_server:
            raise UserError(
                f"--{one.name} is no setting of the server, as requests say what they want; leave it out"
            )
    if config.serve:
        label_host_of(config)


def check_packages(config: ChatConfig) -> None:
    """UserError unless the optional packages of the server and, with --web, of the page are installed."""
    packages, flag = (PAGE_PACKAGES, "--web") if config.web else (PACKAGES, "--serve")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    for module in packages.values():
        try:
            importlib.import_module(module)
        except ImportError as problem:
            raise UserError(
                f"{flag} needs optional packages, of which {problem.name} is missing: "
                f"pip install {' '.join(packages)}"
            ) from None


def serve(model: LasagnaForConditionalGeneration, config: ChatConfig, listener: socket.socket) -> None:
    """Answers requests, and shows the page, until SIGINT, SIGTERM or SIGHUP ends it in order."""
    from utils.serving.connection import Server, server_of
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
    shared = public_link(port) if config.share else ""
    # A page in a browser can be made to ask a local server under a name of its own; only a key stops the others.
    hosts = None
    if is_local and not api_key:
        hosts = frozenset({"localhost", "127.0.0.1", "::1", host, urlsplit(shared).hostname or host})
    app = build_app(
        service,
        api_key=api_key,
        hosts=hosts,
        label_host=label_host_of(config),
        with_api=config.serve,
        is_for_browsers=config.web,
    )
    kind: type[Server] = Server
    if config.web:
        from utils.serving.page.app import PageServer, add_page

        kind = PageServer
        add_page(app, service, examples=examples_of(config), with_api=config.serve)
    if (shared or not is_local) and not api_key:
        where = shared or host
        logger.warning("listening on %s without --api_key: everybody who reaches it can ask", where)
    shown = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    places = [f"{shown}/"] * config.web + [shared] * bool(shared) + [f"{shown}/v1"] * config.serve
    print(printable(f"{service.name} at {', '.join(places)} (Ctrl-C stops it)"), flush=True)
    if config.open_browser:
        show_in_browser(shown)
    with contextlib.suppress(KeyboardInterrupt):
        server_of(app, kind).run(sockets=[listener])


def label_host_of(config: ChatConfig) -> LabelHost:
    """The Label Studio of the flags or of the environment. UserError for an address or a token that is none."""
    return LabelHost(
        config.label_studio_url or os.environ.get(URL_VARIABLE, ""),
        config.label_studio_token or os.environ.get(TOKEN_VARIABLE, ""),
    )


def examples_of(config: ChatConfig) -> list[Path]:
    """The images that the page offers. UserError for a folder without any."""
    folder = config.examples or ("" if config.version else str(TOY_EXAMPLES))
    return find_images(folder, "--examples") if folder else []


def public_link(port: int) -> str:
    """The address of a tunnel of gradio's to this port. UserError where there is none to be had."""
    from gradio import networking

    try:
        return networking.setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), None, None)
    except Exception as problem:  # a library's, of any kind: no network, no program for the tunnel
        raise UserError(f"--share: there is no tunnel ({one_line(problem)}); leave it out") from None


def show_in_browser(address: str) -> None:
    """Opens the page where there is a display; elsewhere a browser of the terminal would take the terminal."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        # The listener takes the browser's connection before the server runs, and it waits.
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


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
