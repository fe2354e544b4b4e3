"""What is drawn for a clip with a seed follows from that seed, wherever the clip is."""

import pytest
import torch
from torch.testing import assert_close

from astrolabe_objectives import CMGRPOLoss, DPOLoss, NFTLoss, RWRLoss

SIGMAS = (1.0, 0.9375, 0.8333, 0.625)
SEED, NOISY, SIGMA = ("noisy", "seed"), ("noisy", "latents"), ("noisy", "sigma")
SEEDS = torch.tensor([3, 4, 2**32 - 1, 0, 17, 5])

LOSSES = [
    (loss, {"levels": levels, "draw": draw})
    for loss in (NFTLoss, RWRLoss, DPOLoss)
    for levels in ("one", "all")
    for draw in ("list", "uniform")
] + [(CMGRPOLoss, {"levels": levels}) for levels in ("one", "all")]


@pytest.fixture(params=LOSSES, ids=lambda of: "-".join([of[0].__name__, *of[1].values()]))
def loss(request, network, snapshots):
    kind, options = request.param
    return kind(network, snapshots, SIGMAS, **options)


@pytest.fixture
def seeded(sampled):
    return sampled.set(SEED, SEEDS.clone())


def split_for(loss, batch):
    """Parts as processes hold them; DPO's hold whole groups, since pairs are made inside one."""
    return batch.split([1, 5] if not isinstance(loss, DPOLoss) else [3, 3])


def drawn(loss, batch):
    """What `noise` drew, by seed and advantage of the clip; copies in the order of their levels."""
    noised = loss.noise(batch)
    if noised.ndim == 2:
        noised = torch.stack([noised[:, 0], noised[:, 1]]).reshape(-1)  # all best, all worst
    found = {}
    for row in noised:
        numbers = [row[NOISY], row[SIGMA]]
        if ("drawn", "next") in noised.keys(True, True):
            numbers += [row["drawn", "next"], row["drawn", "next_sigma"]]
        found.setdefault((int(row[SEED]), float(row["advantage"])), []).append(numbers)
    return found


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for clip, copies in expected.items():
        for ours, theirs in zip(found[clip], copies, strict=True):
            assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


def test_permuting_a_batch_changes_no_bit_of_a_clip(loss, seeded):
    expected = drawn(loss, seeded)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    assert_same_bits(drawn(loss, seeded[order]), expected)


def test_splitting_a_batch_changes_no_bit_of_a_clip(loss, seeded):
    expected = drawn(loss, seeded)
    found = {}
    for part in split_for(loss, seeded):
        found |= drawn(loss, part)
    assert_same_bits(found, expected)


def test_the_stream_and_the_global_state_are_neither_used_nor_moved(loss, seeded):
    expected = drawn(loss, seeded)
    loss.seed(9)
    torch.manual_seed(9)
    own, world = loss.get_extra_state(), torch.get_rng_state()
    assert_same_bits(drawn(loss, seeded), expected)
    assert loss.get_extra_state().equal(own)
    assert torch.get_rng_state().equal(world)


@pytest.mark.parametrize("kind", [NFTLoss, CMGRPOLoss])
def test_losses_of_parts_that_are_noised_apart_add_up(kind, network, snapshots, seeded, nudge):
    loss = kind(network, snapshots, SIGMAS)
    assert not loss.whole
    nudge(network, size=0.02)
    selected = seeded["kl", "selected"].sum()
    total = loss(seeded)
    policy = kl = 0.0
    for part in seeded.split([2, 4]):
        losses = loss(part)
        policy += losses["loss_policy"] * len(part) / len(seeded)
        kl += losses["loss_kl"] * part["kl", "selected"].sum() / selected
    assert_close(policy, total["loss_policy"])
    assert_close(kl, total["loss_kl"])


@pytest.mark.parametrize("kind", [RWRLoss, DPOLoss])
def test_a_loss_that_compares_samples_says_so_and_is_another_for_parts(
    kind, network, snapshots, seeded, nudge
):
    loss = kind(network, snapshots, SIGMAS)
    assert loss.whole
    nudge(network)
    apart = sum(loss(part)["loss_policy"] * len(part) / 6 for part in seeded.split([2, 4]))
    assert (apart - loss(seeded)["loss_policy"]).abs() > 1e-3
    noised = loss.noise(seeded)
    together = sum(loss(row)["loss_policy"] / len(noised) for row in noised.split(1))
    assert_close(together, loss(seeded)["loss_policy"])


def noise_of(noised):
    """ε of clips that were noised to below level 1."""
    sigma = noised[SIGMA][..., None, None, None]
    return (noised[NOISY] - (1 - sigma) * noised["video", "latents"]) / sigma


