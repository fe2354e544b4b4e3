import pytest

from astrolabe_rollout.windows import WindowSchedule, prompt_of_window


def starts(schedule, steps=200):
    return [schedule.start_at(step) for step in range(steps)]


def test_the_ends_of_a_video_are_placed():
    assert set(starts(WindowSchedule(windows=2, length=5))) == {0}
    assert set(starts(WindowSchedule(windows=2, length=5, start="last"))) == {3}


def test_places_are_drawn_alike_on_every_process():
    schedule = WindowSchedule(windows=2, length=5, start="uniform", seed=3)
    drawn = starts(schedule)
    assert set(drawn) == {0, 1, 2, 3}
    assert min(drawn.count(place) for place in range(4)) > 25
    assert drawn == starts(WindowSchedule(windows=2, length=5, start="uniform", seed=3))
    assert drawn != starts(WindowSchedule(windows=2, length=5, start="uniform", seed=4))


def test_a_choice_waits_until_the_video_is_long_enough():
    schedule = WindowSchedule(
        start="choice", starts=(0, 3, 9), curriculum=((0, 1), (100, 4), (150, 11))
    )
    drawn = starts(schedule)
    assert set(drawn[:100]) == {0}
    assert set(drawn[100:150]) == {0, 3}
    assert set(drawn[150:]) == {0, 3, 9}
    assert schedule.places == [0, 3, 9]
    assert [schedule.length_at(step) for step in (0, 99, 100, 1000)] == [1, 1, 4, 11]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 3, "length": 2}, "3 windows are trained, but the video has 2"),
        ({"windows": 0}, "0 windows are trained"),
        ({"curriculum": ((0, 4), (10, 2))}, "does not grow"),
        ({"curriculum": ((5, 1),)}, "does not grow from step 0"),
        ({"start": "middle"}, "start is 'middle'"),
        ({"start": "choice", "length": 3}, r"none of the starts \[\]"),
        ({"start": "choice", "length": 3, "starts": (3,)}, "Give one of 0 to 2"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WindowSchedule(**options)


def test_scripts_last_their_windows():
    script = "a cat wakes | it runs | it sleeps"
    shown = [prompt_of_window(script, window, 2) for window in range(7)]
    assert shown == ["a cat wakes"] * 2 + ["it runs"] * 2 + ["it sleeps"] * 3
    assert prompt_of_window(script, 3, 0) == script
