"""Label configs: which classes are asked for, and what a wrong one says."""

from __future__ import annotations

import pytest

from model.errors import UserError
from tests.commands import REPOSITORY, blocks
from utils.serving.label_config import Wish, read_label_config

LABELS = '<Label value="Person"/><Label value="Traffic  Light" background="#f00"/>'


def config(
    labels: str = LABELS, attributes: str = "", image: str = '<Image name="image" value="$image"/>'
) -> str:
    return f'<View>{image}<BrushLabels name="tag" toName="image" {attributes}>{labels}</BrushLabels></View>'


def test_the_labels_are_the_classes():
    found = read_label_config(config())
    [control] = found.controls
    assert (control.kind, control.name, control.to_name, found.field) == (
        "brushlabels",
        "tag",
        "image",
        "image",
    )
    assert control.labels == {"person": "Person", "traffic light": "Traffic  Light"}
    assert control.wish == Wish()


def test_the_config_of_the_documentation_is_read():
    (example,) = blocks(REPOSITORY / "docs" / "label_studio.md", "xml")
    [control] = read_label_config(example).controls
    assert list(control.labels) == ["person", "car", "tree", "bush", "grass"]
    assert set(control.labels.values()) == {"Person", "Car", "Vegetation"}


def test_label_studios_own_parser_reads_the_same():
    parser = pytest.importorskip("lxml") and pytest.importorskip(
        "label_studio_sdk._extensions.label_studio_tools.core.label_config"
    )
    labels = LABELS + '<Label value="Car" alias="c"/>'
    theirs = parser.parse_config(config(labels))["tag"]
    found = read_label_config(config(labels))
    assert list(found.controls[0].labels.values()) == theirs["labels"]
    assert [found.controls[0].to_name] == theirs["to_name"]
    assert found.field == theirs["inputs"][0]["value"]


def test_an_alias_is_written_and_the_value_asked_unless_the_label_says_what_it_stands_for():
    labels = (
        '<Label value="Car" alias="c"/><Label value="Tier" predicted_values="dog, cat"/>'
        '<!-- none --><Label value="a, &lt;b&gt; [SEG]"/>'
    )
    [control] = read_label_config(config(labels)).controls
    assert control.labels == {"car": "c", "dog": "Tier", "cat": "Tier", "a, <b> [seg]": "a, <b> [SEG]"}


def test_boxes_are_about_single_objects_and_settings_are_attributes():
    text = config(
        attributes='model_presence_threshold="0.4" model_instances="TRUE" model_min_area="20"'
    ).replace("</View>", f'<rectanglelabels name="box" toName="image">{LABELS}</rectanglelabels></View>')
    brush, box = read_label_config(text).controls
    assert brush.wish == Wish(threshold=0.4, instances=True, min_area=20)
    assert box.kind == "rectanglelabels"
    assert box.wish == Wish(instances=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no XML"),
        ("<View>", "is no XML"),
        ("<View/>", "neither BrushLabels nor RectangleLabels"),
        ('<!DOCTYPE x [<!ENTITY a "aaa">]><View>&a;</View>', "declares a document type"),
        ("<View>" + "x" * 1_000_000 + "</View>", "of at most 1,000,000"),
        (config(image=""), "labels 'image', and has no Image tag"),
        (config(image='<Image name="image" valueList="$images"/>'), "the value ''; name the field"),
        (config(image='<Image name="image" value="a.png"/>'), "the value 'a.png'; name the field"),
        (config().replace("</View>", '<Image name="b" value="$b"/><BrushLabels name="x" toName="b"/></View>'),
         r"labels 2 images \(b, image\)"),
        (config(labels=""), "'tag' of the label config has no Label"),
        (config(labels="<Label/>"), "has a Label without a value"),
        (config(labels='<Label value=" "/>'), "has a Label without a value"),
        (config(labels='<Label value="Tree"/><Label value="tree"/>'), "'Tree' and 'tree' are both the class 'tree'"),
        (config(labels='<Label value="Tree"/><Label value="Tree"/>'), "'Tree' and 'Tree' are both the class 'tree'"),
        (config(labels='<Label value="a" predicted_values="x"/><Label value="b" predicted_values="x"/>'),
         "'a' and 'b' are both the class 'x'"),
        (config(labels='<Label value="a" predicted_values="&quot;x"/>'), "is closed after it"),
        (config(attributes='value="$labels"'), "takes its labels from elsewhere"),
        (config(attributes='model_score="0.3"'), "model_score is no setting of this model; known: model_presence"),
        (config(attributes='model_presence_threshold="high"'), "is 'high', and has to be a number"),
        (config(attributes='model_presence_threshold="1.5"'), "a probability, 0 to 1, got 1.5"),
        (config(attributes='model_presence_threshold="nan"'), "a probability, 0 to 1, got nan"),
        (config(attributes='model_instances="ja"'), "is 'ja', and has to be true or false"),
        (config(attributes='model_min_area="-1" model_instances="true"'), "at least 0"),
        (config(attributes='model_min_area="5"'), "needs model_instances"),
        (config().replace('name="tag" ', ""), "has no name"),
    ],
)  # fmt: skip
def test_a_wrong_label_config_is_one_message(text, message):
    with pytest.raises(UserError, match=message):
        read_label_config(text)
