import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from astrolabe_eval import (
    Evaluation,
    Suite,
    compare,
    interval_in_words,
    read_mp4,
    write_report,
    write_votes,
)
from astrolabe_eval.agreement_report import write_agreement
from astrolabe_eval.plots import score_changes

HOSTILE = '<img src=x onerror="alert(1)"> & "quotes"'


class _Page(HTMLParser):
    """Tags in order, and every attribute that can load something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [
            value
            for name, value in attributes
            if name in ("src", "srcset", "href", "poster", "data")
        ]


@pytest.fixture
def evaluation(moving_square):
    """Four prompts, one hostile; video i is shifted by i."""

    def make(gain, count=4):
        prompts = (HOSTILE, *(f"prompt number {index}" for index in range(1, count)))
        total = np.arange(count) + gain * np.linspace(1, 2, count)
        return Evaluation(
            suite=Suite("demo", prompts),
            rewards={"total": total, "part": total / 2},
            judges={"check": -total},
            videos=[moving_square(index % 4, num_frames=3) for index in range(count)],
            fps=8.0,
        )

    return make


def test_the_page_loads_nothing_from_elsewhere(tmp_path, evaluation):
    curves = {"total": ([0, 1], [0.0, 1.0])}
    write_report(tmp_path, evaluation(0), evaluation(1), curves=curves)
    text = (tmp_path / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    page = _Page(text)
    assert page.sources
    assert all(source.startswith("data:") for source in page.sources)
    assert "default-src 'none'" in text
    assert "link" not in page.tags
    assert "@import" not in text
    assert "url(" not in text


def test_monitors_share_one_plot_of_their_own(tmp_path, evaluation):
    curve = ([0, 1], [0.0, 1.0])
    write_report(tmp_path, evaluation(0), curves={"total": curve})
    assert "<h2>Monitors</h2>" not in (tmp_path / "report.html").read_text()
    write_report(tmp_path, evaluation(0), monitors={"motion": curve, "brightness": curve})
    text = (tmp_path / "report.html").read_text()
    assert "<h2>Monitors</h2>" in text
    assert text.count('alt="Curves of motion, brightness"') == 1


def test_before_and_after_videos_stand_side_by_side(tmp_path, evaluation):
    write_report(tmp_path, evaluation(0), evaluation(1))
    text = (tmp_path / "report.html").read_text()
    videos = re.findall(r'<video [^>]*aria-label="[^"]+" src="data:video/mp4;base64,([^"]+)', text)
    assert len(videos) == 8
    path = tmp_path / "first.mp4"
    path.write_bytes(base64.b64decode(videos[0]))
    frames = read_mp4(path).frames
    assert frames.shape == (3, 3, 192, 192)
    expected = evaluation(0).videos[0].astype(int)
    assert np.abs(frames[:, :, 2::4, 2::4] - expected).mean() < 3


def test_prompts_labels_and_details_are_escaped(tmp_path, evaluation):
    write_report(
        tmp_path,
        evaluation(0),
        evaluation(1),
        title=HOSTILE,
        labels=(HOSTILE, f"{HOSTILE} tuned"),
        details={HOSTILE: HOSTILE},
    )
    text = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text
    assert _Page(text).tags.count("script") == 1


def test_the_json_file_has_exactly_the_promised_shape(tmp_path, evaluation):
    returned = write_report(
        tmp_path, evaluation(0, 8), evaluation(1, 8), details={"recipe": "tiny"}
    )
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == returned
    assert set(stored) == {
        "rewards", "judges", "suite", "prompts", "paired", "level", "samples", "details",
        "wins", "normalised", "best", "worst", "labels", "distinct_prompts", "held_out", "partial",
        "missing", "checkpoints",
    }  # fmt: skip
    assert set(stored["rewards"]) == {"total", "part"}
    assert set(stored["judges"]) == {"check"}
    for change in [*stored["rewards"].values(), *stored["judges"].values()]:
        assert set(change) == {
            "before", "after", "difference", "interval", "prompts", "unscored",
        }  # fmt: skip
        low, high = change["interval"]
        assert low <= change["difference"] <= high
    assert stored["rewards"]["total"]["difference"] == pytest.approx(1.5)
    assert stored["prompts"] == len(stored["samples"]) == 8
    assert stored["samples"][0]["prompt"] == HOSTILE
    assert stored["details"] == {"recipe": "tiny"}


def test_one_model_alone_makes_a_report(tmp_path, evaluation):
    result = write_report(tmp_path, evaluation(0), title="alone")
    text = (tmp_path / "report.html").read_text()
    assert result["rewards"]["total"]["after"] is None
    assert text.count("<video ") == 4
    assert "Independent judges" in text
    assert "improved" not in text
    assert "None" not in text


def test_a_report_without_videos_has_its_numbers(tmp_path, evaluation):
    first, second = (replace(evaluation(gain), videos=()) for gain in (0, 1))
    write_report(tmp_path, first, second)
    text = (tmp_path / "report.html").read_text()
    assert "<video " not in text
    assert "+1.500" in text


def _downloads(text):
    """The files that the page holds, by name."""
    found = re.findall(r'<a download="([^"]+)" href="data:[^;]+;base64,([^"]+)"', text)
    return {name: base64.b64decode(data) for name, data in found}


def test_the_page_holds_the_same_files_that_stand_beside_it(tmp_path, evaluation):
    write_report(tmp_path, evaluation(0), evaluation(1))
    held = _downloads((tmp_path / "report.html").read_text())
    assert set(held) == {"report.json", "report.csv", "report.md", "report.tex"}
    for name, data in held.items():
        assert data == (tmp_path / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {*held, "report.html"}


def test_several_checkpoints_share_one_table_and_one_row_of_videos(tmp_path, evaluation):
    many = {"step 10": evaluation(1), "step 20": evaluation(2)}
    result = write_report(tmp_path, evaluation(0), many, labels=("base", "unused"))
    assert result["labels"] == ["base", "step 10", "step 20"]
    assert json.loads((tmp_path / "report.json").read_text()) == result
    text = (tmp_path / "report.html").read_text()
    rewards = text[text.index("Rewards</h2>") : text.index("Independent judges</h2>")]
    models = re.findall(r'data-label="model">([^<]+)<', rewards)
    assert models == ["step 10", "step 20"] * 2
    first = text[text.index("<figure") : text.index("</figure>")]
    labels = re.findall(r'<video [^>]*aria-label="(.*?): ', first)
    assert labels == ["base", "step 10", "step 20"]
    assert "unused" not in text


def test_a_partial_evaluation_is_marked_and_lists_what_is_missing(tmp_path, evaluation):
    part = replace(evaluation(1), missing={HOSTILE: "cut short"})
    write_report(tmp_path, evaluation(0), part)
    text = (tmp_path / "report.html").read_text()
    assert "(partial)</title>" in text
    assert "Partial: 1 sample of after was left out or is not finished." in text
    assert re.search(r"<li>&lt;img src=x .*: cut short</li>", text)
    for name in ("report.md", "report.tex"):
        assert "Partial: 1 sample of after" in (tmp_path / name).read_text()
    write_report(tmp_path, evaluation(0), evaluation(1))
    assert "Partial" not in (tmp_path / "report.html").read_text()


def test_figures_say_in_words_what_they_show(tmp_path, evaluation):
    curves = {"total": ([0, 5, 9], [0.5, float("nan"), 1.25])}
    result = write_report(tmp_path, evaluation(0, 8), evaluation(1, 8), curves=curves)
    text = (tmp_path / "report.html").read_text()
    assert 'alt="Curve of total: 0.5 at step 0, 1.25 at step 9"' in text
    change = result["normalised"]["check"]
    low, high = change["interval"]
    assert f"check †, after: {change['difference']:+.2f} [{low:+.2f}, {high:+.2f}]" in text


def _colours(png):
    return {
        tuple(pixel) for pixel in np.asarray(Image.open(io.BytesIO(png)))[..., :3].reshape(-1, 3)
    }


def test_a_change_is_coloured_by_what_its_interval_says():
    up, down = (31, 111, 235), (217, 115, 13)
    for interval, seen in (([0.1, 0.5], {up}), ([-0.5, -0.1], {down}), ([-0.1, 0.5], set())):
        drawn = _colours(score_changes({"total": {"after": (0.2, interval)}}, format="png"))
        assert drawn & {up, down} == seen
    both = {"total": {"$a$": (0.2, [0.1, 0.5]), "_b": (-0.2, None)}}
    assert {up, down} <= _colours(score_changes(both, format="png"))
    with pytest.raises(ValueError, match="no changes"):
        score_changes({})


def _captions(text):
    """The prompts shown under each heading of the videos."""
    headings = re.split(r"<h3>", text)[1:]
    return [re.findall(r"<figcaption>(?:prompt number )?(.+?)</figcaption>", h) for h in headings]


def test_extremes_are_the_extremes_and_the_sample_ignores_scores(tmp_path, evaluation):
    write_report(tmp_path, evaluation(0, 20), evaluation(3, 20))
    text = (tmp_path / "report.html").read_text()
    random, best, worst = _captions(text)
    assert "before any score was known" in text
    assert len(set(random)) == 9
    assert best == ["19", "18", "17"]
    assert worst[1:] == ["1", "2"]
    write_report(tmp_path, evaluation(3, 20), evaluation(0, 20))
    mirrored = _captions((tmp_path / "report.html").read_text())
    assert mirrored[0] == random
    assert mirrored[2] == best


def test_a_page_that_would_be_too_large_shows_fewer_videos(tmp_path, evaluation):
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 24), dtype=np.uint8)
    first, second = (replace(evaluation(gain, 16), videos=[noise] * 16) for gain in (0, 1))
    write_report(tmp_path, first, second)
    whole = (tmp_path / "report.html").read_text()
    assert whole.count("<video ") == 30
    write_report(tmp_path, first, second, max_bytes=int(0.6 * len(whole)))
    text = (tmp_path / "report.html").read_text()
    assert 0 < text.count("<video ") < 30
    assert len(text) < 0.7 * len(whole)


@pytest.mark.parametrize(
    ("interval", "more", "words"),
    [
        ([0.2, 0.8], {}, "Rose."),
        ([-0.8, -0.2], {}, "Fell."),
        ([-0.1, 0.2], {}, "may be chance"),
        ([-0.1, 0.2], {}, "from 9 independent prompts"),
        (None, {}, "No prompt changed."),
        (None, {"difference": 0.5}, "changed by the same amount"),
        (None, {"prompts": 1}, "1 independent prompt is too few"),
        (None, {"prompts": 5}, "5 independent prompts are too few"),
        (None, {"difference": None}, "no sample has this score"),
    ],
)
def test_intervals_are_said_in_words(interval, more, words):
    change = {"before": 0.0, "after": 0.0, "difference": 0.0, "prompts": 9, "unscored": 0}
    assert words in interval_in_words({**change, "interval": interval, **more})


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, evaluation):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        for write in (write_report, write_votes):  # these do not pair
            with pytest.raises(NotADirectoryError) as refused:
                write(place, evaluation(0, 4), evaluation(0, 5))
            assert refused.value.filename == str(tmp_path / "file")
        with pytest.raises(NotADirectoryError, match="file"):
            write_agreement(place, {}, [])


def test_nothing_is_written_when_the_models_do_not_pair(tmp_path, evaluation):
    with pytest.raises(ValueError, match="same prompts and seeds"):
        write_report(tmp_path, evaluation(0, 4), evaluation(0, 5))
    assert list(tmp_path.iterdir()) == []
    assert compare(evaluation(0))["suite"] == "demo"
