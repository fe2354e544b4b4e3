"""The page of `astrolabe watch` in a real browser: needs playwright and Debian's chromium."""

import json
import shutil
import threading

import numpy as np
import pytest
import uvicorn

from astrolabe.load import load
from astrolabe.metrics_file import go_on_after
from astrolabe.run_folder import RunFolder
from astrolabe.tracking import Tracker
from astrolabe.watch_app import make_app
from astrolabe_eval import write_mp4

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PROMPT = "a <b>red</b> circle & <img src=x onerror=alert(1)>"
TOTAL = "figure:has-text('reward/total')"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of the runs in ``tmp_path``; fails if the console had anything to say."""
    server = uvicorn.Server(uvicorn.Config(make_app(tmp_path), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    said, contexts = [], []

    def open_page(query="", **settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((url, "data:")) or said.append(request.url),
        )
        page.goto(url + query)
        return page

    yield open_page
    for context in contexts:
        context.close()
    server.should_exit = True
    thread.join()
    assert said == []


def make_run(path, steps):
    folder = RunFolder.claim(path)
    folder.begin(load(["tiny"], ["rewards.flow_mq.weight=0"]))
    log(folder, 1, steps)
    return folder


def log(folder, first, last, offset=0.0):
    with Tracker(folder) as tracker:
        for step in range(first, last + 1):
            metrics = {"reward/total": step + offset, "reward/flow_mq": 1 / step, "loss/kl": 0.0}
            alarm = {"guard/alarm": float(step == 3), "guard/skipped": 0.0, "own": -1.0}
            tracker.log(step, metrics | alarm | {"time/sample_s": 2.0, "time/score_s": 1.0})


def write_samples(folder, step):
    place = folder.samples / f"step-{step:06d}"
    rank = {0: 4, 1: 1}
    videos = [
        {"file": f"{index}.mp4", "prompt": PROMPT, "group": 7, "reward": -index, "of": 4}
        | {"rank": rank[index], "scores": {"flow_mq": 0.5}}
        for index in rank
    ]
    for index in rank:
        frames = np.random.default_rng(index).integers(0, 256, (32, 3, 48, 48), dtype=np.uint8)
        write_mp4(place / f"{index}.mp4", frames, 16.0, min_side=192)
    (place / "index.json").write_text(json.dumps({"step": step, "videos": videos}))


def points(page, kind="mean"):
    """How many points the curve of the total reward has."""
    return page.locator(f"{TOTAL} path.{kind}").first.get_attribute("d").count("h0")


def test_the_page_says_where_it_is(show, tmp_path):
    make_run(tmp_path / "first", steps=4)
    page = show()
    page.wait_for_selector(TOTAL)
    assert page.title() == "4/20 first"
    assert page.locator("h1").inner_text() == "first"
    assert "Step 4 of 20 · about 0:48 left · 3 s a step" in page.locator("#state").inner_text()
    for landmark in ("banner", "main", "navigation"):
        assert page.get_by_role(landmark).count() == 1
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings == ["Alarms", "Rewards", "Policy", "Guard", "Time", "Other", "Settings"]
    assert page.get_by_role("navigation").get_by_role("link").all_inner_texts() == headings
    rewards = page.locator("#Rewards figcaption span:first-child").all_inner_texts()
    assert rewards == ["reward/total", "reward/flow_mq (held out)"]
    assert "Step 3: ALARM" in page.locator("#alarms").inner_text()
    assert page.locator(f"{TOTAL} .alarm").count() == 1


def test_curves_grow_while_the_run_does_and_a_resumed_run_starts_anew(show, tmp_path):
    folder = make_run(tmp_path / "first", steps=6)
    page = show()
    page.wait_for_selector(TOTAL)
    assert (points(page), points(page, "raw")) == (6, 6)
    log(folder, 7, 9)
    with folder.metrics.open("ab") as file:
        file.write(b"damage\n")
    page.wait_for_selector(f"{TOTAL}:has-text('step 9: 9')")
    assert points(page) == 9
    page.wait_for_selector("#notice:has-text('1 damaged')")
    go_on_after(folder.metrics, 2)
    log(folder, 3, 11, offset=0.5)
    page.wait_for_selector(f"{TOTAL}:has-text('step 11: 11.5')")
    assert points(page) == 11
    assert page.locator("#notice").inner_text() == ""


def test_a_run_that_has_not_begun_is_waited_for(show, tmp_path):
    page = show()
    page.wait_for_selector("#state:has-text('Waiting for a run')")
    folder = make_run(tmp_path / "first", steps=0)
    page.wait_for_selector("#state:has-text('Waiting for the first step')")
    log(folder, 1, 1)
    page.wait_for_selector(TOTAL)
    assert points(page) == 1
    assert "Step 1 of 20" in page.locator("#state").inner_text()


def test_the_newest_samples_play_best_first(show, tmp_path):
    folder = make_run(tmp_path / "first", steps=4)
    write_samples(folder, step=2)
    page = show()
    page.wait_for_selector("#samples video")
    assert page.locator("#samples figcaption").inner_text() == PROMPT
    texts = page.locator("#samples .pair > div").all_inner_texts()
    assert [" ".join(text.split()) for text in texts] == [
        "best of 4 total -1 flow_mq 0.5",
        "worst of 4 total 0 flow_mq 0.5",
    ]
    while page.evaluate("document.querySelector('video').currentTime") < 0.2:
        page.wait_for_timeout(50)
    assert page.evaluate("document.querySelector('video').readyState") >= 2
    write_samples(folder, step=4)
    page.wait_for_selector("#samples video[src*='step-000004']")
    page.locator("#samples-step").select_option("2")
    page.wait_for_selector("#samples video[src*='step-000002']")


def test_all_can_be_reached_and_read_by_keyboard(show, tmp_path):
    make_run(tmp_path / "first", steps=6)
    page = show()
    plot = page.get_by_role("slider", name="reward/total: step")
    plot.wait_for()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') || document.activeElement.id ||"
                " document.activeElement.tagName"
            )
        )
    assert {"A", "smooth", "SUMMARY", "reward/total: step", "time/score_s: step"} <= set(reached)
    plot.focus()
    for key, step in (("ArrowLeft", 5), ("ArrowLeft", 4), ("ArrowRight", 5), ("Home", 1)):
        page.keyboard.press(key)
        assert plot.get_attribute("aria-valuetext") == f"step {step}: {step}"
    assert page.locator(f"{TOTAL} circle.look").count() == 1
    page.locator(f"{TOTAL} summary").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{TOTAL} tbody td")
    assert page.locator(f"{TOTAL} tbody td").all_inner_texts()[:4] == ["6", "6", "5", "5"]


def test_the_moving_mean_can_be_left_out(show, tmp_path):
    make_run(tmp_path / "first", steps=6)
    page = show()
    page.wait_for_selector(f"{TOTAL} path.raw")
    page.get_by_label("moving mean").uncheck()
    page.wait_for_selector(f"{TOTAL} path.raw", state="detached")
    assert points(page) == 6


def test_chosen_runs_lie_over_each_other_and_a_reload_keeps_them(show, tmp_path):
    make_run(tmp_path / "first", steps=6)
    make_run(tmp_path / "second run", steps=3)
    page = show("?run=first&detail=first")
    page.wait_for_selector(TOTAL)
    assert page.locator(f"{TOTAL} path.mean").count() == 1
    page.get_by_role("checkbox", name="second run").check()
    page.wait_for_selector(f"{TOTAL}:has-text('first 6 · second run 3')")
    page.get_by_role("navigation").get_by_text("Rewards").click()
    page.reload()
    page.wait_for_selector(TOTAL)
    styles = [line.get_attribute("class") for line in page.locator(f"{TOTAL} path.mean").all()]
    assert styles == ["mean c0", "mean c1"]
    page.get_by_role("radio", name="Samples and settings of second run").check()
    page.wait_for_selector("h1:has-text('second run')")


def test_it_fits_a_phone_and_follows_its_theme_and_wish_for_stillness(show, tmp_path):
    folder = make_run(tmp_path / ("a-run-with-a-long-name-" * 4), steps=4)
    write_samples(folder, step=2)
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    page = show(**phone, reduced_motion="reduce")
    page.wait_for_selector("#samples video")
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert page.evaluate("[...document.querySelectorAll('video')].every((video) => video.paused)")


def test_a_lost_server_is_said_and_a_run_that_went_away_is_let_go(show, tmp_path):
    make_run(tmp_path / "first", steps=3)
    make_run(tmp_path / "second", steps=3)
    page = show("?detail=first")
    page.wait_for_selector("#runs tbody tr:nth-child(2)")
    shutil.rmtree(tmp_path / "first")
    page.wait_for_selector("h1:has-text('second')")
    page.wait_for_selector(TOTAL)
    page.route("**/api/**", lambda route: route.fulfill(status=200, body="no JSON"))
    page.wait_for_selector("#notice:has-text('No answer')")
    page.unroute("**/api/**")
    page.wait_for_selector("#notice:empty", state="attached")
