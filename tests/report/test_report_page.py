"""A report's page in a browser: it opens offline without a complaint, and its table, figures and switch work."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

import cifar_sweep.report.page as report_page
from cifar_sweep.report.facts import ImageFindings, Mistake, collect
from cifar_sweep.sweep.file import find, load
from cifar_sweep.sweep.sweep import Sweep
from tests.report.report_studies import made_up, many, study_of, sweep_of

# Browsers take seconds to start.
pytestmark = pytest.mark.slow
HOSTILE = "<img src='http://example.com/x' onerror='alert(1)'></script><script>alert(2)</script>"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def written(trials: list[FrozenTrial], sweep: Sweep, *, findings: ImageFindings | None = None) -> Path:
    study = study_of(trials, sweep=sweep, name=sweep.name)
    path = Path("page.html").absolute()
    path.write_text(report_page.render(collect(study, findings=findings or ImageFindings())))
    return path


@pytest.fixture
def path() -> Path:
    """A report with everything in it: hostile texts, pictures, trials that ended in every way."""
    sweep = sweep_of(description=HOSTILE)
    trials = many(sweep, 120)
    trials += [made_up(sweep, 120, TrialState.FAIL, reason=HOSTILE), made_up(sweep, 121, label=HOSTILE)]
    pictures = (Mistake(HOSTILE, "cat", 0.99, PIXEL), Mistake("cat", HOSTILE, 0.98, PIXEL))
    classes = (HOSTILE, *(f"a class with a long name {number}" for number in range(9)))
    counts = tuple(tuple(900 if row == column else 11 for column in range(10)) for row in range(10))
    findings = ImageFindings("", 10_000, 10_000, 1234, classes, counts, pictures)
    return written(trials, sweep, findings=findings)


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page, of which nothing may come over a network, and which may complain of nothing."""
    context = browser.new_context(**options)
    complaints: list[str] = []
    # Whatever is not in the file itself is refused, and counted.
    context.route(
        re.compile("^(?!file:|data:|blob:)"), lambda route: (complaints.append(route.request.url), route.abort())
    )
    page = context.new_page()
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def draw_all(page: Any) -> int:
    """Scroll to each figure and wait for it. Returns how many there are."""
    places = page.locator(".plot")
    for place in range(places.count()):
        places.nth(place).scroll_into_view_if_needed()
        places.nth(place).locator(".main-svg").first.wait_for()
    return int(places.count())


def cells(page: Any, title: str) -> list[str]:
    titles = page.locator("#heads th").all_inner_texts()
    return list(page.locator(f"#body td:nth-child({titles.index(title) + 1})").all_inner_texts())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_offline_without_a_complaint(browser: Any, path: Path, scheme: str) -> None:
    with opened(browser, path, color_scheme=scheme) as page:
        assert draw_all(page) > 10
        assert page.locator(".pictures img").first.evaluate("image => image.complete && image.naturalWidth") == 1
        assert HOSTILE in page.locator(".lead").first.inner_text()
        ground = "getComputedStyle(document.body).backgroundColor"
        text = "getComputedStyle(document.querySelector('.plot .xtitle')).fill"
        first = page.evaluate(f"[{ground}, {text}]")
        assert page.locator("#theme").inner_text() == ("Light" if scheme == "dark" else "Dark")
        page.locator("#theme").click()
        second = page.evaluate(f"[{ground}, {text}]")
        assert [light(colour) for colour in first] == ([False, True] if scheme == "dark" else [True, False])
        assert [light(colour) for colour in second] == [not light(colour) for colour in first]


def light(colour: str) -> bool:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) > 3 * 127


