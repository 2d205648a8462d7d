import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from model.text.conversation import Conversation
from model.text.format import SequenceFormat
from model.text.special_tokens import NEG, SEG, Special
from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    box_polygon,
    compressed_rle,
    save,
    seeded_image,
    uncompressed_rle,
)
from utils.data.datasets.own_jsonl import OwnJsonl, with_tokens
from utils.data.registry import build_val_dataset, parse_entry
from utils.data.types import UnusableItemError
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import ReferringProtocol, protocol_for

BOX = [box_polygon(2, 3, 10, 8)]
LEFT = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
LEFT[:, :7] = 1
INSIDE = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
INSIDE[3:11, 2:12] = 1


def line(*texts, masks=(), image="a.png"):
    turns = [{"from": "gpt" if k % 2 else "human", "value": text} for k, text in enumerate(texts)]
    return {"image": image, "conversations": turns, "masks": list(masks)}


def write(root, *lines, name="talk.jsonl"):
    save(root / "a.png", seeded_image(0))
    path = root / name
    text = [entry if isinstance(entry, str) else json.dumps(entry) for entry in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def training(path, *fields):
    return parse_entry("|".join((f"own_jsonl:{path}", *fields)), "--dataset").open("nowhere", training=True)


def drawn(path, recipe):
    return training(path).draw(np.random.default_rng(0), recipe)


def test_masks_belong_to_the_seg_of_the_answers_in_order(tmp_path, recipe):
    save(tmp_path / "masks/left.png", LEFT * 255)
    texts = (
        "<image>\nWhere is the crack?",
        "Here [SEG], and here [SEG].",
        "And rust?",
        "No [NEG].",
        "Left?",
        "[SEG]",
    )
    masks = (compressed_rle(INSIDE), "masks/left.png", uncompressed_rle(INSIDE + LEFT > 0))
    sample = drawn(write(tmp_path, line(*texts, masks=masks)), recipe)
    assert np.array_equal(sample.masks, [INSIDE, LEFT, INSIDE + LEFT > 0])
    assert sample.conversations == (
        Conversation.of(
            "Where is the crack?",
            ("Here ", Special(SEG), ", and here ", Special(SEG), "."),
            "And rust?",
            ("No", " ", Special(NEG), "."),
            "Left?",
            (Special(SEG),),
        ),
    )


def test_text_alone_is_taught_too_and_marks_in_a_question_stay_characters(tmp_path, recipe):
    sample = drawn(write(tmp_path, line("What does [SEG] mean?", "A mask.")), recipe)
    assert sample.masks.shape == (0, HEIGHT, WIDTH)
    assert sample.conversations[0].turns[0].text == ("What does [SEG] mean?",)
    assert not any(isinstance(piece, Special) for piece in sample.conversations[0].turns[0].text)


def test_the_marks_become_the_tokens_of_the_models_format():
    release, lisa = SequenceFormat.named("release"), SequenceFormat.named("lisa")
    assert "".join(with_tokens("It is [SEG], no cat [NEG].", release)) == "It is <ins>, no cat <no_ins>."
    assert "".join(with_tokens("It is [SEG], no cat [NEG].", lisa)) == "It is [SEG], no cat."
    assert with_tokens("Just words.", lisa) == ("Just words.",)


def test_evaluation_asks_single_questions_in_their_own_words(tmp_path):
    path = write(
        tmp_path,
        line("Where is it?", "There [SEG] and there [SEG].", masks=[BOX, compressed_rle(LEFT)]),
        line("Where is it?", "It is [SEG].", "Sure?", "Yes.", masks=[BOX]),  # a dialogue
        line("What is it?", "A crack."),  # words
        line("Is there rust?", "No [NEG]."),
    )
    dataset = build_val_dataset(f"own_jsonl:{path}", ".")
    assert len(dataset) == 2
    assert len(training(path).lines) == 4
    found, nothing = dataset[0], dataset[1]
    assert found.expressions == ("Where is it?",)
    assert np.array_equal(found.masks, [(INSIDE + LEFT > 0)])
    assert (found.no_target, nothing.no_target) == ((False,), (True,))
    assert not nothing.masks.any()
    assert nothing.masks.shape == (1, HEIGHT, WIDTH)


def test_own_questions_are_judged_by_the_referring_protocol_as_they_are_written(tmp_path):
    dataset = build_val_dataset(
        f"own_jsonl:{write(tmp_path, line('Where is it?', '[SEG]', masks=[BOX]))}", "."
    )
    settings = EvaluationSettings()
    protocol = protocol_for(dataset[0], settings, has_no_target=dataset.has_no_target)
    assert type(protocol) is ReferringProtocol
    asked = []

    class Model:
        def encode_batch(self, images, *, processor):
            return images

        def generate_batch(self, images, conversations, **_):
            asked.extend(str(conversation.turns[0]) for conversation in conversations)
            return [
                SimpleNamespace(text="It is [SEG].", masks=torch.from_numpy(INSIDE[None] - 0.5), maps=None)
            ]

    ((answer,),) = protocol.predict(Model(), None, [dataset[0]])
    assert asked == ["Where is it?"]
    assert np.array_equal(answer.mask, INSIDE)


def test_a_file_without_single_questions_is_for_training_only(tmp_path):
    path = write(tmp_path, line("What is it?", "A crack."))
    assert len(training(path).lines) == 1
    with pytest.raises(ValueError, match=r"none of the 1 lines .* nothing to evaluate; use it for training"):
        build_val_dataset(f"own_jsonl:{path}", ".")


def test_a_folder_has_a_file_for_each_split(tmp_path):
    write(tmp_path, line("a?", "[SEG]", masks=[BOX]), name="train.jsonl")
    write(tmp_path, *[line("a?", "[SEG]", masks=[BOX])] * 2, name="val.jsonl")
    assert len(training(tmp_path)) == 1
    assert len(build_val_dataset(f"own_jsonl:{tmp_path}", ".")) == 2


@pytest.mark.parametrize("form", ["png", "code"])
def test_masks_line_up_with_an_image_as_the_camera_stored_it(tmp_path, recipe, form):
    path = write(tmp_path, line("a?", "[SEG]", masks=["left.png" if form == "png" else compressed_rle(LEFT)]))
    save(tmp_path / "left.png", LEFT)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", seeded_image(0), exif=exif)
    sample = drawn(path, recipe)
    assert np.array_equal(sample.image, seeded_image(0))
    assert np.array_equal(sample.masks[0], LEFT)


# ----------------------------------------------------------------------------------------- bad input


def test_polygons_of_another_image_are_found_by_the_other_masks_of_that_image(tmp_path, recipe):
    box, rle = line("a?", "[SEG]", masks=[BOX]), line("b?", "[SEG]", masks=[compressed_rle(INSIDE)])
    other = line("c?", "[SEG]", masks=[BOX], image="c.png")
    path = write(tmp_path, box, rle, other)
    save(tmp_path / "c.png", seeded_image(0))
    data = training(path)
    assert [np.array_equal(data.sample_of(index, None, recipe).masks, [INSIDE]) for index in range(3)]
    large = np.repeat(np.repeat(seeded_image(0), 2, axis=0), 2, axis=1)
    save(tmp_path / "a.png", large)
    save(tmp_path / "c.png", large)
    data = training(path)
    for index in range(2):
        with pytest.raises(UnusableItemError) as caught:
            data.sample_of(index, None, recipe)
        assert str((HEIGHT, WIDTH)) in str(caught.value)
        assert str((2 * HEIGHT, 2 * WIDTH)) in str(caught.value)
    data.sample_of(2, None, recipe)  # nothing says what size it had


def without(key):
    entry = line("a?", "[SEG]", masks=[BOX])
    del entry[key]
    return entry


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{not json", "Expecting property name"),
        ("[1]", "a line is an object with image, conversations, masks, got list"),
        (without("image"), "no 'image'; a line has image, conversations, masks"),
        (without("conversations"), "no 'conversations'"),
        (without("masks"), r"1 \[SEG\] in the answers but 0 masks; mask k belongs to the k-th \[SEG\]"),
        (line("a?", "[SEG] [SEG]", masks=[BOX]), r"2 \[SEG\] in the answers but 1 masks"),
        (line("a?", "no", masks=[BOX]), r"0 \[SEG\] in the answers but 1 masks"),
        (line("a?"), "1 turns; a dialogue has as many answers as questions"),
        (line("a?", " "), "an empty turn"),
        (
            {**line("a?", "b"), "conversations": [{"role": "user"}, {}]},
            "a turn of 'conversations' has 'from'",
        ),
        (
            {**line("a?", "b"), "conversations": ["a?", "b"]},
            "a turn of 'conversations' has 'from' and 'value'",
        ),
        ({**line("a?", "b"), "masks": "left.png"}, "'masks' must be a list, got str"),
        ({**line("a?", "b"), "image": 7}, "'image' must be a str, got int"),
    ],
)
def test_lines_that_make_no_sense_are_refused_by_number(tmp_path, entry, message):
    path = write(tmp_path, line("a?", "b"), "", entry)
    with pytest.raises(ValueError, match=f"talk.jsonl, line 3: .*{message}"):
        training(path)


