import pytest
import torch

from astrolabe_rollout.schedule import FlowSchedule, add_noise, to_x0


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_the_table_is_the_shifted_straight_line(shift):
    schedule = FlowSchedule(shift, size=4)
    expected = [shift * u / (1 + (shift - 1) * u) for u in (1, 0.75, 0.5, 0.25)]
    assert schedule.sigmas.tolist() == pytest.approx(expected)


def test_steps_warp_to_the_levels_that_distilled_models_visit():
    assert FlowSchedule(5.0).warp((1000, 750, 500, 250)) == pytest.approx(
        (1, 15 / 16, 5 / 6, 5 / 8)
    )
    assert FlowSchedule(1.0).warp((1000, 1)) == pytest.approx((1, 0.001))


@pytest.mark.parametrize("steps", [(), (500, 750), (750, 750), (1001, 500), (500, 0)])
def test_steps_that_do_not_fall_inside_the_table_are_refused(steps):
    with pytest.raises(ValueError, match="is no falling list of numbers from 1000 to 1"):
        FlowSchedule().warp(steps)


@pytest.mark.parametrize("shift", [0, -1.0, float("nan"), float("inf"), "5", True])
def test_a_shift_is_a_number_above_zero(shift):
    with pytest.raises(ValueError, match=r"shift is .* Give a shift above 0"):
        FlowSchedule(shift)


def test_each_timestep_finds_its_nearest_noise_level():
    schedule = FlowSchedule(3.0)
    levels = schedule.sigmas[[0, 17, 500, 999]].reshape(2, 2)
    assert torch.equal(schedule.nearest(levels * 1000), levels)
    between = 500 * (schedule.sigmas[400] + schedule.sigmas[401])
    assert schedule.nearest(between + 0.01) == schedule.sigmas[400]
    assert schedule.nearest(between - 0.01) == schedule.sigmas[401]


def test_the_velocity_of_the_straight_path_leads_back_to_its_start():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 16, 4, 4, generator=generator)
    sigma = torch.tensor([[1.0, 0.9, 0.001], [0.5, 0.25, 0.75]])  # one level a frame
    noisy = add_noise(x0, noise, sigma)
    assert torch.equal(noisy[0, 0], noise[0, 0])
    torch.testing.assert_close(noisy[1, 0], (x0[1, 0] + noise[1, 0]) / 2)
    torch.testing.assert_close(to_x0(noisy, noise - x0, sigma), x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(noisy[:1, 1], add_noise(x0[:1, 1], noise[:1, 1], 0.9))
