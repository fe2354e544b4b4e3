import pytest

from astrolabe_objectives import OLD_DECAYS, AdaptiveReferenceReset, OldDecay, ReferenceReset


@pytest.mark.parametrize("kind", ["0", "1", "2"])
def test_decays_equal_those_of_the_public_code(golden, kind):
    for step, decay in golden["old_policy_decay"][kind]:
        assert OLD_DECAYS[f"public_{kind}"](step) == pytest.approx(decay, abs=1e-12)


def test_decay_of_the_paper_is_the_same_at_every_step():
    assert {OLD_DECAYS["constant"](step) for step in (0, 1, 75, 5000)} == {0.9}


def test_old_can_be_a_hard_copy_every_few_steps():
    decay = OldDecay(start=0.0, every=4)
    assert [decay(step) for step in range(9)] == [1, 1, 1, 0, 1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    "setting", [{"start": 1.5}, {"cap": -0.1}, {"slope": -1.0}, {"delay": -1}, {"every": 0}]
)
def test_a_decay_outside_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=rf"OldDecay got {next(iter(setting))}="):
        OldDecay(**setting)


def test_reference_is_renewed_when_the_policy_is_far_or_the_reference_is_old():
    reset = ReferenceReset(max_kl=0.15, max_epochs=15)
    assert not reset(kl=0.15, epochs=14)
    assert reset(kl=0.151, epochs=1)
    assert reset(kl=0.0, epochs=15)


def test_each_reason_for_renewal_can_be_switched_off():
    assert not ReferenceReset(max_kl=None, max_epochs=None)(kl=1e9, epochs=10**9)
    assert ReferenceReset(max_kl=None, max_epochs=2)(kl=0.0, epochs=2)
    assert ReferenceReset(max_kl=1.0, max_epochs=None)(kl=2.0, epochs=1)


def test_a_kl_that_is_not_finite_stops_the_run():
    with pytest.raises(ValueError, match=r"KL term is nan.*Lower the learning rate"):
        ReferenceReset()(kl=float("nan"), epochs=1)


@pytest.mark.parametrize("setting", [{"max_kl": 0.0}, {"max_epochs": 0}])
def test_a_reset_outside_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=rf"ReferenceReset got {next(iter(setting))}="):
        ReferenceReset(**setting)


def test_the_adaptive_threshold_rises_after_a_fast_renewal_and_falls_after_one_for_age():
    reset = AdaptiveReferenceReset()
    assert not reset(kl=0.15, epochs=1)
    assert reset.max_kl == 0.15
    assert reset(kl=0.151, epochs=5)
    assert reset.max_kl == pytest.approx(0.16)
    assert not reset(kl=0.155, epochs=5)
    assert reset(kl=0.161, epochs=6)  # neither fast nor for age
    assert reset.max_kl == pytest.approx(0.16)
    assert reset(kl=0.0, epochs=15)
    assert reset.max_kl == pytest.approx(0.15)


def test_the_adaptive_threshold_stays_between_its_bounds():
    reset = AdaptiveReferenceReset()
    for _ in range(20):
        assert reset(kl=9.0, epochs=1)
    assert reset.max_kl == 0.2
    for _ in range(20):
        assert reset(kl=0.0, epochs=15)
    assert reset.max_kl == 0.1


def test_the_bounds_of_the_public_code_can_be_repeated():
    reset = AdaptiveReferenceReset(highest=0.05)
    reset(kl=0.2, epochs=2)
    assert reset.max_kl == 0.05
    reset(kl=0.0, epochs=15)
    assert reset.max_kl == 0.1


def test_the_adaptive_threshold_is_saved_and_taken_back():
    reset, other = AdaptiveReferenceReset(), AdaptiveReferenceReset()
    reset(kl=9.0, epochs=1)
    other.load_state_dict(reset.state_dict())
    assert other == reset


@pytest.mark.parametrize(
    "setting", [{"max_kl": 0.0}, {"step": -0.1}, {"lowest": 0.0}, {"highest": 0.0}]
)
def test_an_adaptive_threshold_outside_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=rf"AdaptiveReferenceReset got {next(iter(setting))}="):
        AdaptiveReferenceReset(**setting)


@pytest.mark.parametrize("setting", [{"max_epochs": 0}, {"fast_epochs": 0}])
def test_adaptive_epochs_below_one_are_refused(setting):
    with pytest.raises(ValueError, match=rf"got {next(iter(setting))}=0. Give 1 or more"):
        AdaptiveReferenceReset(**setting)
