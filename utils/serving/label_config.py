"""Label Studio's labelling configuration: which classes to ask for, and what a project wants to have for each.

It is XML. `BrushLabels` are filled with masks, `RectangleLabels` with boxes; each `Label` is one class.

Source: labelstud.io/tags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from model.errors import UserError
from model.text.format import spoken
from utils.serving.answers import split_names

KINDS = {"brushlabels": "BrushLabels", "rectanglelabels": "RectangleLabels"}
PREFIX = "model_"  # of attributes that are settings of ours
SETTINGS = ("model_presence_threshold", "model_instances", "model_min_area")
WORDS = {"true": True, "false": False}
MAX_LENGTH = 1_000_000  # characters


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How the results of a control tag are made."""

    threshold: float | None = None  # of presence; None: as the server does
    instances: bool = False
    min_area: int = 0


@dataclass(frozen=True, kw_only=True)
class Control:
    """One BrushLabels or RectangleLabels: what it is called, and the label of each class."""

    kind: str  # of KINDS
    name: str
    to_name: str
    labels: dict[str, str]  # class name, as it is asked for -> label
    wish: Wish


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What a project asks of the model about one image."""

    controls: tuple[Control, ...]
    field: str  # of a task's data, which holds the image's address


def read_label_config(text: str) -> LabelConfig:
    """The controls of a labelling configuration.

    Raises:
        UserError: it is no XML; has no BrushLabels and no RectangleLabels about an image, or about several; a label
            without a name, or two that stand for the same class; an unknown setting.
    """
    root = parsed(text)
    images = {tag.get("name", ""): tag for tag in tags(root, "image")}
    found = [tag for kind in KINDS for tag in tags(root, kind)]
    if not found:
        raise UserError(
            "the label config has neither BrushLabels nor RectangleLabels, which are what this model fills; add one"
        )
    targets = {tag.get("toName", "") for tag in found}
    if unknown := sorted(targets - images.keys()):
        raise UserError(f"the label config labels {unknown[0]!r}, and has no Image tag of this name; add it")
    if len(targets) > 1:
        raise UserError(
            f"the label config labels {len(targets)} images ({', '.join(sorted(targets))}); a task is about one"
        )
    field = images[targets.pop()].get("value", "")
    if not field.startswith("$") or len(field) == 1:
        raise UserError(
            f'the Image tag of the label config has the value {field!r}; name the field of the data: value="$image"'
        )
    return LabelConfig(controls=tuple(control_of(tag) for tag in found), field=field[1:])


def parsed(text: str) -> ElementTree.Element:
    """The root of the XML; no entities and no document types, which could make a short text a long one."""
    if len(text) > MAX_LENGTH:
        raise UserError(f"the label config has {len(text):,} characters, of at most {MAX_LENGTH:,}")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError("the label config declares a document type; leave it out")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as problem:
        raise UserError(
            f"the label config is no XML ({problem}); copy it from the project's settings"
        ) from None


def tags(root: ElementTree.Element, kind: str) -> Iterator[ElementTree.Element]:
    """All tags of a kind; Label Studio does not mind upper and lower case."""
    return (tag for tag in root.iter() if isinstance(tag.tag, str) and tag.tag.lower() == kind)


def control_of(tag: ElementTree.Element) -> Control:
    """A control tag with its labels."""
    kind = tag.tag.lower()
    shown = f"{KINDS[kind]} {tag.get('name', '')!r} of the label config"
    if not tag.get("name"):
        raise UserError(f'{shown} has no name; add one: name="label"')
    if tag.get("value") or tag.get("apiUrl"):
        raise UserError(
            f"{shown} takes its labels from elsewhere; list them as Label tags, which are the classes"
        )
    labels: dict[str, str] = {}
    for label in tags(tag, "label"):
        written = label.get("alias") or label.get("value") or ""  # what Label Studio writes into its results
        for name in asked_for(label, shown):
            if name in labels:
                raise UserError(
                    f"{shown}: {labels[name]!r} and {written!r} are both the class {name!r} to the model; remove one"
                )
            labels[name] = written
    if not labels:
        raise UserError(f"{shown} has no Label; each is one class")
    return Control(kind=kind, name=tag.get("name", ""), to_name=tag.get("toName", ""), labels=labels,
                   wish=wish_of(tag, shown))  # fmt: skip


def asked_for(label: ElementTree.Element, shown: str) -> list[str]:
    """The classes that stand for a label: those of its predicted_values, or else its value."""
    if listed := label.get("predicted_values"):
        return split_names(listed)
    if not label.get("value", "").strip():
        raise UserError(f'{shown} has a Label without a value; write what it is: value="dog"')
    return [spoken(label.get("value", ""))]


def wish_of(tag: ElementTree.Element, shown: str) -> Wish:
    """The settings that a control tag has as attributes. Boxes are about single objects unless it says otherwise."""
    given = {name: value for name, value in tag.attrib.items() if name.startswith(PREFIX)}
    if unknown := sorted(given.keys() - set(SETTINGS)):
        raise UserError(f"{shown}: {unknown[0]} is no setting of this model; known: {', '.join(SETTINGS)}")
    wish = Wish(instances=tag.tag.lower() == "rectanglelabels")
    for name, value in given.items():
        try:
            if name == "model_instances":
                wish = dataclasses.replace(wish, instances=WORDS[value.lower()])
            elif name == "model_min_area":
                wish = dataclasses.replace(wish, min_area=int(value))
            else:
                wish = dataclasses.replace(wish, threshold=float(value))
        except (ValueError, KeyError):
            rule = "true or false" if name == "model_instances" else "a number"
            raise UserError(f"{shown}: {name} is {value!r}, and has to be {rule}") from None
    if wish.threshold is not None and not 0 <= wish.threshold <= 1:
        raise UserError(f"{shown}: model_presence_threshold is a probability, 0 to 1, got {wish.threshold}")
    if wish.min_area < 0 or (wish.min_area and not wish.instances):
        raise UserError(
            f"{shown}: model_min_area is the least number of pixels of an instance, at least 0, and needs "
            'model_instances="true"'
        )
    return wish
