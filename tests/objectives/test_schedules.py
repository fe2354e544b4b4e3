import pytest

from astrolabe_objectives import OLD_DECAYS, OldDecay, ReferenceReset


@pytest.mark.parametrize("kind", ["0", "1", "2"])
def test_decays_equal_those_of_the_public_code(golden, kind):
    for step, decay in golden["old_policy_decay"][kind]:
        assert OLD_DECAYS[f"public_{kind}"](step) == pytest.approx(decay, abs=1e-12)


def test_decay_of_the_paper_is_the_same_at_every_step():
    assert {OLD_DECAYS["constant"](step) for step in (0, 1, 75, 5000)} == {0.9}


@pytest.mark.parametrize("setting", [{"start": 1.5}, {"cap": -0.1}, {"slope": -1.0}, {"delay": -1}])
def test_a_decay_outside_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=rf"OldDecay\.{next(iter(setting))} is"):
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
    with pytest.raises(ValueError, match=rf"ReferenceReset\.{next(iter(setting))} is"):
        ReferenceReset(**setting)
