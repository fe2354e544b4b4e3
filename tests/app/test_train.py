from dataclasses import replace

import pytest
import torch

from astrolabe import checkpoint
from astrolabe.clock import Clock
from astrolabe.compose import compose
from astrolabe.train import reseed, summarise, train, update
from astrolabe_rollout.collector import make_collector


def numbers(step):
    return {
        name: value
        for name, value in step.metrics.items()
        if not name.startswith(("time/", "memory/"))
    }


def scored(parts):
    batch = next(iter(make_collector(parts.env, parts.behaviour, steps=1)))
    return parts.disagreement(parts.advantage(parts.reward(batch)))


def spoil(parts):
    """Move the trained weights far away."""
    with torch.no_grad():
        for parameter in parts.parameters.values():
            parameter.add_(torch.randn_like(parameter))


def test_a_run_that_goes_on_repeats_the_uninterrupted_one(small_run, parts):
    straight = []
    for step in train(small_run, parts, Clock()):
        straight.append(numbers(step))
        if step.number == 1:
            # As through a file: later steps change the tensors in place.
            state = torch.utils._pytree.tree_map(
                lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf,
                checkpoint.capture(parts, 1),
            )
    fresh = compose(small_run)
    assert checkpoint.apply(fresh, state) == 1
    assert [numbers(step) for step in train(small_run, fresh, Clock(), first=1)] == straight[1:]


def test_another_seed_gives_another_run(small_run, parts):
    other = replace(small_run, train=replace(small_run.train, seed=1))
    first = next(train(small_run, parts, Clock())).metrics["reward/total"]
    assert next(train(other, compose(other), Clock())).metrics["reward/total"] != first


def test_samples_come_from_the_averaged_policy(parts):
    batch = scored(parts)
    spoil(parts)
    again = parts.behaviour(batch[:, 0].select("prompt", ("window", "index")).clone())
    assert torch.equal(again["video", "latents"], batch["video", "latents"][:, 0])


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_the_size_of_micro_batches_changes_no_result(small_run, parts, micro_batch):
    batch = scored(parts)
    batch["kl", "selected"] = torch.tensor([True, True, False, True]).reshape(4, 1, 1)
    minibatch = batch.select(*parts.loss.in_keys).reshape(-1)
    spoil(parts)
    results = []
    for size in (4, micro_batch):
        before = {name: value.detach().clone() for name, value in parts.parameters.items()}
        run = replace(small_run, train=replace(small_run.train, micro_batch=size))
        plain = replace(parts, optimizer=torch.optim.SGD(parts.parameters.values(), lr=1.0))
        reseed(parts, seed=0, step=0)
        metrics = update(minibatch, plain, run, Clock())
        after = torch.cat([value.detach().flatten() for value in parts.parameters.values()])
        results.append((metrics, after))
        with torch.no_grad():
            for name, value in parts.parameters.items():
                value.copy_(before[name])
    (whole, expected), (split, found) = results
    assert whole["kl"] > 0
    assert split == pytest.approx(whole, rel=1e-4)
    assert torch.allclose(found, expected, atol=1e-5)


def test_an_update_moves_the_adapter_and_nothing_else(small_run, parts):
    network = parts.model.transformer.network
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    next(train(small_run, parts, Clock()))
    moved = {
        name
        for name, value in network.named_parameters()
        if not torch.equal(value.detach(), before[name])
    }
    assert moved
    assert moved <= set(parts.parameters)


def test_old_follows_by_its_decay(small_run, parts):
    start = {name: value.detach().clone() for name, value in parts.parameters.items()}
    next(train(small_run, parts, Clock()))
    live = {name: value.detach().clone() for name, value in parts.parameters.items()}
    with parts.snapshots.use("old"):
        for name, value in parts.parameters.items():
            assert torch.allclose(value, 0.5 * start[name] + 0.5 * live[name], atol=1e-7)


def test_metrics_carry_the_names_that_all_runs_share(small_run, parts):
    metrics = next(train(small_run, parts, Clock())).metrics
    assert metrics.keys() >= {
        "reward/total",
        "reward/sharpness_vq",
        "loss/policy",
        "loss/kl",
        "policy/kl",
        "policy/old_deviation",
        "advantage/zero_std_fraction",
        "kl/selected_fraction",
        "time/sample_s",
        "time/score_s",
        "time/update_s",
        "memory/peak_gib",
    }
    assert next(iter(metrics)) == "reward/total"


def test_a_mean_reward_is_over_the_videos_that_have_one(small_run, parts):
    batch = scored(parts)
    flow = batch["score", "flow_mq"].clone()
    flow[0] = torch.nan
    batch["score", "flow_mq"] = flow
    assert summarise(small_run, batch, {})["reward/flow_mq"] == pytest.approx(
        float(flow[1:].mean())
    )


def test_several_updates_share_the_batch(small_run):
    run = replace(small_run, train=replace(small_run.train, updates=2, steps=1))
    parts = compose(run)
    seen = []
    parts.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    next(train(run, parts, Clock()))
    latents = torch.cat([batch["video", "latents"] for batch in seen])
    assert len(seen) == 2
    assert len(latents.flatten(1).unique(dim=0)) == 4


def test_a_longer_video_is_trained_window_by_window(small_run):
    rollout = replace(small_run.rollout, num_frames=3, windows=3)
    run = replace(small_run, rollout=rollout, train=replace(small_run.train, steps=1))
    step = next(train(run, compose(run), Clock()))
    assert step.batch.batch_size == (4, 3)
    assert step.metrics["loss/policy"] > 0