def test_lines_without_their_image_are_dropped_and_counted(tmp_path):
    dataset = training(write(tmp_path, line("a?", "b"), line("a?", "b", image="gone.png")))
    assert len(dataset.lines) == 1
    assert dataset.dropped == [f"{tmp_path}/talk.jsonl, line 2: no image {tmp_path}/gone.png"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("gone.png", r"no file .*gone.png; names of masks are relative to the folder of the jsonl file"),
        ("three.png", r"three.png holds the values \[1, 2\]; a mask has one value besides 0"),
        ("empty.png", r"empty.png is empty; say that something is not in the image with \[NEG\]"),
        ("small.png", r"is \(5, 6\) \(height, width\), its image \(24, 32\); save it as large as the image"),
        ("colours.png", "a label holds one number a pixel, this one is RGB; save class numbers, not colours"),
        ([[2, 2, 10, 10]], "a polygon of 2 points"),
        ([box_polygon(90, 3, 5, 5)], "x 90 to 95, y 3 to 8 lies outside the image"),
        ([2, 2, 10, 10, 3, None], "a polygon holds finite numbers only, got None"),
        ({"size": [24, 32]}, "a run-length code has 'counts' and 'size', got {'size'"),
        ({"size": [5, 6], "counts": [30]}, r"run-length code of size \(5, 6\), image of \(24, 32\)"),
        ({"size": 5, "counts": [30]}, r"run-length code of size 5, image of \(24, 32\)"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 769]}, "run lengths are whole numbers"),
        (7, "a segmentation is a list of polygons or a run-length code, got 7"),
    ],
)
def test_masks_that_cannot_be_right_are_named_with_their_line(tmp_path, recipe, mask, message):
    save(tmp_path / "three.png", np.resize(np.arange(3, dtype=np.uint8), (HEIGHT, WIDTH)))
    save(tmp_path / "empty.png", LEFT * 0)
    save(tmp_path / "small.png", np.ones((5, 6), dtype=np.uint8))
    save(tmp_path / "colours.png", seeded_image(1))
    path = write(tmp_path, line("a?", "[SEG] [SEG]", masks=[BOX, mask]))
    with pytest.raises(UnusableItemError, match=message) as caught:
        drawn(path, recipe)
    assert caught.value.path == f"{path}, line 1"
    assert caught.value.reason.startswith("masks[1]: ")


