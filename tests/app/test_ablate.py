import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from astrolabe.load import load
from astrolabe.registry import find, options_of


def tool(name):
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = util.spec_from_file_location(name, path)
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


arms = tool("ablate_arms")
interval = tool("ablate_table").interval


@pytest.mark.parametrize("arm", arms.ARMS, ids=lambda arm: arm.name)
def test_every_arm_loads_with_options_that_exist(arm):
    run = load(arm.recipes, arm.overrides(seed=1, steps=2))
    assert (run.train.seed, run.train.steps) == (1, 2 * arm.length)
    base = load(["tiny"], arms.COMMON).rollout
    videos = base.num_prompts * base.group_size
    assert run.rollout.num_prompts * run.rollout.group_size in (videos, videos // 2)
    known = options_of(find("objectives", run.objective.name, arm.name)).keys()
    assert run.objective.options.keys() <= known


def test_names_are_unique_and_every_baseline_is_an_arm():
    names = [arm.name for arm in arms.ARMS]
    assert len(set(names)) == len(names)
    assert {arm.baseline for arm in arms.ARMS} <= set(names)


def test_no_two_arms_are_the_same_run():
    runs = [repr(load(arm.recipes, arm.overrides(seed=0))) for arm in arms.ARMS]
    assert len(set(runs)) == len(runs)


def test_arms_are_chosen_by_name_or_family():
    assert [arm.name for arm in arms.select(["beta", "base"])] == ["base", "beta/0.1", "beta/0.5"]
    with pytest.raises(ValueError, match="no arm or family 'betta'"):
        arms.select(["betta"])


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize(("of_seeds", "of_prompts"), [(0.3, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_interval_covers_the_truth_whether_seeds_or_prompts_vary(count, of_seeds, of_prompts):
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(1500):
        seeds = of_seeds * generator.normal(size=(count, 1))
        prompts = of_prompts * generator.normal(size=(1, 40))
        low, high = interval(2.0 + seeds + prompts + 0.3 * generator.normal(size=(count, 40)))
        missed += not low <= 2.0 <= high
    assert missed <= 0.07 * 1500


def test_an_interval_over_prompts_alone_would_miss_the_spread_of_seeds():
    rows = np.array([[0.0] * 20, [1.0] * 20, [2.0] * 20])
    low, high = interval(rows)
    assert low < 0.3
    assert high > 1.7
    assert interval(rows[:1]) == (-np.inf, np.inf)  # 20 equal prompts of one run
    assert interval(np.ones((3, 20))) == (-np.inf, np.inf)