def test_the_table_sorts(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        head = page.locator("#heads th", has_text="validation %")
        assert head.get_attribute("aria-sort") == "none"
        first = cells(page, "trial")
        states = cells(page, "state")
        assert states == sorted(states), "complete ones first"
        head.locator("button").click()
        falling = [float(cell) for cell in cells(page, "validation %")]
        assert (head.get_attribute("aria-sort"), falling) == ("descending", sorted(falling, reverse=True))
        head.locator("button").press("Enter")
        rising = [float(cell) for cell in cells(page, "validation %")]
        assert (head.get_attribute("aria-sort"), rising) == ("ascending", sorted(rising))
        assert rising[0] < falling[-1]
        page.locator("#heads th", has_text="state").locator("button").click()
        assert head.get_attribute("aria-sort") == "none"
        assert cells(page, "state")[0] == "complete"
        page.locator("#heads th", has_text="state").locator("button").click()
        assert cells(page, "state")[0] == "pruned"
        page.locator("#heads th", has_text="state").locator("button").click()
        assert cells(page, "trial") == first, "the third time it is as it was"


def test_the_table_is_searched_and_turned(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        assert page.locator("#shown").inner_text() == "122 trials"
        assert page.locator("#page").inner_text() == "page 1 of 3"
        assert len(cells(page, "trial")) == 50
        page.locator("#after").click()
        page.locator("#after").click()
        assert (page.locator("#page").inner_text(), len(cells(page, "trial"))) == ("page 3 of 3", 22)
        assert page.locator("#after").is_disabled()
        page.locator("#search").fill("state=complete batch_size>=64 learning_rate<0.01")
        assert set(cells(page, "state")) == {"complete"}
        assert min(map(int, cells(page, "batch size"))) >= 64
        assert max(map(float, cells(page, "learning rate"))) < 0.01
        assert page.locator("#pager").is_hidden()
        page.locator("#search").fill("onerror")
        assert page.locator("#shown").inner_text() == "2 of 122 trials"
        assert HOSTILE in cells(page, "by hand") + cells(page, "why it ended early")
        page.locator("#search").fill("trial=7")
        assert cells(page, "trial") == ["7"]
        page.locator("#search").fill("nothing like it")
        assert cells(page, "trial") == []


def test_what_is_shown_can_be_taken_away_as_csv(browser: Any, path: Path) -> None:
    with opened(browser, path, accept_downloads=True) as page:
        page.locator("#search").fill("state=failed")
        with page.expect_download() as download:
            page.locator("#csv").click()
        assert download.value.suggested_filename == "mine-trials.csv"
        saved = Path("saved.csv")
        download.value.save_as(saved)
        with saved.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["state"] for row in rows} == {"failed"}
        assert len(rows) == len(cells(page, "trial"))
        assert HOSTILE in {row["reason"] for row in rows}


def test_a_point_leads_to_its_row(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        draw_all(page)
        page.evaluate("document.getElementById('history-plot').emit('plotly_click', { points: [{ customdata: 7 }] })")
        assert cells(page, "trial") == ["7"]
        assert page.locator("#search").input_value() == "trial=7"


def test_figures_are_drawn_when_they_come_near(browser: Any, path: Path) -> None:
    with opened(browser, path, viewport={"width": 1280, "height": 300}) as page:
        page.locator("#body tr").first.wait_for()
        page.wait_for_timeout(300)
        assert page.evaluate("window.Plotly === undefined"), "nothing near the screen needs it yet"
        page.locator("#curves-plot").scroll_into_view_if_needed()
        page.locator("#curves-plot .main-svg").first.wait_for()
        assert page.locator("#seconds-front .main-svg").count() == 0


def test_a_phone_shows_all_without_sideways_scrolling(browser: Any) -> None:
    sweep = load(find("full"))
    trials = many(sweep, 60)
    trials[3].user_attrs["label"] = "a_label_without_any_place_to_break_it_" * 5
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    path = written(trials, sweep)
    with opened(browser, path, **phone) as page:
        draw_all(page)
        page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert beyond(page) == []


def beyond(page: Any) -> list[str]:
    """What reaches beyond the screen, but for what scrolls by itself."""
    script = """() => [...document.querySelectorAll("main *, header *")].filter((element) =>
        element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".sideways, .scroll, pre, nav")
    ).map((element) => element.outerHTML.slice(0, 80))"""
    found: list[str] = page.evaluate(script)
    return found


def test_a_phone_shows_long_class_names(browser: Any, path: Path) -> None:
    with opened(browser, path, viewport={"width": 360, "height": 740}) as page:
        assert beyond(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("kind", ["nothing", "one", "failed"])
def test_small_studies_open_too(browser: Any, kind: str) -> None:
    sweep = sweep_of()
    trials = {"nothing": [], "one": [made_up(sweep, 0)], "failed": [made_up(sweep, 0, TrialState.FAIL)]}[kind]
    with opened(browser, written(trials, sweep)) as page:
        draw_all(page)
        assert len(cells(page, "trial")) == len(trials)


def test_2000_rows_are_sorted_and_searched_at_once(browser: Any) -> None:
    sweep = sweep_of(trials=2000)
    with opened(browser, written(many(sweep, 2000), sweep)) as page:
        timed = """() => {
            const start = performance.now();
            document.querySelectorAll("#heads button")[2].click();
            const search = document.getElementById("search");
            search.value = "state=complete learning_rate<0.001";
            search.dispatchEvent(new Event("input"));
            return performance.now() - start;
        }"""
        assert page.evaluate(timed) < 1000
        assert 10 < int(page.locator("#shown").inner_text().split()[0]) < 1000


def test_without_scripts_the_answer_is_there(browser: Any, path: Path) -> None:
    with opened(browser, path, java_script_enabled=False) as page:
        assert page.locator(".card .value").first.is_visible()
        assert "drawn by JavaScript" in page.locator("noscript").first.inner_text()


# Colours


def _themes() -> dict[str, dict[str, str]]:
    """The colours of each theme, by name."""
    style = (Path(report_page.__file__).parent / "templates" / "page.css").read_text()
    blocks = re.findall(r":root([^{]*)\{([^}]*)\}", style)
    found = {
        selector.strip() or "light": dict(re.findall(r"--(\w[\w-]*): (#\w+)", block)) for selector, block in blocks
    }
    assert found['[data-theme="dark"]'] == found[':not([data-theme="light"])'], "the two ways to dark are one"
    return {"light": found["light"], "dark": found['[data-theme="dark"]']}


def _luminance(colour: str) -> float:
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(theme: str) -> None:
    """WCAG's 4.5 for texts."""
    colours = _themes()[theme]
    pairs = [(ink, ground) for ink in ("ink", "quiet", "accent", "mark") for ground in ("ground", "surface")]
    for ink, ground in [*pairs, ("ink", "accent-soft"), ("quiet", "accent-soft"), ("ink", "mark-soft")]:
        high, low = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