def test_a_line_ends_at_a_newline_and_not_at_a_separator_of_unicode(tmp_path):
    """JSON allows U+2028 and U+0085 inside a string."""
    asked = "Where is\u2028the\x85crack?"
    lines = [
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "No [NEG]."}],
        }
        for text in (asked, "And here?")
    ]
    save(tmp_path / "a.png", seeded_image(0))
    for encoding, end in (("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n")):
        text = "".join(json.dumps(line, ensure_ascii=False) + end for line in lines)
        (tmp_path / "train.jsonl").write_bytes(text.encode(encoding))
        dataset = OwnJsonl.open(tmp_path, [str(tmp_path)], training=True)
        assert [line.texts[0] for line in dataset.lines] == [asked, "And here?"]


@pytest.mark.parametrize("mark", ["[seg]", "<SEG>", "(neg)", "[ NEG ]"])
def test_marks_that_are_nearly_right_are_pointed_out(tmp_path, caplog, mark):
    path = write(tmp_path, line("Where?", f"It is {mark}."), line("Where?", "No [NEG]."))
    parse_entry(f"own_jsonl:{path}", "--dataset").open("nowhere", training=True)
    assert f"line 1: an answer holds {mark!r}, which is plain text" in caplog.text
    assert "line 2" not in caplog.text


def test_a_list_in_place_of_lines_is_told_what_to_do(tmp_path):
    path = write(tmp_path, line("Where?", "Nowhere."))
    path.write_text(json.dumps([json.loads(path.read_text())], indent=1))
    with pytest.raises(
        ValueError, match=r"line 1: not JSON .*; write one object on each line, and no list around them"
    ):
        parse_entry(f"own_jsonl:{path}", "--dataset").open("nowhere", training=True)
