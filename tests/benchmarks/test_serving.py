"""The benchmark of the server: both ways ask the same, and what waits is answered in one batch."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("uvicorn", reason="an optional package of the server")

from benchmarks import serving
from benchmarks.models import build


def test_the_command_prints_tables_and_writes_a_file(tmp_path, capsys):
    out = tmp_path / "serving.json"
    assert serving.main(["--quick", f"--out={out}"]) == 0
    claims, rates = capsys.readouterr().out.strip().split("\n\n")
    content = json.loads(out.read_text())
    assert len(claims.splitlines()) == 2 + len(content["claims"]) == 5
    assert len(rates.splitlines()) == 2 + 3
    assert {claim["bar"] for claim in content["claims"]} == {None}
    assert content["results"]["tiny"].keys() == {serving.WORDS, serving.NEW, serving.CLASSES}


def test_clients_that_wait_share_batches_and_images_are_encoded_once_or_anew():
    with serving.LocalServer(build("tiny")[0], num_tokens=2, num_clients=4) as server:
        clients = serving.Clients(server, num_clients=4, num_classes=2)
        sizes, encoded = [], []

        def answered(number):
            while sum(sizes) < number:  # a batch is counted when its answers are out
                time.sleep(0.01)
            return sizes

        server.service.batcher.on_batch = lambda size, seconds: sizes.append(size)
        encode = server.service.model.encode_batch
        server.service.model.encode_batch = lambda images: (encoded.append(len(images)), encode(images))[1]
        clients.all(clients.chat, together=False)
        assert answered(4) == [1] * 4
        clients.all(clients.chat, together=True)
        assert max(answered(8)) > 1
        assert sum(encoded) == 4
        clients.all(clients.segment, together=True, new=True)
        assert sum(encoded) == 8
        assert clients.num_tokens == 2
