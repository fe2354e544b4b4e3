import math
from dataclasses import replace

import pytest
import torch

from astrolabe import checkpoint
from astrolabe.clock import Clock
from astrolabe.compose import compose
from astrolabe.config import Disagreement, Part, RewardTerm
from astrolabe.errors import ConfigError
from astrolabe.memory_retry import MicroBatch
from astrolabe.train import reseed, summarise, train, update
from astrolabe_objectives.keys import NOISE_SEED
from astrolabe_rollout.collector import make_collector
from astrolabe_rollout.errors import CheckpointError
from astrolabe_rollout.lora import save_lora


def numbers(step):
    return {
        name: value
        for name, value in step.metrics.items()
        if not name.startswith(("time/", "memory/", "overlap/", "cost/", "throughput/"))
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
    assert all(step["loss/kl"] > 0 for step in straight[1:])


def test_a_held_out_reward_is_watched_and_its_alarm_goes_on_too(small_run):
    rewards = {**small_run.rewards, "flow_mq": replace(small_run.rewards["flow_mq"], weight=0.0)}
    run = replace(
        small_run,
        rewards=rewards,
        rollout=replace(small_run.rollout, num_frames=3, windows=2),
        guard=replace(small_run.guard, action="raise_kl"),
        train=replace(small_run.train, steps=2),
    )
    parts = compose(run)
    assert parts.alarm.held_out == ["flow_mq"]
    straight = []
    for step in train(run, parts, Clock()):
        straight.append(numbers(step))
        if step.number == 1:
            parts.loss.kl_coeff *= 5  # as an alarm would
            state = torch.utils._pytree.tree_map(
                lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf,
                checkpoint.capture(parts, 1),
            )
    assert straight[0].keys() >= {
        *(f"monitor/{name}" for name in ("brightness", "saturation", "sharpness", "motion")),
        *(f"monitor/{name}" for name in ("diversity", "drift", "disagreement")),
        "reward/flow_mq",
        "guard/alarm",
        "guard/skipped",
    }
    assert [step["guard/kl_coeff"] for step in straight] == pytest.approx([1e-4, 5e-4])
    fresh = compose(run)
    checkpoint.apply(fresh, state)
    assert [numbers(step) for step in train(run, fresh, Clock(), first=1)] == straight[1:]
    assert fresh.alarm.history == parts.alarm.history
    assert len(fresh.alarm.history) == 2


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped(small_run, bad):
    run = replace(small_run, train=replace(small_run.train, updates=2, steps=1))
    parts = compose(run)
    before = {name: value.detach().clone() for name, value in parts.parameters.items()}
    first = next(iter(parts.parameters.values()))
    if bad == "loss":
        parts.loss.register_forward_hook(
            lambda _, inputs, out: out.set("loss_policy", out["loss_policy"] * torch.nan)
        )
    else:
        first.register_hook(lambda gradient: gradient * torch.inf)
    step = next(train(run, parts, Clock()))
    assert step.metrics["guard/skipped"] == 2
    assert math.isnan(step.metrics["loss/policy"])
    assert [len(batch) for batch in step.skipped] == [2, 2]
    assert all(torch.equal(value, before[name]) for name, value in parts.parameters.items())


def test_another_seed_gives_another_run(small_run, parts):
    other = replace(small_run, train=replace(small_run.train, seed=1))
    first = next(train(small_run, parts, Clock())).metrics["reward/total"]
    assert next(train(other, compose(other), Clock())).metrics["reward/total"] != first


def test_samples_come_from_the_averaged_policy(parts):
    batch = scored(parts)
    spoil(parts)
    again = parts.behaviour(batch[:, 0].select("prompt", ("window", "index")).clone())
    assert torch.equal(again["video", "latents"], batch["video", "latents"][:, 0])


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_size_of_micro_batches_changes_no_result(small_run, parts, micro_batch):
    batch = scored(parts)
    batch["kl", "selected"] = torch.tensor([True, True, False, True]).reshape(4, 1, 1)
    minibatch = batch.select(*parts.loss.in_keys).reshape(-1)
    spoil(parts)
    results, passes = [], []
    parts.loss.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    for size in (4, micro_batch):
        before = {name: value.detach().clone() for name, value in parts.parameters.items()}
        plain = replace(
            parts,
            optimizer=torch.optim.SGD(parts.parameters.values(), lr=1.0),
            micro_batch=MicroBatch(size),
        )
        reseed(parts, seed=0, step=0)
        passes.clear()
        metrics = update(minibatch, plain, small_run, Clock())
        assert passes == [min(size, 4 - done) for done in range(0, 4, size)]
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
    run = replace(small_run, train=replace(small_run.train, max_grad_norm=1e-4))
    network = parts.model.transformer.network
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    norms = []
    parts.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            math.hypot(*(float(value.grad.norm()) for value in parts.parameters.values()))
        )
    )
    step = next(train(run, parts, Clock()))
    assert norms == [pytest.approx(1e-4, rel=1e-3)]  # cut off, and told as it was
    assert step.metrics["policy/gradient_norm"] > 2e-4
    moved = {
        name
        for name, value in network.named_parameters()
        if not torch.equal(value.detach(), before[name])
    }
    assert moved
    assert moved <= set(parts.parameters)


