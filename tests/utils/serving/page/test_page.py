"""The page in a browser, and what of the server is open: one server and one browser for all checks."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
import urllib.request
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from tests.utils.serving.page.running import MAX_MB, SECONDS, Running
from utils.data.image_formats import FORMATS
from utils.reports.colours import class_colour
from utils.serving.page import app as page_app
from utils.serving.serve import TOY_EXAMPLES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        running = Running(tmp_path_factory.mktemp("page"), patch)
        yield running
        running.server.should_exit = True
        running.thread.join(20)
        assert not running.uploads
        assert not list(running.folder.glob("lasagna-page-*")), "the folder of uploads is removed"


# ------------------------------------------------------------------------------------ what is open


def secret_image(folder: Path) -> Path:
    path = folder / "secret.png"
    Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
    return path


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={}",
        "/gradio_api/file/{}",
        "/file={}",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/static/../../../../../../../..{}",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2f..{}",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{}",
        "/svelte/..%2f..%2f..%2f..%2f..{}",
        "/assets/{}",
        "/assets//{}",
        "/results/x/1/..%2f..%2f..{}",
        "/gradio_api/stream/me/1/1/..%2f{}",
        "/custom_component/x/client/component/{}",
        "//{}",
    ],
)
def test_no_route_gives_a_file_of_the_server(server, path):
    for file in ("/etc/passwd", str(Path(page_app.__file__)), str(secret_image(server.folder.parent))):
        status, body = server.get(path.format(file))
        assert status in (400, 403, 404, 405), (path, status)
        assert b"root:" not in body
        assert b"PNG" not in body


def test_every_route_of_gradio_that_the_page_does_not_need_is_closed(server):
    app = server.server.config.loaded_app
    while not hasattr(app, "routes"):
        app = app.app
    inner = next(route.app for route in app.routes if getattr(route, "path", None) == "")
    included = [route.original_router for route in inner.routes if hasattr(route, "original_router")]
    routes = [route for router in (inner, *included) for route in router.routes if hasattr(route, "path")]
    paths = {re.sub(r"\{[^}]*\}", "x", route.path) for route in routes}
    assert "/gradio_api/file=x" in paths, "these are the routes of gradio"
    assert len(paths) > 60
    needed = {
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/manifest.json",
        "/assets/x",
        "/static/x",
        "/svelte/x",
    }
    needed |= {f"/gradio_api/{name}" for name in ("upload", "upload_progress", "queue/join", "queue/data", "cancel",
                                                   "reset", "startup-events", "heartbeat/x")}  # fmt: skip
    for path in paths - needed:
        assert server.get(path)[0] == 404, path
        assert server.get(path, {})[0] == 404, path
    for path in ("/v1/models", "/v1/segment", "/metrics", "/docs", "/openapi.json"):
        assert server.get(path)[0] == 404, "without --serve there is no API"
    assert server.get("/health")[0] == 200


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "SECRET", "FOLDER/../secret.png", "http://127.0.0.1:1/a.png", "data:,x", "", 5, "a\0b"]
)  # fmt: skip
def test_an_event_opens_uploaded_files_alone(server, path):
    if isinstance(path, str):
        path = path.replace("SECRET", str(secret_image(server.folder.parent)))
        path = path.replace("FOLDER", str(server.folder))
    file = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    assert server.event(0, file).startswith("403")
    assert server.event(0, [{"x": file}]).startswith("403")
    assert "me" not in server.actions.visits._visits


def test_gradio_itself_refuses_other_files_too(server, monkeypatch):
    """The check behind ours, which a mounted page does not have by itself."""
    monkeypatch.setattr("utils.serving.page.guard.names_other_files", lambda *_: False)
    file = {"path": str(secret_image(server.folder.parent)), "meta": {"_type": "gradio.FileData"}}
    said = server.event(0, file, session="other")
    assert '"success":false' in said
    assert "other" not in server.actions.visits._visits


def test_requests_of_other_sites_and_hosts_are_refused(server):
    host = server.address.removeprefix("http://")
    assert server.get("/config", headers={"Host": "evil.example"})[0] == 403
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert server.get("/gradio_api/queue/join", {}, {"Origin": origin})[0] == 403
    assert server.get("/config", headers={"Origin": f"http://{host}"})[0] == 200


def test_uploads_are_limited_and_results_are_not_guessed(server, monkeypatch):
    assert server.upload(b"x" * int(MAX_MB * 1e6), "a.png")[0] == 413
    assert server.get("/results/x/1/image.jpg")[0] == 404
    assert server.get("/results/x/one/image.jpg")[0] in (404, 422)
    assert not server.uploads
    monkeypatch.setattr("utils.serving.page.guard.MAX_UPLOADED", 0.01)
    [path] = json.loads(server.upload(b"x" * 20_000, "a.png")[1])
    status, body = server.upload(b"x", "b.png")
    assert status == 429
    assert b"too many uploads were not opened" in body
    Path(path).unlink()
    assert server.upload(b"x", "b.png")[0] == 200
    shutil.rmtree(server.uploads[0].parent)


def test_nothing_of_the_page_comes_from_or_goes_to_other_hosts(server):
    with urllib.request.urlopen(server.address) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    config = json.loads(server.get("/config")[1])
    assert config["analytics_enabled"] is False
    assert "googleapis" not in json.dumps(config)
    assert not re.search(r"@import|url\(.?http", server.get("/theme.css")[1].decode())
    assert not any(each["api_visibility"] != "private" for each in config["dependencies"])


# ------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tried with playwright")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


def failed(response):
    # gradio asks for the progress of an upload that may be over.
    return response.status >= 400 and "/upload_progress" not in response.url


def opened(browser, server):
    """The page, loaded; what goes wrong in it is collected in `page.problems`, where requests go in `page.hosts`."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * SECONDS)
    page.problems, page.hosts = [], set()
    page.on("pageerror", lambda problem: page.problems.append(str(problem)))
    page.on(
        "request",
        lambda request: page.hosts.add(request.url.split("/")[2] if "//" in request.url else "data"),
    )
    page.on("response", lambda response: failed(response) and page.problems.append(response.url))
    page.goto(server.address)
    page.wait_for_selector("#example-0")
    return page


