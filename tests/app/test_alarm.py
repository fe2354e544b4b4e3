import random
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from astrolabe.alarm import HackingAlarm, trend
from astrolabe.compose import compose
from astrolabe.config import Composite, Guard, RewardTerm
from astrolabe.errors import ConfigError
from astrolabe.load import load

SPREAD = 0.1
NOISE = 0.05  # of a batch mean, from the prompts that are drawn


def make(units=None, **settings):
    loss = SimpleNamespace(kl_coeff=1e-4)
    return HackingAlarm(
        Guard(**settings),
        trained={"vq": 1.0, "mq": 0.5},
        held_out=["judge"],
        units={"vq": 1.0, "mq": 1.0} if units is None else units,
        loss=loss,
    )


def series(slopes, steps=60, seed=0):
    """Batch means with a slope per step in standard deviations inside a group."""
    draw = random.Random(seed)
    for step in range(steps):
        yield {
            name: [0.5 + step * slope * SPREAD + draw.gauss(0, NOISE), SPREAD]
            for name, slope in slopes.items()
        }


def alarms(alarm, readings):
    return [number for number, reading in enumerate(readings, 1) if alarm.take(reading)]


UP, FLAT, DOWN = 0.1, 0.0, -0.1


def test_the_alarm_sounds_when_the_trained_reward_rises_and_a_held_out_one_falls():
    alarm = make()
    fired = alarms(alarm, series({"vq": UP, "mq": UP, "judge": DOWN}))
    assert fired
    assert 15 <= fired[0] <= 30


@pytest.mark.parametrize(
    "slopes",
    [
        {"vq": FLAT, "mq": FLAT, "judge": FLAT},
        {"vq": UP, "mq": UP, "judge": UP},
        {"vq": DOWN, "mq": DOWN, "judge": DOWN},
    ],
)
def test_the_alarm_is_silent_otherwise(slopes):
    for seed in range(4):
        assert not alarms(make(), series(slopes, seed=seed))


@pytest.mark.parametrize(
    "slopes", [{"vq": UP, "mq": UP, "judge": FLAT}, {"vq": FLAT, "mq": FLAT, "judge": DOWN}]
)
def test_half_a_reason_seldom_raises_an_alarm(slopes):
    assert sum(bool(alarms(make(), series(slopes, 50, seed))) for seed in range(30)) <= 3


def test_an_outlier_changes_nothing():
    readings = list(series({"vq": UP, "mq": UP, "judge": DOWN}))
    expected = alarms(make(), readings)
    readings[5]["judge"][0] = 1e6
    assert abs(alarms(make(), readings)[0] - expected[0]) <= 5


def test_a_fall_too_small_to_matter_is_none():
    steady = [
        {"vq": [step * 0.1, 0.1], "mq": [0.0, 0.1], "judge": [-step * 1e-5, 0.1]}
        for step in range(60)
    ]
    assert not alarms(make(), steady)
    assert alarms(make(min_fall=0.0), steady)


def test_an_event_is_told_once_and_then_judged_anew():
    alarm = make()
    fired = alarms(alarm, series({"vq": UP, "mq": UP, "judge": DOWN}))
    assert all(later - earlier >= 15 for earlier, later in pairwise(fired))
    assert alarm.metrics()["guard/alarm"] == float(fired[-1] == 60)


def test_running_units_do_not_hide_a_rise():
    assert alarms(make(units={}), series({"vq": UP, "mq": UP, "judge": DOWN}))


def test_raising_the_kl_multiplies_its_coefficient_and_says_so():
    alarm = make(action="raise_kl", kl_factor=3.0)
    told = [alarm.take(reading) for reading in series({"vq": UP, "mq": UP, "judge": DOWN}, 30)]
    (text,) = filter(None, told)
    assert alarm.metrics()["guard/kl_coeff"] == pytest.approx(3e-4)
    assert "the held-out 'judge' fell by" in text
    assert "The KL coefficient is now 0.0003." in text


def test_the_alarm_goes_on_from_its_state():
    readings = list(series({"vq": UP, "mq": UP, "judge": DOWN}))
    alarm, other = make(action="raise_kl"), make(action="raise_kl")
    for reading in readings[:40]:
        alarm.take(reading)
    other.load_state_dict(alarm.state_dict())
    assert [other.take(r) for r in readings[40:]] == [alarm.take(r) for r in readings[40:]]
    assert other.loss.kl_coeff == alarm.loss.kl_coeff > 1e-4


def test_a_step_without_scores_is_passed_over():
    alarm = make()
    alarm.take({"vq": [float("nan"), 0.1], "mq": [0.0, 0.1], "judge": [0.0, 0.1]})
    assert alarm.history == []


@pytest.mark.parametrize(("values", "sure"), [([0.0] * 20, 0.0), (list(range(20)), 6.1)])
def test_a_trend_is_as_sure_as_its_order(values, sure):
    change, certainty = trend(values)
    assert change == values[-1] - values[0]
    assert certainty == pytest.approx(sure, abs=0.1)


def test_a_loss_without_a_kl_term_cannot_raise_it(small_run):
    options = {**small_run.objective.options, "kl_coeff": 0.0}
    run = replace(
        small_run,
        objective=replace(small_run.objective, options=options),
        guard=Guard(action="raise_kl"),
    )
    with pytest.raises(ConfigError, match="kl_coeff is 0 or it has none"):
        compose(run)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("guard.kl_factor=1", r"guard\.kl_factor is 1\.0\. Set it above 1"),
        ("guard.window=5", r"guard\.window is 5\. Set it to 10 or more"),
        ("guard.max_skipped=0", r"guard\.max_skipped is 0\. Set it to 1 or more"),
        ("guard.action=shout", "guard.action is 'shout'"),
    ],
)
def test_guards_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        load(["tiny"], [setting])


def test_a_kl_term_that_is_not_there_cannot_be_raised():
    with pytest.raises(ConfigError, match="so there is no KL term to raise"):
        load(["tiny"], ["guard.action=raise_kl", "disagreement.mode=none"])


def test_what_is_trained_on_is_never_held_out(small_run):
    watched = {name: RewardTerm(weight=0.0, name="flow_mq") for name in ("a", "b", "c")}
    run = replace(
        small_run,
        rewards={**small_run.rewards, **watched},
        composite=Composite(normalise="running"),
        advantage=replace(small_run.advantage, reward="a"),
        disagreement=replace(small_run.disagreement, primary="b"),
    )
    alarm = compose(run).alarm
    assert alarm.held_out == ["c"]
    assert alarm.trained == {"a": 1.0}
    assert alarm.units == {}


def test_rounding_is_no_trend():
    change, certainty = trend([0.5 + step * 6e-8 for step in range(8)])
    assert abs(change) < 1e-6
    assert certainty == 0.0
    assert trend([0.5 + step * 1e-5 for step in range(8)])[1] > 3


def test_rounding_of_a_held_out_reward_raises_no_alarm():
    def readings(size):
        return [
            {"vq": [0.5 + n * 0.1, SPREAD], "mq": [0.5, 0.0], "judge": [0.7 - size * n, 0.0]}
            for n in range(30)
        ]

    assert alarms(make(units={}, min_fall=0.0), readings(2e-8)) == []
    assert alarms(make(units={}, min_fall=0.0), readings(1e-5)) != []