def test_old_follows_by_the_decay_of_its_step_and_the_reference_by_the_distance(small_run):
    run = replace(
        small_run,
        snapshots=replace(small_run.snapshots, old_slope=0.1, reference_max_kl=1e-12),
        disagreement=replace(small_run.disagreement, mode="uniform"),
        train=replace(small_run.train, steps=2),
    )
    parts = compose(run)
    old = {name: value.detach().clone() for name, value in parts.parameters.items()}
    # Nothing is far from the reference before the first update.
    for step, decay, far in zip(train(run, parts, Clock()), (0.5, 0.6), (False, True), strict=True):
        assert (step.metrics["snapshot/reference_reset"], step.metrics["policy/kl"] > 0) == (
            far,
            far,
        )
        live = {name: value.detach().clone() for name, value in parts.parameters.items()}
        old = {name: decay * old[name] + (1 - decay) * live[name] for name in old}
        with parts.snapshots.use("old"):
            for name, value in parts.parameters.items():
                assert torch.allclose(value, old[name], atol=1e-7)
    assert parts.snapshots.deviation("reference") == 0


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
    parts.disagreement(parts.advantage(parts.reward.combine(batch)))
    batch["kl", "selected"] = torch.tensor([True, False, False, True]).reshape(4, 1, 1)
    metrics = summarise(small_run, parts, batch)
    assert metrics["kl/selected_fraction"] == pytest.approx(1 / 3)
    assert metrics["reward/flow_mq"] == pytest.approx(float(flow[1:].mean()))
    assert metrics["reward/total"] == pytest.approx(float(batch["next", "reward"][1:].mean()))
    assert metrics["valid_fraction/flow_mq"] == metrics["advantage/valid_fraction"] == 0.75
    assert metrics["valid_fraction/sharpness_vq"] == 1.0


def test_several_updates_share_the_batch(small_run):
    run = replace(small_run, train=replace(small_run.train, updates=2, steps=1))
    parts = compose(run)
    seen, losses = [], []

    def note(_, inputs, out):
        seen.append(inputs[0])
        losses.append(float(out["loss_policy"].detach()))

    parts.loss.register_forward_hook(note)
    step = next(train(run, parts, Clock()))
    assert len(seen) == 2
    for name in (("video", "latents"), NOISE_SEED):  # each window once, with a noise of its own
        values = torch.cat([batch[name] for batch in seen])
        assert len(values.reshape(4, -1).unique(dim=0)) == 4
    assert step.metrics["loss/policy"] == pytest.approx(sum(losses) / 2)


def test_a_longer_video_is_trained_window_by_window(small_run):
    rollout = replace(small_run.rollout, num_frames=3, windows=3)
    run = replace(small_run, rollout=rollout, train=replace(small_run.train, steps=1))
    step = next(train(run, compose(run), Clock()))
    assert step.batch.batch_size == (4, 3)
    assert step.metrics["loss/policy"] > 0


