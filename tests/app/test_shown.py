from dataclasses import replace

import pytest
import torch

from astrolabe.clock import Clock
from astrolabe.compose import compose
from astrolabe.shown import describe
from astrolabe.train import train


@pytest.mark.parametrize("batch_size", [0, 6, 3])
@pytest.mark.parametrize("normalise", ["none", "fixed"])
def test_the_best_and_the_worst_of_a_group_are_shown(small_run, batch_size, normalise):
    run = replace(
        small_run,
        rollout=replace(small_run.rollout, num_prompts=3, group_size=4, batch_size=batch_size),
        composite=replace(small_run.composite, normalise=normalise),
        train=replace(small_run.train, steps=1),
        logging=replace(small_run.logging, samples=4),
    )
    step = next(train(run, compose(run), Clock()))
    videos = describe(step.batch, step.shown, list(run.rewards))
    assert [(video["group"], video["rank"], video["of"]) for video in videos] == [
        (0, 1, 4),
        (0, 4, 4),
        (1, 1, 4),
        (1, 4, 4),
    ]
    rewards = step.batch["next", "reward"].reshape(3, 4)
    assert torch.tensor(videos[0]["reward"]) == rewards[0].max()
    assert torch.tensor(videos[3]["reward"]) == rewards[1].min()
    assert videos[0]["prompt"] == videos[1]["prompt"] != videos[2]["prompt"]
    assert videos[0]["scores"].keys() == run.rewards.keys()


def test_a_video_without_a_score_has_none(small_run):
    step = next(train(small_run, compose(small_run), Clock()))
    step.batch["score", "flow_mq"][:] = torch.nan
    videos = describe(step.batch, step.shown, list(small_run.rewards))
    assert all(video["scores"]["flow_mq"] is None for video in videos)
