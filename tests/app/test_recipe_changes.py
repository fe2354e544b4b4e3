from dataclasses import replace

import pytest

from astrolabe.errors import ConfigError
from astrolabe.load import changed
from astrolabe.recipe_changes import SAFE, check_changes, differences


def test_equal_settings_need_no_force(small_run):
    check_changes(small_run, changed(small_run, []), force=False)


def test_a_safe_change_is_shown_and_needs_force(small_run):
    longer = changed(small_run, ["train.steps=9", "distributed.base=sharded"])
    with pytest.raises(ConfigError, match=r"train\.steps: 3 -> 9; distributed\.base.*--force"):
        check_changes(small_run, longer, force=False)
    check_changes(small_run, longer, force=True)


def test_another_run_is_refused_with_or_without_force(small_run):
    other = changed(small_run, ["train.steps=9", "train.lr=1e-2", "rewards.flow_mq.weight=0"])
    for force in (False, True):
        with pytest.raises(
            ConfigError, match=r"With another .*rewards\.flow_mq\.weight, train\.lr"
        ):
            check_changes(small_run, other, force=force)


def test_an_option_that_was_not_set_is_a_difference(small_run):
    other = replace(small_run, model=replace(small_run.model, options={}))
    changed = {"model.options.path", "model.options.layers", "model.options"}
    assert set(differences(small_run, other)) == changed


def test_every_safe_name_is_a_setting(small_run):
    for name in SAFE:
        value = small_run
        for part in name.split("."):
            value = getattr(value, part)


def test_rewards_in_another_order_are_another_sum(small_run):
    turned = replace(small_run, rewards=dict(reversed(small_run.rewards.items())))
    assert list(differences(small_run, turned)) == ["rewards (order)"]
    with pytest.raises(ConfigError, match=r"another rewards \(order\) it would be another run"):
        check_changes(small_run, turned, force=True)