def test_a_step_may_sample_its_videos_in_parts(small_run):
    group = replace(small_run.rollout, num_prompts=3, group_size=2)
    steps = []
    for size in (0, 3):
        run = replace(
            small_run,
            rollout=replace(group, batch_size=size),
            composite=replace(small_run.composite, normalise="running"),
            train=replace(small_run.train, steps=2),
            logging=replace(small_run.logging, samples=2),
        )
        parts = compose(run)
        first, second = train(run, parts, Clock())
        assert parts.reward.moments[:, 0].tolist() == [12, 12, 12]
        assert second.shown["video", "pixels"].shape[:2] == (2, 1)
        assert second.shown["prompt", "group"].flatten().tolist() == [3, 3]
        assert ("video", "pixels") not in second.batch.keys(True)
        steps.append(first.batch)
    whole, found = steps
    assert found["prompt", "seed"].equal(whole["prompt", "seed"])
    for key in (("video", "latents"), ("score", "tiny_ta")):
        torch.testing.assert_close(found[key], whole[key], rtol=1e-3, atol=1e-3)


def test_a_reward_of_the_whole_video_sees_its_history(small_run):
    rewards = {
        "sharpness_vq": small_run.rewards["sharpness_vq"],
        "whole": RewardTerm(name="flow_mq", scope="video"),
    }
    rollout = replace(small_run.rollout, num_frames=3, length=3, start="last", overview=5)
    run = replace(small_run, rewards=rewards, rollout=rollout, disagreement=Disagreement("none"))
    parts = compose(run)
    seen = []
    inner = parts.reward.rewards["whole"].scorer
    inner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step = next(train(run, parts, Clock()))
    (whole,) = seen
    assert whole["video", "pixels"].shape[-4] == 5
    # 33 frames of three windows at 16 a second are 2 seconds, in which the overview has 5.
    assert whole["video", "fps"].flatten().tolist() == [pytest.approx(2.0)] * 4
    first = whole["video", "pixels"].flatten(0, 1)[:, 0]
    assert torch.equal(first[0], first[1])  # candidates of a group share their history
    last = whole["video", "pixels"].flatten(0, 1)[:, -1]
    assert not torch.equal(last[0], last[1])
    assert ("video", "overview") not in step.batch.keys(True)


def test_a_run_goes_on_from_an_adapter(small_run, parts, tmp_path):
    spoil(parts)
    save_lora(parts.model.transformer.network, tmp_path / "adapter")
    run = replace(small_run, lora=replace(small_run.lora, start=str(tmp_path / "adapter")))
    started = compose(run)
    with started.snapshots.use("reference"):
        for name, parameter in parts.parameters.items():
            assert torch.equal(started.parameters[name], parameter)
    message = r"has rank 2 and alpha 2 for .* has rank 4 .*Add it with rank=2 and alpha=2"
    with pytest.raises(CheckpointError, match=message):
        compose(replace(run, lora=replace(run.lora, rank=4)))
    settings = tmp_path / "adapter" / "adapter_config.json"
    weights = settings.with_name("adapter_model.safetensors")
    by_file = replace(run, lora=replace(run.lora, start=str(weights), alpha=4))
    with pytest.raises(CheckpointError, match=r"alpha 2 for .* has rank 2 and alpha 4"):
        compose(by_file)


def test_gradient_checkpointing_changes_no_result(small_run):
    results = []
    for checkpointing in (False, True):
        settings = replace(small_run.train, gradient_checkpointing=checkpointing, steps=1)
        run = replace(small_run, train=settings)
        results.append(numbers(next(train(run, compose(run), Clock()))))
    assert results[0] == pytest.approx(results[1], rel=1e-4)


