"""Requests to the server: eight clients that wait together, against one at a time.

    python -m benchmarks.serving                     # tiny and medium: Markdown, runs/benchmarks/serving.json
    python -m benchmarks.serving --quick             # tiny, few tokens, in seconds; bars do not apply
    python -m benchmarks.serving --version FOLDER    # a trained model

The server, with its HTTP, JSON and PNG, and the clients run in this process. Each client has an image of its own,
which was encoded before, as in a conversation that goes on; "new images" are encoded in the counted run. Both ways
send the same requests; one at a time, a request is sent when the one before is answered. Answers have exactly
`--num_tokens` tokens: the end token is never chosen.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import io
import json
import sys
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import script_parser
from benchmarks.local_server import ThreadedServer
from benchmarks.measure import Claim, Runs, claims_table, take_turns, write_results
from benchmarks.models import SIZES, build
from model.checkpoints.load import load_model
from model.lasagna import LasagnaForConditionalGeneration
from utils.data.class_lists import load_class_list
from utils.serving.answers import Asking
from utils.serving.fetch import Limits
from utils.serving.server import build_app
from utils.serving.service import Service
from utils.toy.scene import draw_scene

SCENE_SEED = 7_654_321
ALONE, TOGETHER = "one at a time", "waiting clients"
WORDS, NEW, CLASSES = "questions in words", "questions in words, new images", "class queries"
BAR, GOAL = 2.0, 3.0


class LocalServer(ThreadedServer):
    """The server in a thread, at a free port of 127.0.0.1. Its model never ends an answer by itself."""

    def __init__(self, model: LasagnaForConditionalGeneration, *, num_tokens: int, num_clients: int) -> None:
        never_ends(model)
        self.service = Service(
            model,
            Asking(max_new_tokens=num_tokens),
            name="model",
            limits=Limits(max_bytes=10**7),
            max_pixels=10**7,
            max_batch=num_clients,
            max_waiting=8 * num_clients,
        )
        super().__init__(build_app(self.service))

    def post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        """The response to a request."""
        request = urllib.request.Request(
            self.address + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)


def never_ends(model: LasagnaForConditionalGeneration) -> None:
    """Makes all answers as long as they may be, whatever the model would say."""
    logits, eos = model.text_logits, model.processor.token_ids.eos

    def without_end(states: torch.Tensor) -> torch.Tensor:
        found = logits(states)
        found[..., eos] = -torch.inf
        return found

    model.text_logits = without_end


class Clients:
    """Clients, each with its image and its requests."""

    def __init__(self, server: LocalServer, *, num_clients: int, num_classes: int) -> None:
        self.server = server
        self.num_clients = num_clients
        self.classes = load_class_list("ade20k")[:num_classes]
        self.images = [draw_scene(SCENE_SEED, index).image for index in range(num_clients)]
        self.num_new = 0
        self.num_tokens = 0

    def chat(self, client: int, image: np.ndarray) -> None:
        """One question in words."""
        parts = [
            {"type": "text", "text": f"What is on the {'left' if client % 2 else 'right'} side?"},
            {"type": "image_url", "image_url": {"url": data_url(image)}},
        ]
        content = {"model": "model", "messages": [{"role": "user", "content": parts}]}
        answer = self.server.post("/v1/chat/completions", content)
        self.num_tokens = answer["usage"]["completion_tokens"]

    def segment(self, client: int, image: np.ndarray) -> None:
        """One class query."""
        self.server.post("/v1/segment", {"image": data_url(image), "classes": self.classes})

    def all(self, ask: Callable[[int, np.ndarray], None], *, together: bool, new: bool = False) -> None:
        """A request of each client."""
        images = [self.unseen(image) if new else image for image in self.images]
        with concurrent.futures.ThreadPoolExecutor(self.num_clients if together else 1) as pool:
            list(pool.map(ask, range(self.num_clients), images))

    def unseen(self, image: np.ndarray) -> np.ndarray:
        """The image with a pixel changed: another one for the server."""
        self.num_new += 1
        changed = image.copy()
        changed[0, 0] = [self.num_new // 65536 % 256, self.num_new // 256 % 256, self.num_new % 256]
        return changed


def data_url(image: np.ndarray) -> str:
    """An image as requests bring it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def measure(
    model: LasagnaForConditionalGeneration, arguments: argparse.Namespace
) -> dict[str, dict[str, Runs]]:
    """All ways, alternating, by kind of request."""
    num_clients = arguments.num_clients
    with LocalServer(model, num_tokens=arguments.num_tokens, num_clients=num_clients) as server:
        clients = Clients(server, num_clients=num_clients, num_classes=arguments.num_classes)
        kinds: dict[str, Callable[[bool], None]] = {
            WORDS: lambda together: clients.all(clients.chat, together=together),
            NEW: lambda together: clients.all(clients.chat, together=together, new=True),
            CLASSES: lambda together: clients.all(clients.segment, together=together),
        }
        found = {}
        for kind, ask in kinds.items():
            ways = {ALONE: lambda ask=ask: ask(False), TOGETHER: lambda ask=ask: ask(True)}
            found[kind] = take_turns(ways, arguments.rounds, warm_up=0 if arguments.quick else 1)
        return found


