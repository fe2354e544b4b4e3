from dataclasses import replace

import pytest
import torch

from astrolabe.compose import compose
from astrolabe.errors import InvariantError
from astrolabe.invariants import (
    check_batch,
    check_cache,
    check_context,
    check_first_update,
    check_gradients,
    check_noise_levels,
    check_pairs,
)
from astrolabe.load import load
from astrolabe_rollout.collector import make_collector
from astrolabe_rollout.denoiser import Denoiser


@pytest.fixture
def batch(parts):
    return next(iter(make_collector(parts.env, parts.behaviour, steps=1)))


def test_a_good_batch_passes(small_run, parts, batch):
    check_batch(small_run, parts, batch)


def test_checks_leave_the_batch_as_it_was(small_run, parts, batch):
    before = batch.clone()
    check_batch(small_run, parts, batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch["video"] == before["video"]).all()


def test_noise_levels_that_sampling_never_visits_are_refused(small_run, parts):
    parts.loss.sigmas = (*parts.policy.sigmas, 0.25)
    with pytest.raises(InvariantError, match=r"noise levels \[0\.25\].*'unwarped'"):
        check_noise_levels(small_run, parts)
    asked = replace(small_run, train=replace(small_run.train, noise_levels="unwarped"))
    check_noise_levels(asked, parts)


def test_swapped_videos_are_noticed(parts, batch):
    batch["video", "latents"] = batch["video", "latents"].roll(1, 0)
    with pytest.raises(InvariantError, match="is not the one that its prompt"):
        check_pairs(parts, batch)


def test_swapped_embeddings_are_noticed(parts, batch):
    batch["prompt", "embeds"] = batch["prompt", "embeds"].flip(0)
    with pytest.raises(
        InvariantError, match="embeddings of the batch are not those of its prompts"
    ):
        check_pairs(parts, batch)


def test_two_prompts_in_one_group_are_noticed(parts, batch):
    batch["prompt", "group"] = torch.zeros_like(batch["prompt", "group"])
    with pytest.raises(InvariantError, match="group 0 holds the prompts"):
        check_pairs(parts, batch)


def test_a_loss_that_sees_another_context_is_noticed(parts, batch):
    wrong = Denoiser(parts.model, num_frames=6, mask="frame")
    with pytest.raises(InvariantError, match="predicts another video than the sampler"):
        check_cache(replace(parts, denoiser=wrong), batch)


@pytest.fixture(scope="module", params=[{}, {"commit": "each"}, {"length": 4, "start": "last"}])
def long(request, small):
    """A batch of three windows of a video, and what made it."""
    run = load(["tiny"], [*small, "rollout.num_frames=6"])
    run = replace(run, rollout=replace(run.rollout, windows=3, **request.param))
    parts = compose(run)
    return run, parts, next(iter(make_collector(parts.env, parts.behaviour, steps=3)))


def test_a_good_batch_of_windows_passes(long):
    _, parts, batch = long
    check_context(parts, batch)
    check_cache(parts, batch)


@pytest.mark.parametrize("slot", [0, -1])
def test_a_frame_that_is_not_of_the_video_is_noticed(long, slot):
    _, parts, batch = long
    wrong = batch.clone()
    wrong["window", "context"][0, 2, slot] += 0.1
    with pytest.raises(InvariantError, match="window 2 of the first video does not begin after"):
        check_context(parts, wrong)


def test_a_sink_that_moves_on_is_noticed(long):
    _, parts, batch = long
    wrong, sink = batch.clone(), parts.model.geometry.sink
    context = wrong["window", "context"]
    context[0, 2, :sink] = batch["window", "context"][0, 2, 1 : sink + 1]
    with pytest.raises(InvariantError, match="does not begin after frames of that video"):
        check_context(parts, wrong)


def test_a_loss_that_sees_nothing_before_a_later_window_is_noticed(long, monkeypatch):
    _, parts, batch = long
    monkeypatch.setattr(Denoiser, "_prefix", lambda *_: None)
    with pytest.raises(InvariantError, match="predicts another video than the sampler"):
        check_cache(parts, batch)


def test_unequal_errors_of_equal_policies_are_noticed():
    check_first_update({"policy_positive": 1.0, "policy_negative": 1.0, "kl": 0.0})
    with pytest.raises(InvariantError, match=r"positive policy errs by 1, the negative by 1\.1"):
        check_first_update({"policy_positive": 1.0, "policy_negative": 1.1})


@pytest.mark.parametrize("name", ["kl", "old_deviation"])
def test_a_distance_to_an_equal_policy_is_noticed(name):
    with pytest.raises(InvariantError, match=f"at the first update {name} is 0.01 and not 0"):
        check_first_update({name: 0.01})


def give_gradients(parts):
    for parameter in parts.parameters.values():
        parameter.grad = torch.zeros_like(parameter)


def test_a_gradient_outside_the_adapter_is_noticed(parts):
    give_gradients(parts)
    check_gradients(parts)
    frozen = parts.model.transformer.network.proj_out.weight
    frozen.grad = torch.zeros_like(frozen)
    with pytest.raises(InvariantError, match=r"reaches 'proj_out\.weight', which is frozen"):
        check_gradients(parts)


def test_a_layer_without_a_gradient_is_noticed(parts):
    give_gradients(parts)
    name, parameter = next(iter(parts.parameters.items()))
    parameter.grad = None
    with pytest.raises(InvariantError, match="no gradient reaches") as caught:
        check_gradients(parts)
    assert name in str(caught.value)