@pytest.mark.parametrize("name", ["rwr", "dpo", "cm_grpo"])
def test_other_objectives_run_in_the_same_loop(small_run, name):
    run = replace(small_run, objective=Part(name), train=replace(small_run.train, steps=2))
    first, second = (step.metrics for step in train(run, compose(run), Clock()))
    assert first["policy/gradient_norm"] > 0
    assert second["loss/policy"] != first["loss/policy"]
    if name == "cm_grpo":  # the recorded steps are those that the kernel of "old" explains
        assert first["step_residual"] == pytest.approx(1, abs=0.1)
        assert first["ratio"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mode", ["leave_one_out", "rank", "per_reward"])
def test_other_advantages_run_in_the_same_loop(small_run, mode):
    run = replace(small_run, advantage=replace(small_run.advantage, mode=mode))
    batch = next(train(run, compose(run), Clock())).batch
    assert batch["advantage"].abs().max() > 0


def test_noise_levels_may_be_drawn_uniformly(small_run):
    run = replace(small_run, train=replace(small_run.train, noise_levels="uniform", steps=1))
    parts = compose(run)
    seen = []
    parts.denoiser.register_forward_pre_hook(lambda _, x: seen.append(x[0]["noisy", "sigma"]))
    next(train(run, parts, Clock()))
    levels = torch.cat([sigma.flatten() for sigma in seen]).unique()
    assert any(
        min(abs(float(level) - known) for known in parts.policy.sigmas) > 0.01 for level in levels
    )


def long(run, **options):
    rollout = replace(run.rollout, num_frames=3, **options)
    return replace(run, rollout=rollout, train=replace(run.train, steps=2))


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({"length": 4, "start": "last"}, [[3], [3]]),
        ({"windows": 2, "length": 4, "start": "last", "commit": "best"}, [[2, 3], [2, 3]]),
        ({"windows": 2, "length": 3, "start": "last", "commit": "each"}, [[1, 2], [1, 2]]),
        ({"curriculum": ((0, 1), (1, 3)), "start": "last", "batch_size": 2}, [[0], [2]]),
        ({"length": 3, "start": "choice", "starts": (1,), "scene_windows": 1}, [[1], [1]]),
    ],
)
def test_windows_of_long_videos_are_trained_over_a_shared_history(small_run, options, windows):
    run = long(small_run, **options)
    steps = list(train(run, compose(run), Clock()))
    for step, expected in zip(steps, windows, strict=True):
        assert step.batch["window", "index"].tolist() == [expected] * 4
        assert step.metrics["policy/gradient_norm"] > 0
        if expected[0] and run.rollout.commit != "each":
            context = step.batch["window", "context"][:, 0]
            assert torch.equal(context[0], context[1])
            assert not torch.equal(context[0], context[2])


def test_long_training_that_goes_on_repeats_the_uninterrupted_one(small_run):
    run = long(small_run, windows=2, length=5, start="uniform")
    parts = compose(run)
    steps = train(run, parts, Clock())
    next(steps)
    state = torch.utils._pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf,
        checkpoint.capture(parts, 1),
    )
    second = numbers(next(steps))
    fresh = compose(run)
    checkpoint.apply(fresh, state)
    assert numbers(next(train(run, fresh, Clock(), first=1))) == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 3, "length": 2}, "rollout: 3 windows are trained, but the video has 2"),
        ({"curriculum": ((0, 3), (5, 2))}, "rollout: the curriculum .* does not grow"),
    ],
)
def test_windows_that_do_not_fit_are_refused(small_run, options, message):
    with pytest.raises(ConfigError, match=message):
        compose(long(small_run, **options))


def test_the_state_of_other_rewards_is_refused_and_models_keep_their_weights(parts):
    state = checkpoint.reward_state(parts.reward)
    assert not any(name.startswith("terms") for name in state)
    weights = {name: value.clone() for name, value in parts.reward.state_dict().items()}
    checkpoint.load_reward(parts.reward, {name: value + 1 for name, value in state.items()})
    for name, value in parts.reward.state_dict().items():
        assert torch.equal(value, weights[name] + (name in state))
    for other in ({}, {**state, "bias": torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="Put back the rewards"):
            checkpoint.load_reward(parts.reward, other)


def test_an_update_short_of_memory_goes_on_with_smaller_parts(small_run, parts, caplog):
    batch = scored(parts)
    minibatch = batch.select(*parts.loss.in_keys).reshape(-1)
    adapters = []
    for size, limit in ((1, 4), (4, 1)):
        run = replace(small_run, train=replace(small_run.train, micro_batch=size))
        fresh = compose(run)
        loss, sizes = fresh.loss.forward, []

        def short(tensordict, loss=loss, sizes=sizes, limit=limit):
            sizes.append(len(tensordict))
            if len(tensordict) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss(tensordict)

        fresh.loss.forward = short
        reseed(fresh, seed=0, step=0)
        update(minibatch, fresh, run, Clock())
        adapters.append([value.detach().clone() for value in fresh.parameters.values()])
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert fresh.micro_batch.size == 1
    assert all(torch.equal(a, b) for a, b in zip(*adapters, strict=True))
    assert "effective batch stays" in caplog.text