def to_claims(size: str, parts: dict[str, dict[str, Runs]], arguments: argparse.Namespace) -> list[Claim]:
    """How much faster the requests of waiting clients are; questions in words have a bar."""
    judged = not arguments.quick and not arguments.version
    return [
        Claim(
            name=f"{kind}, {arguments.num_clients} {TOGETHER} against {ALONE}, {size}, times faster",
            value=runs[TOGETHER].times_faster(runs[ALONE]),
            bar=BAR if judged and kind == WORDS else None,
            goal=GOAL if judged and kind == WORDS else None,
        )
        for kind, runs in parts.items()
    ]


def table(size: str, parts: dict[str, dict[str, Runs]], num_clients: int) -> str:
    """Requests a second, as Markdown."""
    lines = [f"| {size}, requests a second | {ALONE} | {num_clients} {TOGETHER} |", "|---|---:|---:|"]
    for kind, runs in parts.items():
        rates = [num_clients / runs[way].median for way in (ALONE, TOGETHER)]
        lines.append(f"| {kind} | {rates[0]:.2f} | {rates[1]:.2f} |")
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.serving", __doc__)
    parser.add_argument("--sizes", default=",".join(SIZES), help="sizes of the model, separated by a comma")
    parser.add_argument("--version", default="", help="a trained model instead of the sizes")
    parser.add_argument("--num_tokens", type=int, default=64, help="tokens of an answer in words")
    parser.add_argument("--num_classes", type=int, default=20, help="classes of a query")
    parser.add_argument("--num_clients", type=int, default=8, help="clients that wait together")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over which medians are taken")
    parser.add_argument("--quick", action="store_true", help="tiny, few tokens; bars do not apply")
    parser.add_argument("--out", default="runs/benchmarks/serving.json", help="JSON file to write")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.sizes, arguments.rounds, arguments.num_clients = "tiny", 1, 2
        arguments.num_tokens, arguments.num_classes = 4, 3
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    claims, tables, results = [], [], {}
    for size in [arguments.version] if arguments.version else arguments.sizes.split(","):
        model = load_model(size, dtype=torch.float32)[0] if arguments.version else build(size)[0]
        parts = measure(model, arguments)
        claims += to_claims(size, parts, arguments)
        tables.append(table(size, parts, arguments.num_clients))
        results[size] = {
            kind: {way: run.to_dict() for way, run in runs.items()} for kind, runs in parts.items()
        }
    print("\n\n".join([claims_table(claims), *tables]))
    write_results(arguments.out, vars(arguments), claims, results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
