import threading
import time
from dataclasses import replace

import pytest
import torch

from astrolabe.clock import Clock
from astrolabe.collect import collect
from astrolabe.compose import compose
from astrolabe_rollout.collector import make_collector


class Slow(torch.nn.Module):
    """A reward that waits as if for another device, and notes in which thread and when."""

    wait = 0.3

    def __init__(self, reward):
        super().__init__()
        self.reward, self.threads, self.running, self.most = reward, [], 0, 0
        self.rewards, self.seconds, self.gib = reward.rewards, reward.seconds, reward.gib

    def score(self, batch):
        self.threads.append(threading.current_thread())
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(self.wait)
        self.running -= 1
        return self.reward.score(batch)


def collected(run):
    parts = compose(run)
    slow = Slow(parts.reward)
    parts = replace(parts, reward=slow)
    clock = Clock()
    batches = iter(make_collector(parts.env, parts.behaviour, parts.env.sampler.parts))
    batch, shown = collect(batches, parts, run, clock)
    return batch, shown, clock.take(), slow


def in_parts(run, **rollout):
    return replace(run, rollout=replace(run.rollout, batch_size=2, **rollout))


def test_scoring_hides_behind_sampling_and_changes_nothing(small_run):
    run = in_parts(small_run)
    plain, shown, times, _ = collected(in_parts(small_run, overlap=False))
    beside, shown_beside, hidden, slow = collected(run)
    for key in (("score", "sharpness_vq"), ("score", "flow_mq"), ("video", "latents")):
        assert torch.equal(plain[key], beside[key])
    assert torch.equal(shown["video", "pixels"], shown_beside["video", "pixels"])
    assert "overlap/hidden_s" not in times
    assert hidden["overlap/hidden_s"] > 0
    assert hidden["time/score_s"] < times["time/score_s"]
    assert slow.most == 1  # never two calls of one reward at once
    assert threading.main_thread() not in slow.threads


def test_nothing_of_the_videos_is_held_while_they_are_scored(small_run):
    parts, held = compose(small_run), []

    class Looking:
        rewards, seconds, gib = parts.reward.rewards, parts.reward.seconds, parts.reward.gib

        def score(self, batch):
            held.append(parts.policy.cache_bytes)
            return parts.reward.score(batch)

    looking = replace(parts, reward=Looking())
    batches = iter(make_collector(parts.env, parts.behaviour, parts.env.sampler.parts))
    collect(batches, looking, small_run, Clock())
    assert held == [0]


def test_a_single_part_has_nothing_to_hide_behind(small_run):
    assert "overlap/hidden_s" not in collected(small_run)[2]


def test_a_reward_that_fails_in_its_thread_ends_the_step(small_run):
    run = in_parts(small_run)
    parts = compose(run)

    class Failing(torch.nn.Module):
        def score(self, batch):
            raise ValueError("no score today")

    parts = replace(parts, reward=Failing())
    batches = iter(make_collector(parts.env, parts.behaviour, parts.env.sampler.parts))
    with pytest.raises(ValueError, match="no score today"):
        collect(batches, parts, run, Clock())