@pytest.fixture(scope="module")
def page(browser, server):
    page = opened(browser, server)
    yield page
    hosts, problems = page.hosts, page.problems
    page.close()
    assert hosts - {"data"} == {server.address.removeprefix("http://")}
    assert not problems


def choose_file(page, content, name, kind="image/png"):
    page.set_input_files("#upload input[type=file]", {"name": name, "mimeType": kind, "buffer": content})


def ask_for(page, classes):
    page.get_by_role("tab", name="Classes").click()
    page.fill("#classes textarea", classes)
    page.click("#segment")


def downloaded(page, link):
    with page.expect_download() as download:
        page.click(f".view .files a:text-is('{link}')")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def on_screen(page):
    """What the page shows of the image and its masks, (height, width, 3), when all of it is loaded."""
    page.wait_for_function(
        "[...document.querySelectorAll('.frame img')]"
        ".every(one => !one.checkVisibility() || (one.complete && one.naturalWidth))"
    )
    return np.asarray(Image.open(io.BytesIO(page.locator(".frame").screenshot())).convert("RGB"))


def share_in_colour(shown, image, mask, colour):
    """The fraction of a mask's inner pixels that are tinted with a colour as the overlay tints them."""
    size = shown.shape[1], shown.shape[0]
    inner = cv2.erode(mask, np.ones((5, 5), np.uint8))
    inner = cv2.resize(inner, size, interpolation=cv2.INTER_NEAREST).astype(bool)
    expected = 0.4 * cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) + 0.6 * np.array(colour)
    return (abs(shown[inner] - expected[inner]) < 16).all(axis=-1).mean()


def jpeg_of_street(**options):
    """An example, as a photo that a camera took lying on its side: only EXIF says how to turn it."""
    image = Image.open(TOY_EXAMPLES / "street.jpg")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=98, exif=exif)
    return file.getvalue(), np.asarray(image)


