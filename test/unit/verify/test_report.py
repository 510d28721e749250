"""The report, the plot and the command line of `sglang verify`."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from sglang.cli.main import COMMANDS, load
from sglang.cli.verify import default_output
from sglang.verify.command import FULL, QUICK, Options, Verification
from sglang.verify.forms import FORMS
from sglang.verify.plot import error_plot
from sglang.verify.summary import Section, Summary

SVG = "{http://www.w3.org/2000/svg}"


def summary(*outcomes: bool | None) -> Summary:
    sections = [Section(f"s{i}", passed, "found | this") for i, passed in enumerate(outcomes)]
    return Summary("m", "sglang verify m", {"torch": "1"}, sections)


@pytest.mark.parametrize(
    ("outcomes", "passed"),
    [((True,), True), ((True, None), True), ((True, False), False), ((None,), False), ((), False)],
)
def test_passing_needs_a_proof_and_no_failure(
    outcomes: tuple[bool | None, ...], passed: bool
) -> None:
    assert summary(*outcomes).passed is passed


def test_files_hold_the_same_and_are_valid(tmp_path: Path) -> None:
    report = summary(True, False)
    report.sections[1].data = {"worst": math.inf, "nan": math.nan, "list": [1.0, -math.inf]}
    report.write(tmp_path)
    text = (tmp_path / "report.json").read_text()
    plain = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert plain["passed"] is False
    data = {"worst": "Infinity", "nan": "NaN", "list": [1.0, "-Infinity"]}
    assert plain["sections"][1]["data"] == data
    markdown = (tmp_path / "report.md").read_text()
    assert "| s1 | **FAIL** | 0.0 | found \\| this |" in markdown


def test_the_plot_has_a_point_per_layer_and_marks_what_is_above_the_bound() -> None:
    rows = [("0", 1e-7), ("1", 3e-3), ("2 & <x>", math.inf), ("logits", 0.0)]
    root = ElementTree.fromstring(error_plot("a < b", rows, 1e-4))
    circles = root.findall(f".//{SVG}circle")
    fills = [circle.get("fill") for circle in circles]
    assert len(circles) == 4 and fills[0] == fills[3] != fills[1] == fills[2]
    heights = [float(circle.get("cy") or "nan") for circle in circles]
    assert heights[2] < heights[1] < heights[0] < heights[3] <= 320
    assert circles[1].find(f"{SVG}title").text == "1: 0.003"  # type: ignore[union-attr]


def test_quick_has_every_kind_and_full_has_every_form() -> None:
    assert set(FORMS) < set(FULL) and set(QUICK) < set(FULL)
    names = " ".join(form.name for form in QUICK)
    for kind in ("whole", "chunks", "full hit", "partial hit", "mixed", "retraction", "logprobs"):
        assert kind in names
    assert {form.page_size for form in QUICK} == {1, 16}
    assert "order of arrival" in names


def test_an_error_becomes_a_failed_section_and_the_rest_is_skipped(tmp_path: Path) -> None:
    said: list[Section] = []
    options = Options(output=tmp_path / "out", model=str(tmp_path), speed=False)
    result = Verification(options, "command", said.append).run()
    assert not result.passed and said == result.sections
    outcomes = [(section.title, section.passed) for section in result.sections]
    assert outcomes[0] == ("checkpoint", False)
    assert {passed for _, passed in outcomes[1:]} == {None}
    assert "has no config.json" in result.sections[0].summary
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.parametrize("words", [[], ["a", "--tiny", "b"], ["--full", "--quick", "a"], ["--odd"]])
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert load(COMMANDS["verify"])(words, "sglang verify") == 2
    assert "usage: sglang verify" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "taken"
    path.write_text("")
    words = ["--tiny", "llama", "--output", str(path)]
    assert load(COMMANDS["verify"])(words, "sglang verify") == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "folder"),
    [("a/b c", "verify-b-c"), ("x/y.json", "verify-y"), ("m/", "verify-m"), (".", "verify-model")],
)
def test_default_output(name: str, folder: str) -> None:
    assert default_output(name) == folder
