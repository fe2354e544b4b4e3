"""What is no setting is refused where it is given, and says what to give."""

import re

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from astrolabe_objectives import (
    AdaptiveReferenceReset,
    GroupAdvantage,
    NFTLoss,
    OldDecay,
    RankDisagreement,
    ReferenceReset,
    RWRLoss,
    Snapshots,
    selective_kl,
)
from astrolabe_objectives.keys import DENOISED, LATENTS, NOISY


@pytest.fixture
def network():
    return TensorDictModule(nn.Linear(2, 2), in_keys=[NOISY], out_keys=[DENOISED])


@pytest.fixture
def snapshots(network):
    return Snapshots(network, "old")


@pytest.fixture
def batch():
    return TensorDict({"video": {"latents": torch.randn(3, 2)}, "advantage": torch.ones(3)}, [3])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GroupAdvantage, {"eps": float("nan")}, "got eps=nan. Give 0 or more"),
        (GroupAdvantage, {"eps": float("inf")}, "got eps=inf. Give 0 or more"),
        (GroupAdvantage, {"eps": "small"}, "got eps='small'. Give a number"),
        (GroupAdvantage, {"mode": "per_reward", "rewards": {"a": float("nan")}}, "'a']=nan"),
        (GroupAdvantage, {"mode": "per_reward", "rewards": {"a": "1"}}, "'a']='1'"),
        (GroupAdvantage, {"process_group": 3}, "got process_group=3"),
        (GroupAdvantage, {"group_key": 3}, "got group_key=3. Give the key"),
        (RankDisagreement, {"primary": 3}, "got 3 as the name of a reward"),
        (RankDisagreement, {"primary": "a", "auxiliary": "bcd"}, "auxiliary='bcd'. Give a list"),
        (RankDisagreement, {"primary": "a", "score_key": None}, "got score_key=None"),
        (OldDecay, {"start": "0.5"}, "got start='0.5'. Give a number, 0 to 1"),
        (OldDecay, {"every": 1.5}, "got every=1.5. Give a whole number, 1 or more"),
        (OldDecay, {"slope": float("nan")}, "got slope=nan. Give 0 or more"),
        (ReferenceReset, {"max_kl": "a"}, "got max_kl='a'. Give a number, more than 0"),
        (ReferenceReset, {"max_epochs": True}, "got max_epochs=True"),
        (AdaptiveReferenceReset, {"highest": float("inf")}, "got highest=inf"),
    ],
)
def test_a_setting_of_a_rule_is_refused(kind, settings, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        kind(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (NFTLoss, {"adaptive": "no"}, "NFTLoss got adaptive='no'. Give True or False"),
        (NFTLoss, {"beta": "1"}, "NFTLoss got beta='1'. Give a number, more than 0"),
        (NFTLoss, {"kl_coeff": float("nan")}, "NFTLoss got kl_coeff=nan. Give 0 or more"),
        (NFTLoss, {"kl_coeff": None}, "NFTLoss got kl_coeff=None. Give a number"),
        (NFTLoss, {"seed": 1.5}, "NFTLoss got seed=1.5. Give a whole number"),
        (RWRLoss, {"weight_clip": float("inf")}, "RWRLoss got weight_clip=inf"),
        (RWRLoss, {"sigmas": "0.5"}, "RWRLoss got sigmas='0.5'"),
        (RWRLoss, {"sigmas": ["a"]}, "RWRLoss got sigmas=['a']"),
        (RWRLoss, {"network": nn.Linear(2, 2)}, "network of type Linear, which does not say"),
    ],
)
def test_a_setting_of_a_loss_is_refused(network, snapshots, kind, settings, message):
    given = {"network": network, "sigmas": [1.0, 0.5]} | settings
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        kind(snapshots=snapshots, **given)


def test_levels_may_come_in_a_tensor(network, snapshots):
    assert NFTLoss(network, snapshots, torch.tensor([1.0, 0.5])).sigmas == (1.0, 0.5)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda one: one.ema("old", decay=True), "snapshot 'old' got decay=True"),
        (lambda one: one.ema("old", decay="0.5"), "snapshot 'old' got decay='0.5'"),
        (lambda one: one.ema("old", decay=float("nan")), "snapshot 'old' got decay=nan"),
        (lambda one: one.advance(-1, kl=0.0), "got step=-1. Give 0 or more"),
        (lambda one: one.advance(1.5, kl=0.0), "got step=1.5. Give a whole number"),
    ],
)
def test_a_wrong_use_of_snapshots_is_refused(snapshots, use, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        use(snapshots)


def test_a_rule_has_to_be_called(network):
    with pytest.raises(TypeError, match=r"got old_decay=0\.9\. Give a rule, such as OldDecay\(\)"):
        Snapshots(network, "old", old_decay=0.9)


def test_marks_of_the_penalty_are_bools():
    with pytest.raises(TypeError, match=r"selected of float32\. Give bool"):
        selective_kl(torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2))


def test_a_wrong_use_of_a_loss_is_refused(network, snapshots, batch):
    loss = NFTLoss(network, snapshots, [1.0, 0.5])
    with pytest.raises(TypeError, match=r"NFTLoss got latents=3\. Give the key"):
        loss.set_keys(latents=3)
    with pytest.raises(TypeError, match="state of its stream as a NoneType"):
        loss.set_extra_state(None)
    with pytest.raises(TypeError, match=r"got seed=1\.5"):
        loss.seed(1.5)
    batch[LATENTS] = torch.randn(3, 5)
    with pytest.raises(RuntimeError) as caught:
        loss(batch)
    assert "NFTLoss gave its network ('noisy', 'latents') of (3, 5)" in str(caught.value.__notes__)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_are_refused(network, snapshots, batch, value):
    loss = NFTLoss(network, snapshots, [1.0, 0.5])
    batch[LATENTS][1, 0] = value
    batch["advantage"][1] = 0
    with pytest.raises(ValueError, match="not finite in 1 of 3 samples, first in number 1"):
        loss(batch)


def test_missing_marks_tell_both_ways_out(network, batch):
    loss = NFTLoss(network, Snapshots(network, "old", "reference"), [1.0, 0.5])
    with pytest.raises(KeyError, match="RankDisagreement first, or set kl_coeff=0"):
        loss(batch)