def test_upload_ask_colours_slider_and_downloads(page, server):
    content, image = jpeg_of_street()
    choose_file(page, content, "my street.jpg", "image/jpeg")
    page.wait_for_selector(".view .base")
    assert not server.uploads, "an upload is read and removed"
    ask_for(page, "car, person, boat")
    page.wait_for_selector(".chip.present")
    assert page.locator(".chip").all_inner_texts()[2].startswith("boat")
    assert page.locator(".chip.absent").count() == 1

    name, found = downloaded(page, "JSON")
    answer = json.loads(found)
    assert name == "my_street_answer.json"
    assert answer["asked"] == ["car", "person", "boat"]
    masks = {mask["label"]: coco_mask.decode(mask["rle"]) for mask in answer["masks"]}
    assert set(masks) == {"car", "person"}
    assert masks["car"].shape == image.shape[:2]

    # Upright, each mask in the colour of its chip; a mask alone while the mouse is over its chip.
    alone = {"car": masks["car"] & ~masks["person"], "person": masks["person"] & ~masks["car"]}
    everything = on_screen(page)
    for label, mask in alone.items():
        chip = page.locator(".chip.present", has_text=label)
        red, green, blue = class_colour(label)
        assert chip.evaluate("chip => getComputedStyle(chip).borderColor") == f"rgb({red}, {green}, {blue})"
        assert share_in_colour(everything, image, mask, (red, green, blue)) > 0.9
        chip.hover()
        one = on_screen(page)
        other = "person" if label == "car" else "car"
        assert share_in_colour(one, image, masks[label], (red, green, blue)) > 0.9
        assert share_in_colour(one, image, alone[other], class_colour(other)) < 0.1

    name, found = downloaded(page, "overlay")
    assert name == "my_street_overlay.png"
    assert Image.open(io.BytesIO(found)).size[0] > image.shape[1]
    name, found = downloaded(page, "masks")
    assert zipfile.ZipFile(io.BytesIO(found)).namelist() == ["mask_1_car.png", "mask_2_person.png"]

    # The slider decides again without asking the model.
    asked = server.actions.batcher.model.segment_batch
    server.actions.batcher.model.segment_batch = None
    page.locator("#threshold input[type=range]").fill("0")
    page.wait_for_function("document.querySelectorAll('.chip.present').length == 3")
    page.locator("#threshold input[type=range]").fill("1")
    page.wait_for_function("document.querySelectorAll('.chip.present').length == 0")
    assert page.locator(".talk .answer").inner_text() == "car [NEG], person [NEG], boat [NEG]."
    server.actions.batcher.model.segment_batch = asked


def test_what_is_no_image_is_refused_and_names_are_no_markup(page):
    place = page.locator(".base").get_attribute("src")
    choose_file(page, b"a text", "notes.png")
    page.wait_for_selector(".problem")
    assert (
        page.inner_text(".problem")
        == f"notes.png: cannot be decoded (the file is not an image of {', '.join(FORMATS)})"
    )
    choose_file(page, b"a text", "notes.txt", "text/plain")
    page.get_by_text("Invalid file type").first.wait_for()
    choose_file(page, b"x" * int(2e6 * MAX_MB), "large.png")
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    choose_file(page, huge.getvalue(), "huge.png")
    page.get_by_text("huge.png: 400,000,000 pixels, of at most 1,000,000").wait_for()
    assert page.locator(".base").get_attribute("src") == place, "the image before stays"

    names = ["<img src=x onerror=alert(1)>", "{{value}}", "${alert(1)}", "[seg]", "</s>", '"red, lit"', "🐕"]
    ask_for(page, ", ".join(names))
    page.wait_for_function(f"document.querySelectorAll('.chip').length == {len(names)}")
    said = [re.sub(r"\s*[0-9.]+$", "", text) for text in page.locator(".chip").all_inner_texts()]
    assert said == [name.strip('"') for name in names]
    assert page.locator("img[src=x]").count() == 0


def test_two_visitors_at_once_have_a_conversation_each(browser, page, server):
    other = opened(browser, server)
    other.click("#example-2")
    other.wait_for_selector(".view .base")
    other.fill("#question textarea", "Can you segment the blue car?")
    page.fill("#classes textarea", "sky, grass")
    page.click("#segment")
    other.click("#ask")
    other.wait_for_selector(".chip.present")
    page.locator(".chip", has_text="grass").wait_for()
    assert "[SEG]" in other.inner_text(".talk .answer")
    assert other.locator(".talk .question").all_inner_texts() == ["Can you segment the blue car?"]
    assert "blue car" not in page.inner_text(".talk")
    assert not other.locator("#threshold").is_visible(), "there is nothing to decide again"
    assert not other.problems
    visits = server.actions.visits
    assert len(visits._visits) == 2
    other.close()
    end = time.monotonic() + SECONDS
    while len(visits._visits) == 2:  # who closes the page is forgotten
        page.wait_for_function("1")
        assert time.monotonic() < end
    page.click("#restart")
    page.wait_for_function("document.querySelectorAll('.question').length == 0")
