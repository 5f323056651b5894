"""The pages of `plot` and `compare` are safe and whole in themselves, and say what the numbers are of."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest
from optuna.trial import TrialState

from cifar_sweep.errors import DiskError, StudyError
from cifar_sweep.figures.curve_figures import learning_curves
from cifar_sweep.figures.hand_figures import claimed_against_measured
from cifar_sweep.figures.search_figures import accuracy_by_learning_rate
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.report.plot import comparison_page, figure_page, study_page
from cifar_sweep.study.record import records
from tests.figures.test_figures import DATA, HOSTILE, ROWS, TRIALS, trial
from tests.report.report_studies import made_up, study_of, sweep_of


class Page(HTMLParser):
    """The elements of a page with their attributes, and its texts outside of scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def figures_of(page: str) -> dict[str, Any]:
    """The figures of a page, as a browser reads them, by their place."""
    found = re.findall(r'<script type="application/json" id="figure-([\w-]+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def test_a_page_escapes_what_users_wrote(tmp_path: Path) -> None:
    hostile = HandRow(HOSTILE, "lenet", claimed=50.0, trial=0, state="complete", test=0.5, note=HOSTILE, data=HOSTILE)
    labelled = records([trial(0, TrialState.COMPLETE, [0.5], label=HOSTILE)])
    figures = [
        (HOSTILE, HOSTILE, claimed_against_measured([hostile])),
        (HOSTILE, HOSTILE, learning_curves(labelled, data=HOSTILE)),
        (HOSTILE, HOSTILE, accuracy_by_learning_rate(labelled, data=HOSTILE)),
    ]
    figure_page(tmp_path / "page.html", figures, title=HOSTILE, facts={HOSTILE: HOSTILE}, remark=HOSTILE)
    source = (tmp_path / "page.html").read_text()
    page = Page(source)
    assert (page.count("script"), page.count("b")) == (3 + 2, 0), "figures, plotly, our own lines, and no more"
    assert page.words.count("<script>alert(1)</script>") == 2 + 2 + 1 + 2 * 3, "title, h1, fact, remark, headings"
    assert source.count("alert(1)</script>") == 0
    texts = json.dumps(figures_of(source))
    assert "alert(1)" in texts
    # Plotly reads HTML in its texts: what is a tag there must be one of ours.
    assert set(re.findall(r"<(/?\w+)", texts)) <= {"br", "extra", "/extra"}


def test_no_text_in_a_figure_ends_the_script(tmp_path: Path) -> None:
    figure = go.Figure(layout={"xaxis": {"title": {"text": HOSTILE}}, "margin": {"t": 0}})
    figure_page(tmp_path / "page.html", [("a", "b", figure)], title="t", facts={})
    source = (tmp_path / "page.html").read_text()
    assert Page(source).count("script") == 3
    assert figures_of(source)["figure-1"]["layout"]["xaxis"]["title"]["text"] == HOSTILE


def test_a_page_is_whole_in_itself(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    figures = [
        ("Curves", "what one sees", learning_curves(TRIALS, data=DATA)),
        ("Rows", "", claimed_against_measured(ROWS)),
    ]
    figure_page(path, figures, title="study tiny", facts={"data": DATA, "device": "cpu", "commit": ""})
    source = path.read_text()
    page = Page(source)
    assert not [attributes for _, attributes in page.elements if {"src", "href"} & attributes.keys()]
    assert source.count("plotly.js v") == 1, "the library once, in the file"
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    assert "prefers-color-scheme: dark" in source
    assert f"data: {DATA}" in page.words
    assert "commit" not in page.words, "what is not known is left out"
    drawn = figures_of(source)
    assert [len(each["data"]) for each in drawn.values()] == [len(figure.data) for _, _, figure in figures]
    assert not [each for each in drawn.values() if "width" in each["layout"]], "as wide as the screen"


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="could not be written"):
        figure_page(tmp_path / "file" / "page.html", [], title="t", facts={})


def test_claims_beside_measurements_on_synthetic_images() -> None:
    comparison_page(Path("page.html"), ROWS)
    words = Page(Path("page.html").read_text()).words
    assert f"measured on: {DATA}" in words
    assert "synthetic images say nothing about CIFAR-10" in words
    assert "shortened runs" in words
    comparison_page(Path("page.html"), ROWS[2:3])
    words = Page(Path("page.html").read_text()).words
    assert "measured on: nothing yet" in words
    assert "synthetic" not in words
    assert "shortened" not in words


def test_a_study_without_a_learning_rate_and_without_an_epoch() -> None:
    sweep = sweep_of(fixed={"model": "cnn3", "epochs": 10}, space={"dropout": {"low": 0, "high": 0.5}})
    study_page(Path("page.html"), study_of([made_up(sweep, n) for n in range(3)], sweep=sweep), curves=2)
    page = Path("page.html").read_text()
    assert "The 2 best trials" in page
    assert list(figures_of(page)) == ["figure-1"], "no accuracy by learning rate, which was not searched"
    with pytest.raises(StudyError, match="no trial with a finished epoch"):
        study_page(Path("page.html"), study_of([], sweep=sweep), curves=2)


def test_the_command_draws_a_study(cli: Any) -> None:
    study_of([made_up(sweep_of(), n) for n in range(3)], stored=True)
    assert "written: mine.html" in cli("plot").out
    page = Path("mine.html").read_text()
    assert "Learning curves" in page
    assert "Accuracy by learning rate" in page
    assert "CIFAR-10 (0123456789abcdef)" in page
    assert cli("plot", "mine", "--trials", 2, "--out", "two.html").exit_code == 0
    assert "The 2 best trials" in Path("two.html").read_text()


@pytest.mark.slow
def test_a_browser_draws_the_figures(browser: Any) -> None:
    comparison_page(Path("page.html"), ROWS)
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark", offline=True)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(Path("page.html").absolute().as_uri())
    page.locator(".plot .main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 20)"
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 248)"
    assert complaints == []
    context.close()
