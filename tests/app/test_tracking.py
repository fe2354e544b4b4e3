import io
import json
import math
import os
import signal

import pytest
from rich.console import Console

from astrolabe.run_folder import RunFolder
from astrolabe.signals import interruptible
from astrolabe.tracking import Tracker, read_curves
from astrolabe.view import LiveView, View, make_view, sparkline

METRICS = {"reward/total": 1.5, "reward/flow_mq": 0.5, "loss/policy": 0.25, "time/sample_s": 2.0}


def test_a_line_is_on_the_disk_before_the_next_step(tmp_path):
    folder = RunFolder(tmp_path)
    with Tracker(folder) as tracker:
        tracker.log(1, {"reward/total": 1 / 3})
        assert json.loads(folder.metrics.read_text()) == {"step": 1, "reward/total": 1 / 3}


def test_a_second_tracker_goes_on_in_the_same_file(tmp_path):
    for step in (1, 2):
        with Tracker(RunFolder(tmp_path)) as tracker:
            tracker.log(step, {"a": float(step)})
    assert read_curves(RunFolder(tmp_path)) == {"a": ([1, 2], [1.0, 2.0])}


def test_what_is_no_number_becomes_null_and_leaves_the_curve(tmp_path):
    with Tracker(RunFolder(tmp_path)) as tracker:
        tracker.log(1, {"a": math.nan, "b": math.inf})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "a": None, "b": None}
    assert read_curves(RunFolder(tmp_path)) == {}


def test_a_run_without_metrics_has_no_curves(tmp_path):
    assert read_curves(RunFolder(tmp_path)) == {}


def test_a_torchrl_logger_gets_the_same_numbers(tmp_path):
    with Tracker(RunFolder(tmp_path), ["csv"]) as tracker:
        tracker.log(1, {"a": 0.5})
    written = [path.read_text() for path in (tmp_path / "logs").rglob("a.csv")]
    assert written == ["1,0.5\n"]


def test_elsewhere_than_on_a_terminal_a_step_is_one_plain_line():
    out = io.StringIO()
    with View(steps=30, console=Console(file=out, width=40)) as view:
        view.phase("sample", 0.5)
        view.step(7, METRICS)
    assert out.getvalue() == "step 7/30  2.0 s  total 1.5  flow_mq 0.5  loss 0.25\n"
    assert type(make_view(3, "run")) is View


def test_the_live_view_shows_phases_rewards_and_losses():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, record=True)
    view = LiveView(30, console, "runs/x")
    view.step(1, METRICS)
    view.step(2, METRICS | {"reward/total": 2.5, "memory/peak_gib": 1.25})
    view.phase("update", 0.5)
    console.print(view.render())
    text = console.export_text()
    for shown in ("runs/x", "step 2/30", "sample 2.0 s", "update 0.0 s", "+1", "▁█", "loss 0.25"):
        assert shown in text
    assert "peak GiB 1.25" in text


def test_the_live_view_is_drawn_before_the_first_step():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, record=True)
    with LiveView(30, console, "runs/x") as view:
        view.phase("sample", 0.0)
        view.say("[a line] of text")
    assert "[a line] of text" in console.export_text()


@pytest.mark.parametrize(
    ("values", "picture"),
    [([], ""), ([math.nan], ""), ([2.0, 2.0], "▁▁"), ([0.0, math.nan, 7.0, 3.5], "▁ █▅")],
)
def test_a_sparkline_survives_any_numbers(values, picture):
    assert sparkline(values, width=40) == picture
    assert len(sparkline(values * 50, width=40)) <= 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number, capfd):
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted
        os.kill(os.getpid(), number)
        assert interrupted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert capfd.readouterr().err.startswith("Finishing this step, then saving.")
    assert signal.getsignal(number) is before
