"""The server as its clients see it: the real openai client and plain HTTP, against a tiny model."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import socket
import threading
import time

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from pydantic import TypeAdapter

from model.text.special_tokens import SEG, Special
from tests.tiny_weights import noise_image
from utils.serving.answers import Asking, ask_in_words
from utils.serving.schema import AnswerJson, MaskJson

pytest.importorskip("fastapi", reason="an optional package of the server")
openai = pytest.importorskip("openai", reason="the client that the server is tested with")
pytest.importorskip("uvicorn", reason="an optional package of the server")

from tests.utils.serving.running import Running, data_url, question  # noqa: E402
from utils.serving.batching import Batcher  # noqa: E402
from utils.serving.jobs import SegmentJob  # noqa: E402

IMAGE = noise_image(40, 60)


@pytest.fixture(scope="module")
def server(tiny):
    with Running(tiny) as running:
        yield running


def chat(server, *messages: dict, **options):
    return server.client().chat.completions.create(model="tiny", messages=list(messages), **options)


# ------------------------------------------------------------------------------------ what is answered


def test_a_completion_is_the_models_answer_with_its_masks(server, says):
    model = says("The dog ", Special(SEG), " and ", Special(SEG), ".")
    expected = ask_in_words(model, IMAGE, "Where is the dog?", Asking())
    completion = chat(server, question("Where is the dog?", data_url(IMAGE)), extra_body={"polygons": True})
    [choice] = completion.choices
    assert choice.message.content == "The dog [SEG] and [SEG]."
    assert choice.finish_reason == "stop"
    for mask, found in zip(choice.message.masks, expected.found(), strict=True):
        TypeAdapter(MaskJson).validate_python(mask, strict=True, extra="forbid")
        assert np.array_equal(coco_mask.decode(mask["rle"]), found.pixels)
        assert mask["polygons"] == found.polygons
    assert [mask["label"] for mask in choice.message.masks] == ["The dog", ""]
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 20


def test_a_stream_adds_up_to_the_answer_and_ends_with_the_masks(server, says):
    says("The dog ", Special(SEG), " is on the left side.")
    message = question("Where is the dog?", data_url(IMAGE))
    whole = chat(server, message)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(chat(server, message, **options))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    texts = [delta.content for delta in deltas if delta.content]
    assert "".join(texts) == whole.choices[0].message.content
    assert len(texts) > 3
    assert deltas[0].role == "assistant"
    assert deltas[-1].masks == whole.choices[0].message.masks
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


def test_a_follow_up_has_the_tokens_of_the_answer_before(server, says, monkeypatch):
    model = says("dog ", Special(SEG), ".")
    seen = []
    generate = type(model).generate_batch
    monkeypatch.setattr(
        type(model),
        "generate_batch",
        lambda self, images, talks, **rest: (seen.extend(talks), generate(self, images, talks, **rest))[1],
    )
    first = chat(server, question("Where is the dog?", data_url(IMAGE))).choices[0].message
    chat(
        server,
        question("Where is the dog?", data_url(IMAGE)),
        {"role": "assistant", "content": first.content},
        question("Which [SEG] is larger?"),
    )
    talk = seen[-1]
    assert Special(SEG) in talk.turns[1].text
    ids = model.processor.encode(talk).input_ids
    assert ids.count(model.processor.token_ids.seg) == 1, "that of the answer; the user's is text"


def test_a_class_query_is_answered_as_segment_does(server, tiny):
    names = ["dog", "traffic light, red", "🐕", "<b>x</b>", "[seg]"]
    content = {"image": data_url(IMAGE), "classes": [*names, "dog"], "threshold": 0.2, "overlay": True}
    status, body = server.call("/v1/segment", content)
    answer = json.loads(body)
    assert status == 200
    TypeAdapter(AnswerJson).validate_python(answer, strict=True, extra="forbid")
    found = tiny.segment(IMAGE, names, presence_threshold=0.2)
    assert answer["asked"] == names
    assert [one["present"] for one in answer["classes"]] == found.present
    for mask, logits in zip(answer["masks"], found.masks, strict=True):
        assert np.array_equal(coco_mask.decode(mask["rle"]), (logits > 0).numpy())
    drawn = base64.b64decode(answer["overlay"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(drawn)).size[0] > 60
    status, body = server.call("/v1/segment", {"image": data_url(IMAGE), "classes": 'dog, "a, b"'})
    assert json.loads(body)["asked"] == ["dog", "a, b"]


def test_models_health_and_metrics(server):
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    assert server.client().models.retrieve("tiny").owned_by == "lasagna"
    assert json.loads(server.call("/health")[1])["status"] == "ok"
    text = server.call("/metrics")[1].decode()
    assert 'lasagna_requests_total{path="/v1/models",status="200"}' in text
    assert "lasagna_batch_size_bucket" in text
    assert 'lasagna_tokens_total{kind="answer"}' in text


def test_answers_are_greedy_unless_a_temperature_is_given(server):
    def text(**options):
        return chat(server, question("What is it?", data_url(IMAGE)), **options).choices[0].message.content

    assert text() == text(temperature=0)
    assert text(temperature=1.5, seed=1) == text(temperature=1.5, seed=1)
    assert text(temperature=1.5, seed=1) != text(temperature=1.5, seed=2)
    cut = chat(server, question("What?", data_url(IMAGE)), max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("image", "kind", "options", "size"),
    [
        (Image.new("RGB", (1, 1)), "PNG", {}, [1, 1]),
        (Image.new("CMYK", (30, 20)), "JPEG", {}, [20, 30]),
        (Image.new("L", (30, 20)), "PNG", {}, [20, 30]),
        (Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "PNG", {}, [20, 30]),
        (Image.new("RGBA", (30, 20)), "PNG", {}, [20, 30]),
        (Image.new("RGB", (30, 20)), "JPEG", {"turned": True}, [30, 20]),
    ],
)
def test_masks_have_the_size_of_the_image_as_a_viewer_shows_it(server, image, kind, options, size):
    if options.pop("turned", False):
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = 6
    content = {"image": data_url(image, kind, **options), "classes": ["dog"], "threshold": 0}
    answer = json.loads(server.call("/v1/segment", content)[1])
    assert answer["masks"][0]["rle"]["size"] == size
    assert [answer["image"]["height"], answer["image"]["width"]] == size


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image": "data:image/png;base64,aGVsbG8="}, "the image: cannot be decoded"),
        ({"image": "data:image/png;base64,%%%"}, "not valid base64"),
        ({"image": "data:image/png,xx"}, "encode it in base64"),
        ({"image": "/etc/passwd"}, "send the image itself"),
        ({"image": "file:///etc/passwd"}, "send the image itself"),
        ({"image": "http://example.com/a.png"}, "started without --allow_urls"),
        ({"image": data_url(Image.new("1", (1000, 1000)))}, "1000 x 1000 pixels, of at most 500,000"),
        ({"classes": []}, "no class name"),
        ({"classes": '"dog'}, "is closed after it"),
        ({"threshold": 2}, "threshold: Input should be less than or equal to 1"),
        ({"min_area": 3}, "needs instances too"),
        ({"classes": 5}, "classes"),
        ({"classes": [f"thing {k}" for k in range(100_000)]}, "bytes"),
    ],
)  # fmt: skip
def test_bad_class_queries_are_one_message(server, content, message):
    status, said = server.error("/v1/segment", {"image": data_url(IMAGE), "classes": ["dog"], **content})
    assert status in (400, 413)
    assert message in said


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([question("hi")], {}, "0 images"),
        ([question("hi", "IMAGE"), {"role": "assistant", "content": "x"}, question("b", "IMAGE")], {}, "2 images"),
        ([{"role": "system", "content": "Be nice"}, question("hi", "IMAGE")], {}, "the role 'system' is unknown"),
        ([question("", "IMAGE")], {}, "has no text"),
        ([question("a", "IMAGE"), question("b")], {}, "they alternate"),
        ([question("a", "IMAGE"), {"role": "assistant", "content": "x"}], {}, "begins and ends with"),
        ([question("word " * 3000, "IMAGE")], {}, "tokens"),
        ([question("hi", "IMAGE")], {"n": 2}, "n is not offered"),
        ([question("hi", "IMAGE")], {"tools": [{"type": "function"}]}, "tools is not offered"),
        ([question("hi", "IMAGE")], {"temperature": -1}, "temperature must be 0"),
        ([question("hi", "IMAGE")], {"top_p": 0}, "top_p must be above 0"),
    ],
)  # fmt: skip
def test_bad_conversations_are_one_message(server, messages, options, message):
    text = json.dumps(messages).replace('"IMAGE"', json.dumps(data_url(IMAGE)))
    with pytest.raises(openai.BadRequestError, match=message):
        chat(server, *json.loads(text), **options)
    with pytest.raises(openai.BadRequestError, match=message):
        list(chat(server, *json.loads(text), stream=True, **options))


def test_other_mistakes_have_their_own_status(server):
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here"):
        server.client().chat.completions.create(model="gpt", messages=[question("hi", data_url(IMAGE))])
    assert server.call("/v1/nothing")[0] == 404
    assert server.call("/v1/segment")[0] == 405
    assert server.error("/v1/segment", b"{no json")[0] == 400
    content = {"image": data_url(IMAGE), "classes": ["dog"]}
    assert server.error("/v1/segment", content, {"Content-Type": "text/plain"}) == (
        400, "the request is no JSON; send the header Content-Type: application/json"
    )  # fmt: skip
    assert server.error("/v1/segment", b"x" * 300_000) == (
        413, "the request has more than 200,000 bytes; shrink the image"
    )  # fmt: skip
    assert server.call("/docs")[0] == 404


def test_a_body_without_a_stated_length_is_counted_as_it_comes(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.settimeout(20)
        for _ in range(50):
            client.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_body_without_end_is_cut_off(server):
    head = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(20)
        client.sendall(head)
        with pytest.raises(ConnectionError):
            send_without_end(client)


def send_without_end(client: socket.socket) -> None:
    for _ in range(100_000):
        client.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")


def test_a_key_is_asked_for_and_other_names_of_the_machine_are_refused(tiny):
    with Running(tiny, api_key="secret", hosts=frozenset({"localhost", "127.0.0.1"})) as server:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert server.call(path)[0] == 401
        assert server.call("/health")[0] == 200
        with pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
            server.client("wrong").models.list()
        assert [model.id for model in server.client("secret").models.list()] == ["tiny"]
        headers = {"Authorization": "Bearer secret", "Host": "evil.example:80"}
        assert server.error("/v1/models", None, headers)[0] == 403


def test_a_defect_of_the_server_is_said_without_its_details(server, tiny, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the secret path /home/me")

    monkeypatch.setattr(tiny, "segment_batch", broken)
    status, said = server.error("/v1/segment", {"image": data_url(IMAGE), "classes": ["dog"]})
    assert status == 500
    assert "secret" not in said


# ------------------------------------------------------------------------------------ many at once


def test_what_waits_is_answered_in_one_batch_and_each_as_if_alone(server, tiny, monkeypatch):
    images = [noise_image(30, 20 + number) for number in range(6)]
    expected = [tiny.chat(image, "Where?", max_new_tokens=6).text for image in images]
    sizes, gate = [], threading.Event()
    generate = type(tiny).generate_batch

    def slow(self, images, talks, **rest):
        sizes.append(len(talks))
        gate.wait(20)
        return generate(self, images, talks, **rest)

    monkeypatch.setattr(type(tiny), "generate_batch", slow)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = pool.submit(chat, server, question("First", data_url(IMAGE)), max_tokens=2)
        while not sizes:
            time.sleep(0.01)
        others = [pool.submit(chat, server, question("Where?", data_url(i)), max_tokens=6) for i in images]
        while server.service.batcher.num_waiting < 6:
            time.sleep(0.01)
        gate.set()
        assert [other.result().choices[0].message.content for other in others] == expected
        assert first.result().usage.completion_tokens == 2
    assert sizes == [1, 6]


def test_a_bad_request_does_not_spoil_those_beside_it(server, tiny, monkeypatch):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        good = [
            pool.submit(chat, server, question("Where?", data_url(IMAGE)), max_tokens=3) for _ in range(3)
        ]
        bad = [pool.submit(chat, server, question("word " * 3000, data_url(IMAGE))) for _ in range(3)]
        assert len({one.result().choices[0].message.content for one in good}) == 1
        for one in bad:
            with pytest.raises(openai.BadRequestError):
                one.result()


def test_a_client_that_goes_stops_its_answer(tiny, monkeypatch):
    jobs = []
    with Running(tiny, asking=Asking(max_new_tokens=1500)) as server:
        submit = server.service.batcher.submit
        monkeypatch.setattr(server.service.batcher, "submit", lambda job: (jobs.append(job), submit(job)))
        stream = chat(server, question("Where?", data_url(IMAGE)), stream=True)
        next(iter(stream))
        stream.close()
        for _ in range(500):
            if jobs[0].is_gone.is_set():
                break
            time.sleep(0.02)
        assert jobs[0].is_gone.is_set()
        assert chat(server, question("And now?", data_url(IMAGE)), max_tokens=2).usage.completion_tokens == 2


def test_batches_hold_no_more_masks_than_memory(tiny, monkeypatch):
    monkeypatch.setattr("utils.serving.batching.MAX_MASK_PIXELS", 5 * IMAGE.shape[0] * IMAGE.shape[1])
    batcher = Batcher(tiny, max_batch=8, max_waiting=64)
    monkeypatch.setattr(batcher, "_answer", lambda batch: None)
    try:
        with batcher._changed:
            for number in (2, 2, 2, 1, 9):
                names = tuple(f"thing {k}" for k in range(number))
                batcher._waiting.append(SegmentJob(image=IMAGE, classes=names))
            sizes = []
            while batcher._waiting:
                sizes.append([len(job.classes) for job in batcher._next_batch()])
        assert sizes == [[2, 2, 1], [2], [9]]
    finally:
        batcher.close()


def test_an_answer_with_too_many_masks_is_cut(server, says, monkeypatch):
    says(*[Special(SEG)] * 9)
    monkeypatch.setattr("utils.serving.batching.MAX_MASK_PIXELS", 3 * IMAGE.shape[0] * IMAGE.shape[1])
    choice = chat(server, question("Where?", data_url(IMAGE))).choices[0]
    assert len(choice.message.masks) == 3
    assert choice.finish_reason == "length"


def test_a_full_queue_is_said_and_who_goes_is_forgotten(tiny, monkeypatch):
    gate, counts = threading.Event(), []
    generate = type(tiny).generate_batch

    def slow(self, images, talks, **rest):
        counts.append(len(talks))
        gate.wait(20)
        return generate(self, images, talks, **rest)

    monkeypatch.setattr(type(tiny), "generate_batch", slow)
    message = question("Where?", data_url(IMAGE))
    with Running(tiny, max_waiting=2) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = pool.submit(chat, server, message, max_tokens=2)
        while not counts:
            time.sleep(0.01)
        impatient = server.client().with_options(timeout=3)
        waiting = [
            pool.submit(impatient.chat.completions.create, model="tiny", messages=[message]) for _ in range(2)
        ]
        while server.service.batcher.num_waiting < 2:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError, match="2 requests wait already"):
            chat(server, message)
        for one in waiting:
            with pytest.raises(openai.APITimeoutError):
                one.result()
        time.sleep(0.2)
        gate.set()
        assert running.result().usage.completion_tokens == 2
        assert chat(server, message, max_tokens=2).usage.completion_tokens == 2
    assert counts == [1, 1], "those who went were not answered"
