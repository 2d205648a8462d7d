"""Names in Markdown pages are text."""

import re

import pytest

from benchmarks.attack.names import NAMES
from benchmarks.attack.runner import CONTROL, MARKUP, REMOTE
from utils.reports.markdown import code, escaped
from utils.reports.model_card import settings_table
from utils.reports.pages import render
from utils.reports.report import Report, Result
from utils.reports.tables import to_markdown


def is_harmless(page):
    outside_code = re.sub(r"`[^`\n]*`", "", re.sub(r"\\`", "", page))
    return not any(pattern.search(outside_code) for pattern in (CONTROL, MARKUP, REMOTE))


@pytest.mark.parametrize("name", NAMES.values())
def test_names_are_no_markup(name):
    assert is_harmless(escaped(name))
    assert is_harmless(code(name))
    assert is_harmless(settings_table({"dataset": name}, ("dataset",)))


def test_control_characters_of_names_do_not_reach_a_page(tmp_path):
    (tmp_path / "a.jinja").write_text("<p>{{ name }}</p>\n")
    page = render(tmp_path / "a.jinja", name="<b>\x1b[2J \u202ecat")
    assert page == "<p>&lt;b&gt;\\x1b[2J \\u202ecat</p>\n"


def test_plain_names_stay_as_they_are():
    assert escaped("traffic light (left), 50 %") == "traffic light (left), 50 %"
    assert code("refcoco|unc|val") == "`refcoco|unc|val`"


@pytest.mark.parametrize("name", NAMES.values())
def test_a_report_shows_names_as_text(name):
    result = Result(
        dataset=f"own_coco:{name}",
        task="semantic",
        num_samples=1,
        sections={"semantic": {"mean_iou": 0.5}, "hallucinated_names": {name: 2}},
        per_class={name: {"iou": 0.5}},
        data={"summary": name, "left_out": {"missing": 1}, "examples": (name,)},
        notes=(name,),
    )
    page = to_markdown(Report(model=name, protocol={"prompt": name}, results=(result,), facts={name: name}))
    assert is_harmless(page)
    for row in re.findall(r"^\| .* \|$", page, re.M):  # no name adds a cell
        if "own_coco" in row:
            assert len(re.findall(r"(?<!\\)\|", row)) in (4, 5, 6)
