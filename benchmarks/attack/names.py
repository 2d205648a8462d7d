"""Names that a page, a table or a terminal would take for markup or commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from benchmarks.attack.desk import Attack, Desk, chat, check, coco, edit_json, evaluate, preview, write_image

KIND = "names"
NAMES = {
    "a script": "<script>alert(1)</script>",
    "an image that fails": "<img src=x onerror=alert(1)>",
    "a frame": '"><iframe srcdoc="<script>alert(1)</script>">',
    "an attribute": '" onmouseover="alert(1)" x=\'',
    "a closing tag": "</td></table></style></script><svg/onload=alert(1)>",
    "a Markdown image": "![x](http://evil/x.png)",
    "a Markdown link": "[click](http://evil/)",
    "a table's cell": "a | b | c",
    "a code span": "`x` <script>alert(1)</script> `y`",
    "an escaped table's cell": "a \\| <img src=x onerror=alert(1)>",
    "a heading": "# dog <script>alert(1)</script>",
    "a template": "{{ 7 * 7 }} {% for a in b %}",
    "an entity": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "a formula": "$\\frac{$ dog $x^{$",
    "rich's markup": "[red]dog[/red] [link=http://evil/]x[/link]",
    "a terminal's colour": "\x1b[31mred\x1b[0m",
    "a terminal's title": "\x1b]0;title\x07",
    "a cleared screen": "dog\x1b[2J\x1b[H",
    "an 8-bit escape": "dog\x9b31m",
    "a backspace": "dog\x08\x08\x08cat",
    "a line that is overwritten": "dog\rcat",
    "the other direction of writing": "dog \u202egnp.tac\u202c",
    "an isolate": "dog \u2067cat\u2069",
}


def _coco_classes(name: str, command: str, desk: Desk) -> int:
    (desk.here / "train.json").write_text(json.dumps(coco(["dog", name], ["a.png"])))
    (desk.here / "val.json").write_text(json.dumps(coco(["dog", name], ["a.png"])))
    return _command("own_coco:.|exhaustive=true", command, desk)


def _command(entry: str, command: str, desk: Desk) -> int:
    if command == "check":
        return check(entry)
    if command == "preview":
        return preview(entry)
    return evaluate(desk.model, entry)


def _sem_classes(name: str, command: str, desk: Desk) -> int:
    from PIL import Image

    for folder in ("images", "labels"):
        (desk.here / folder).mkdir()
    write_image(desk.here / "images/a.png")
    Image.new("L", (40, 30), 1).save(desk.here / "labels/a.png")
    (desk.here / "classes.txt").write_text(f"dog\n{name}\n")
    return _command("own_sem:.", command, desk)


def _jsonl(name: str, command: str, desk: Desk) -> int:
    line = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": f"Where is {name}?"}, {"from": "gpt", "value": f"{name} [SEG]"}],
        "masks": [[[2, 2, 20, 2, 20, 20]]],
    }  # fmt: skip
    for split in ("train", "val"):
        (desk.here / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    return _command("own_jsonl:.", command, desk)


def _file_name(name: str, command: str, desk: Desk) -> int:
    """An image file of that name, and one that is damaged, so that it is named."""
    name = name.replace("/", "_")
    write_image(desk.here / f"{name}.png")
    (desk.here / f"{name} damaged.png").write_bytes(b"\x89PNG nothing")
    for split in ("train", "val"):
        content = coco(["dog"], [f"{name}.png", f"{name} damaged.png", f"{name} gone.png"])
        (desk.here / f"{split}.json").write_text(json.dumps(content))
    if command == "chat":
        return chat(desk.model, image=f"{name} damaged.png") or chat(desk.model, image=f"{name}.png")
    return _command("own_coco:.", command, desk)


def _folder_name(name: str, desk: Desk) -> int:
    """The data lie in a folder of that name."""
    folder = desk.here / name.replace("/", "_")
    folder.mkdir()
    write_image(folder / "a.png")
    (folder / "val.json").write_text(json.dumps(coco(["dog"], ["a.png"])))
    return evaluate(desk.model, f"own_coco:./{folder.name}".replace("|", " ").replace(",", " "))


def _asked(name: str, desk: Desk) -> int:
    return chat(desk.model, f"--classes={name}")


def _vocabulary(name: str, desk: Desk) -> int:
    """A model whose vocabulary holds the name, so that every answer may."""
    folder = desk.copy_model()
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    special = {token["content"] for token in content["added_tokens"]}
    if isinstance(vocabulary, dict):
        content["model"]["vocab"] = {
            (word if word in special or word.startswith("<0x") or len(word) < 3 else f"{word}{name}"): number
            for word, number in vocabulary.items()
        }
        content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return chat(folder, "--prompt=What is this?", "--max_new_tokens=20")


def _model_name(name: str, desk: Desk) -> int:
    folder = desk.copy_model(name.replace("/", "_"))
    (desk.here / "val.json").write_text(json.dumps(coco(["dog"], ["a.png"])))
    return evaluate(folder.name, "own_coco:.")


def _index_name(name: str, desk: Desk) -> int:
    folder = desk.copy_model()
    edit_json(
        folder / "config.json", lambda content: content.update(sequence_format={"name": name}, prompt=name)
    )
    return chat(folder)


def attacks() -> Iterator[Attack]:
    """Each name as a class, a question, a file, a folder and a model, through the commands that show it."""
    for what, name in NAMES.items():
        quick = what in ("a script", "a terminal's colour")
        for command in ("check", "preview", "test_sem"):
            yield Attack(KIND, f"class of a COCO file, {command}, {what}", partial(_coco_classes, name, command),
                         quick and command == "test_sem")  # fmt: skip
        yield Attack(KIND, f"class of a text file, {what}", partial(_sem_classes, name, "test_sem"))
        yield Attack(KIND, f"question, preview, {what}", partial(_jsonl, name, "preview"))
        yield Attack(KIND, f"question, test_sem, {what}", partial(_jsonl, name, "test_sem"))
        for command in ("check", "preview", "test_sem", "chat"):
            yield Attack(KIND, f"image file, {command}, {what}", partial(_file_name, name, command),
                         quick and command == "check")  # fmt: skip
        yield Attack(KIND, f"folder of data, {what}", partial(_folder_name, name))
        yield Attack(KIND, f"--classes, {what}", partial(_asked, name))
        yield Attack(KIND, f"vocabulary, {what}", partial(_vocabulary, name))
        yield Attack(KIND, f"folder of a model, {what}", partial(_model_name, name))
        yield Attack(KIND, f"config.json, {what}", partial(_index_name, name))