def test_clips_of_different_seeds_and_levels_of_a_clip_have_noise_of_their_own(
    network, snapshots, clips
):
    loss = NFTLoss(network, snapshots, SIGMAS, levels="all")
    clips[SEED] = torch.tensor([1, 2, 3, 4, 5, 1])
    noise = noise_of(loss.noise(clips)).flatten(1)  # [K M, ...]
    for a in range(24):
        for b in range(a):
            same_seed = a // 6 == b // 6 and {a % 6, b % 6} == {0, 5}
            assert torch.allclose(noise[a], noise[b], atol=1e-5) == same_seed


def test_seeded_noise_is_standard_normal_within_clips_and_across_neighbouring_seeds(
    network, snapshots, clips
):
    loss = NFTLoss(network, snapshots, [1.0])  # x_t is the noise
    batch = clips[torch.arange(2000) % 6].clone()
    batch[SEED] = torch.arange(2000)
    noise = loss.noise(batch)[NOISY].flatten(1).double()  # [2000, 96]
    assert abs(noise.mean()) < 0.01
    assert abs(noise.var() - 1) < 0.02
    assert abs((noise**4).mean() - 3) < 0.1
    # Each entry over the seeds, too: a mean of 2000 has a standard deviation of 0.022.
    assert noise.mean(dim=0).abs().max() < 0.1
    assert (noise.var(dim=0) - 1).abs().max() < 0.15
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.01


def test_every_level_is_drawn_as_often_whatever_draws_it(network, snapshots, sampled):
    batch = sampled[torch.arange(1200) % 6].clone()
    batch[SEED] = torch.arange(1200)
    for loss, count in (
        (NFTLoss(network, snapshots, SIGMAS), 4),
        (CMGRPOLoss(network, snapshots, SIGMAS), 3),
    ):
        _, times = loss.noise(batch)[SIGMA][:, 0].unique(return_counts=True)
        assert len(times) == count
        assert (times / 1200 - 1 / count).abs().max() < 0.05


def test_uniform_levels_of_seeds_fill_each_part_of_the_range(network, snapshots, clips):
    loss = NFTLoss(network, snapshots, [1.0, 0.5], draw="uniform", levels="all")
    batch = clips[torch.arange(600) % 6].clone()
    batch[SEED] = torch.arange(600)
    low, high = loss.noise(batch)[SIGMA][:, 0].chunk(2)
    for level, start in ((low, 0.5), (high, 0.75)):
        assert ((level >= start) & (level <= start + 0.25)).all()
        assert abs(level.mean() - start - 0.125) < 0.01
        assert abs(level.std() - 0.25 / 12**0.5) < 0.01


def test_a_pair_takes_level_and_noise_from_the_seed_of_its_best_clip(network, snapshots, seeded):
    loss = DPOLoss(network, snapshots, SIGMAS)
    pairs = loss.noise(seeded)
    single = NFTLoss(network, snapshots, SIGMAS).noise(pairs[:, 0].exclude(NOISY, SIGMA))
    assert single[NOISY].equal(pairs[NOISY][:, 0])
    assert_close(noise_of(pairs[:, 1]), noise_of(pairs[:, 0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("levels", "copies"), [("one", 1), ("all", 4)])
def test_without_seeds_levels_and_then_noise_come_from_the_stream(
    network, snapshots, clips, levels, copies
):
    loss = NFTLoss(network, snapshots, SIGMAS, levels=levels, seed=7)
    stream = torch.Generator().manual_seed(7)
    level = torch.tensor(SIGMAS).repeat_interleave(6)
    if levels == "one":
        level = torch.tensor(SIGMAS)[torch.randint(4, (6,), generator=stream)]
    noise = torch.randn(copies * 6, 3, 2, 4, 4, generator=stream)
    latents, sigma = clips["video", "latents"].repeat(copies, 1, 1, 1, 1), level[:, None]
    noised = loss.noise(clips)
    assert noised[SIGMA].equal(sigma.expand(-1, 3))
    sigma = sigma[..., None, None, None]
    assert noised[NOISY].equal((1 - sigma) * latents + sigma * noise)


def test_optional_keys_name_the_seed_and_follow_a_renaming(network, snapshots, sampled):
    loss = DPOLoss(network, snapshots, SIGMAS)
    assert loss.optional_keys == [SEED, ("window", "index")]
    expected = loss.noise(sampled.set(SEED, SEEDS))
    loss.set_keys(seed="ticket")
    assert loss.optional_keys[0] == "ticket"
    renamed = loss.noise(sampled.exclude(SEED).set("ticket", SEEDS))
    assert renamed[NOISY].equal(expected[NOISY])


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (SEEDS - 1, r"\('noisy', 'seed'\) goes from -1 to 4294967294\. Give each sample"),
        (SEEDS + 1, r"from 1 to 4294967296\. Give each sample one whole number in \[0, 2³²\)"),
        (SEEDS[:, None].repeat(1, 2), r"\(6, 2\) in a batch of 6 samples"),
    ],
)
def test_seeds_that_torch_would_fold_together_are_refused(
    network, snapshots, clips, seeds, message
):
    with pytest.raises(ValueError, match=message):
        NFTLoss(network, snapshots, SIGMAS).noise(clips.set(SEED, seeds))
