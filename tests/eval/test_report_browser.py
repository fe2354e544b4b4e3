"""The pages in a real browser, from disk: Debian's chromium, driven by playwright."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from astrolabe_eval import Evaluation, Suite, write_report
from astrolabe_eval.votes import read_votes, write_votes

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 360, "height": 740}
COUNT = 30
FPS = 8.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a file from disk; at the end, nothing may have been logged or asked of the network."""
    complaints, contexts = [], []

    def open_(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:", "blob:"))
                else complaints.append(request.url)
            ),
        )
        page.goto(Path(path).as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def _evaluation(gain, **more):
    """Thirty prompts; all videos are the same four seconds of a square that moves."""
    generator = np.random.default_rng(round(10 * gain))
    total = np.linspace(-1, 1, COUNT) + gain * generator.uniform(0.5, 1.5, COUNT)
    video = np.full((31, 3, 48, 48), 90, dtype=np.uint8)
    for index, frame in enumerate(video):
        frame[0, 16:28, 4 + index : 16 + index] = 220
    return Evaluation(
        suite=Suite("demo", tuple(f"a red square, take {index}" for index in range(COUNT))),
        rewards={"total": total, "part": total / 2, "watched": -total},
        judges={"check": generator.normal(size=COUNT)},
        videos=[video] * COUNT,
        fps=FPS,
        held_out=("watched",),
        **more,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two models."""
    folder = tmp_path_factory.mktemp("pair")
    curves = {"total": ([0, 1, 2], [0.0, 0.5, 0.7])}
    write_report(folder, _evaluation(0), _evaluation(1), curves=curves, details={"seed": "0"})
    return folder / "report.html"


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """A report of a base and two checkpoints, one of them unfinished."""
    folder = tmp_path_factory.mktemp("several")
    last = _evaluation(2, missing={"a red square, take 30": "not finished"})
    write_report(folder, _evaluation(0), {"step 10": _evaluation(1), "step 20": last})
    return folder / "report.html"


def _times(row):
    return row.evaluate("row => [...row.querySelectorAll('video')].map((v) => v.currentTime)")


def _first_row(page):
    row = page.locator(".row").first
    row.scroll_into_view_if_needed()
    return row


def _wait_until_playing(page, row):
    page.wait_for_function(
        "row => [...row.querySelectorAll('video')].every((v) => !v.paused && v.currentTime > 0)",
        arg=row.element_handle(),
    )


@pytest.mark.parametrize("which", ["report", "partial"])
def test_videos_of_a_row_play_in_step_over_several_rounds(open_page, request, which):
    page = open_page(request.getfixturevalue(which))
    row = _first_row(page)
    _wait_until_playing(page, row)
    seen = []
    for _ in range(60):
        seen.append(_times(row))
        page.wait_for_timeout(100)
    leads = [times[0] for times in seen]
    apart = [max(times) - min(times) for times in seen]
    rounds = sum(later < earlier for earlier, later in pairwise(leads))
    assert rounds >= 1
    assert max(leads) > 3
    assert max(apart) < 0.1


def test_a_video_that_has_fallen_behind_catches_up(open_page, report):
    page = open_page(report)
    row = _first_row(page)
    _wait_until_playing(page, row)
    row.evaluate("row => { row.querySelectorAll('video')[1].currentTime = 0; }")
    page.wait_for_timeout(1000)
    first, second = _times(row)
    assert abs(first - second) < 0.1


def test_one_bar_plays_pauses_and_scrubs_all_videos_by_keyboard(open_page, report):
    page = open_page(report)
    row = _first_row(page)
    _wait_until_playing(page, row)
    button, slider = row.get_by_role("button"), row.get_by_role("slider")
    button.focus()
    page.keyboard.press("Enter")
    assert button.inner_text() == "Play"
    stopped = _times(row)
    assert stopped[0] == pytest.approx(stopped[1], abs=1e-6)
    page.wait_for_timeout(300)
    assert _times(row) == stopped
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert _times(row) == pytest.approx([3.5 / FPS] * 2, abs=1e-3)
    assert slider.get_attribute("aria-valuetext") == "frame 4 of 31"
    page.keyboard.press("Space")
    _wait_until_playing(page, row)
    assert button.inner_text() == "Pause"
    row.locator("video").nth(1).click()
    assert row.evaluate("row => [...row.querySelectorAll('video')].every((v) => v.paused)")


def test_only_what_is_in_sight_plays_and_one_button_stops_all(open_page, report):
    page = open_page(report)
    paused = "rows => rows.map((row) => row.querySelector('video').paused)"
    _wait_until_playing(page, _first_row(page))
    states = page.locator(".row").evaluate_all(paused)
    assert not states[0]
    assert states[-1]
    page.get_by_role("button", name="Pause all").click()
    assert all(page.locator(".row").evaluate_all(paused))
    page.locator(".row").last.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert all(page.locator(".row").evaluate_all(paused))


def test_nothing_moves_for_those_who_asked_for_stillness(open_page, report):
    page = open_page(report, reduced_motion="reduce")
    row = _first_row(page)
    page.wait_for_timeout(500)
    assert _times(row) == [0, 0]
    row.get_by_role("button", name="Play").click()
    _wait_until_playing(page, row)


def test_tables_sort_both_ways_and_say_so(open_page, report):
    page = open_page(report)
    table = page.get_by_role("table", name="All prompts")
    page.locator("summary", has_text=f"{COUNT} prompts").click()
    head = table.locator("thead th").nth(4)
    shown = "rows => rows.map((row) => Number(row.cells[4].dataset.value))"
    for order, reverse in (("descending", True), ("ascending", False)):
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        values = table.locator("tbody tr").evaluate_all(shown)
        assert len(values) == COUNT
        assert values == sorted(values, reverse=reverse)
    assert table.locator("[aria-sort]").count() == 1
    table.locator("thead th").nth(1).get_by_role("button").click()
    names = table.locator("tbody th").all_inner_texts()
    assert names == [f"a red square, take {index}" for index in range(COUNT)]


def test_the_files_in_the_page_can_be_saved(open_page, report):
    page = open_page(report)
    for name in ("report.json", "report.csv", "report.md", "report.tex"):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.suggested_filename == name
        assert Path(download.value.path()).read_bytes() == report.with_name(name).read_bytes()


def test_the_tab_key_reaches_every_kind_of_control_and_shows_where_it_is(open_page, report):
    page = open_page(report)
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        what, outlined = page.evaluate(
            """() => { const e = document.activeElement;
            return [e.tagName + (e.type || ""), getComputedStyle(e).outlineStyle !== "none"]; }"""
        )
        reached.add(what)
        assert outlined or what == "BODY"
    assert {"A", "BUTTONbutton", "INPUTrange", "SUMMARY"} <= reached


@pytest.mark.parametrize("which", ["report", "partial"])
def test_screen_readers_find_language_headings_and_names(open_page, request, which):
    page = open_page(request.getfixturevalue(which))
    assert page.locator("html").get_attribute("lang") == "en"
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map((h) => Number(h.tagName[1]))")
    assert levels.count(1) == 1 == levels[0]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert page.locator("main").count() == 1
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("video:not([aria-label]), input:not([aria-label])").count() == 0
    assert page.locator("table:not([aria-labelledby])").count() == 0
    buttons = page.locator("button").evaluate_all("all => all.map((b) => b.textContent.trim())")
    assert all(buttons)
    ids = page.locator("[id]").evaluate_all("all => all.map((e) => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("which", ["report", "partial"])
def test_the_page_fits_a_phone(open_page, request, which):
    page = open_page(request.getfixturevalue(which), viewport=PHONE)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]
    boxes = page.locator(".row video").evaluate_all(
        "all => all.map((v) => [v.getBoundingClientRect().left, v.getBoundingClientRect().right])"
    )
    assert all(0 <= left < right <= PHONE["width"] for left, right in boxes)


def test_an_unfinished_evaluation_says_so_at_the_top(open_page, partial):
    page = open_page(partial)
    assert page.title().endswith("(partial)")
    notice = page.get_by_role("region", name="This evaluation is partial")
    assert "1 sample of step 20" in notice.inner_text()
    notice.locator("summary").click()
    assert "a red square, take 30: not finished" in notice.inner_text()


@pytest.fixture
def votes(tmp_path):
    models = _evaluation(0), _evaluation(1)
    write_votes(tmp_path, *models, labels=("base", "tuned"), pairs=5, seed=7)
    return tmp_path


def _save(page, folder, name):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save votes").click()
    path = folder / "saved" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(Path(download.value.path()).read_bytes())
    return path, download.value.suggested_filename


def test_votes_by_keyboard_survive_a_reload_and_are_read_back(open_page, votes):
    page = open_page(votes / "votes.html")
    key = json.loads((votes / "votes-key.json").read_text())
    sides = [pair["after"] for pair in key["pairs"].values()]
    arrows = {"left": "ArrowLeft", "right": "ArrowRight"}
    page.get_by_label("Your name").fill("Anna B.")
    page.keyboard.press("Enter")
    assert page.locator("#where").inner_text() == "Pair 1 of 5, 0 judged"
    page.keyboard.press(arrows[sides[0]])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Backspace")
    assert page.get_by_role("button", name="Tie").get_attribute("aria-pressed") == "true"
    page.keyboard.press(arrows[sides[1]])
    page.reload()
    assert page.locator("#where").inner_text() == "Pair 3 of 5, 2 judged"
    page.keyboard.press("ArrowDown")
    page.keyboard.press(arrows["left" if sides[3] == "right" else "right"])
    part, _ = _save(page, votes, "part.json")
    assert read_votes(part, votes / "votes-key.json")["pooled"]["votes"] == 4
    part.unlink()
    page.get_by_role("button", name="Left").click()
    assert "All 5 pairs are judged" in page.locator("#done").inner_text()
    _, name = _save(page, votes, "anna.json")
    assert name == f"votes-{key['page']}-Anna_B_.json"
    result = read_votes(votes / "saved", votes / "votes-key.json")
    last = sides[4] == "left"
    tally = result["raters"]["Anna B."]
    assert (tally["wins"], tally["ties"], tally["losses"]) == (2 + last, 1, 2 - last)
    assert result["labels"] == ["base", "tuned"]


def test_a_second_person_starts_afresh_and_unsaved_votes_are_asked_about(open_page, votes):
    page = open_page(votes / "votes.html")
    page.get_by_label("Your name").fill("Anna")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    other = page.get_by_role("button", name="Another person votes")
    other.click()
    assert "not saved" in asked[0]
    assert page.locator("#where").inner_text() == "Pair 2 of 5, 1 judged"
    _save(page, votes, "anna.json")
    other.click()
    assert len(asked) == 1
    page.keyboard.type("Bo")
    page.keyboard.press("Enter")
    assert page.locator("#where").inner_text() == "Pair 1 of 5, 0 judged"


def test_the_pair_on_show_plays_in_step_and_arrow_keys_on_its_slider_do_not_vote(open_page, votes):
    page = open_page(votes / "votes.html")
    page.get_by_label("Your name").fill("Anna")
    page.keyboard.press("Enter")
    row = page.locator(".row:visible")
    _wait_until_playing(page, row)
    for _ in range(10):
        first, second = _times(row)
        assert abs(first - second) < 0.1
        page.wait_for_timeout(100)
    page.keyboard.press("Space")
    assert row.get_by_role("button").inner_text() == "Play"
    row.get_by_role("slider").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert _times(row) == pytest.approx([1.5 / FPS] * 2, abs=1e-3)
    assert page.locator("#where").inner_text() == "Pair 1 of 5, 0 judged"


def test_the_votes_page_has_names_for_everything_and_fits_a_phone(open_page, votes):
    page = open_page(votes / "votes.html", viewport=PHONE)
    assert page.locator("html").get_attribute("lang") == "en"
    page.get_by_label("Your name").fill("Anna")
    page.get_by_role("button", name="Begin").click()
    assert page.get_by_role("progressbar", name="Pairs judged").is_visible()
    assert page.get_by_role("group", name="Which video is better?").is_visible()
    assert page.locator("video:not([aria-label]), [type=range]:not([aria-label])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    # The next pair's words are read out.
    page.get_by_role("button", name="Left").click()
    assert page.evaluate("document.activeElement.tagName") == "H2"
