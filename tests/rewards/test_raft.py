"""The amount of motion by RAFT, against torchvision's own calls on random weights."""

import pickle
from itertools import pairwise

import pytest
import torch
from torchvision.models.optical_flow import Raft_Small_Weights, raft_large, raft_small

from astrolabe_rewards import CompositeReward, WeightsError
from astrolabe_rewards.raft import FILES, RaftDynamics, fastest_mean, flow_between, frame_step


def random_state(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(weights=None).state_dict()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("raft") / FILES["small"]
    torch.save(random_state(raft_small), path)
    return path


@pytest.fixture(scope="module")
def make(weights):
    def build(**options):
        return RaftDynamics(
            **({"weights": str(weights), "size": "small", "device": "cpu"} | options)
        )

    return build


@pytest.fixture(scope="module")
def network(weights):
    network = raft_small(weights=None).eval().requires_grad_(False)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network


def noise(*shape):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand((*shape[:-2], 12, 12), generator=generator).flatten(0, -4)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[-2:], mode="bicubic")
    return (255 * smooth).clamp(0, 255).to(torch.uint8).reshape(shape)


def by_torchvision(network, first, second):
    """What the documentation of torchvision tells its users to do."""
    return network(*Raft_Small_Weights.C_T_V2.transforms()(first, second))[-1]


def test_flow_is_that_of_torchvision(network):
    first, second = noise(2, 1, 3, 128, 136)
    ours = flow_between(network, first, second)
    torch.testing.assert_close(ours, by_torchvision(network, first, second), rtol=1e-4, atol=1e-4)
    assert ours.abs().max() > 0.5  # random weights give flow enough to tell right from wrong


def test_the_network_reads_frames_from_minus_one_to_one(network):
    seen = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    levels = torch.tensor([0, 255], dtype=torch.uint8).repeat(64)
    flow_between(network, levels.expand(1, 3, 128, 128), levels.flip(0).expand(1, 3, 128, 128))
    hook.remove()
    for frames in seen:
        assert frames.unique().tolist() == [-1, 1]


def test_sides_are_padded_evenly_by_their_edges_and_cut_again(network):
    first, second = noise(2, 1, 3, 101, 139)
    padded = [
        torch.nn.functional.pad(frames.float(), (2, 3, 13, 14), mode="replicate").to(torch.uint8)
        for frames in (first, second)
    ]
    assert padded[0].shape[-2:] == (128, 144)
    expected = by_torchvision(network, *padded)[..., 13:114, 2:141]
    ours = flow_between(network, first, second)
    assert ours.shape == (1, 2, 101, 139)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_fastest_twentieth_counts():
    flow = torch.zeros(2, 2, 10, 20)
    flow[0, 0, 0, :10] = 3  # ten of two hundred pixels
    flow[0, 1, 0, :10] = 4
    flow[1, 0, 0, :5] = 6
    assert fastest_mean(flow).tolist() == [5, 3]
    assert fastest_mean(torch.full((1, 2, 2, 2), 3.0)).item() == pytest.approx(18**0.5)


def test_the_score_is_the_mean_over_pairs_in_units_of_vbenchs_threshold(make, network):
    videos = noise(2, 3, 3, 128, 144)
    scores = make().score(videos, ["", ""], torch.tensor([16.0, 4.0]))
    for score, video, step in zip(scores, videos, (2, 1), strict=True):
        taken = video[::step]
        speeds = []
        for first, second in pairwise(taken):
            flow = by_torchvision(network, first[None], second[None])[0]
            lengths = sorted((flow[0] ** 2 + flow[1] ** 2).sqrt().flatten().tolist())
            fastest = lengths[-int(0.05 * 128 * 144) :]
            speeds.append(sum(fastest) / len(fastest))
        assert score == pytest.approx(sum(speeds) / len(speeds) / (6 * 128 / 256), rel=1e-3)


def test_scores_depend_neither_on_micro_batches_nor_on_neighbours(make):
    videos, rates = noise(2, 3, 3, 64, 80), torch.tensor([8.0, 16.0])
    whole = make(micro_batch=4).score(videos, ["", ""], rates)
    torch.testing.assert_close(make(micro_batch=1).score(videos, ["", ""], rates), whole)
    single = torch.cat([make().score(videos[i, None], [""], rates[i, None]) for i in (1, 0)])
    torch.testing.assert_close(single.flip(0), whole)
    assert whole[0] != whole[1]


def test_a_video_of_which_one_frame_is_taken_does_not_move(make, make_batch):
    reward = make()
    assert reward(make_batch(noise(2, 1, 3, 40, 40)))["score", "raft_dynamics"].tolist() == [
        [0],
        [0],
    ]
    assert reward.score(noise(1, 2, 3, 40, 40), [""], torch.tensor([24.0])).tolist() == [0]


def test_frames_are_taken_about_eight_times_a_second():
    assert [frame_step(fps) for fps in (1, 8, 12.5, 16, 23.976, 25, 30, 60)] == [
        *(1, 1, 2, 2, 3, 3, 4, 8)
    ]


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(make, fps):
    with pytest.raises(ValueError, match="Give a positive number"):
        make().score(noise(1, 3, 3, 32, 32), [""], torch.tensor([fps]))


def test_the_large_network_is_the_default_and_loads_strictly(tmp_path, make_batch):
    state = random_state(raft_large)
    torch.save(state, tmp_path / FILES["large"])
    reward = RaftDynamics(weights=str(tmp_path), device="cpu")
    score = reward(make_batch(noise(1, 2, 3, 32, 40), fps=8.0))["score", "raft_dynamics"]
    assert score.isfinite().all()
    assert score > 0
    loaded = reward._network.load().state_dict()
    assert all(torch.equal(loaded[name].to(value.dtype), value) for name, value in state.items())


def test_absent_weights_say_which_file_where_from_and_how_to_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    wanted = (
        rf"{FILES['large']}\) are not on this machine: there is no '{tmp_path}/checkpoints/.*"
        rf"curl -fLO https://download.pytorch.org/models/{FILES['large']}.*weights=DIR/"
    )
    with pytest.raises(WeightsError, match=wanted):
        RaftDynamics()
    with pytest.raises(WeightsError, match=rf"no '{tmp_path}/mine.pth'.*{FILES['small']}"):
        RaftDynamics(weights=str(tmp_path / "mine.pth"), size="small")


def test_the_cache_of_torch_hub_is_where_the_weights_are_looked_for(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / FILES["small"]).write_bytes(weights.read_bytes())
    assert RaftDynamics(size="small").size == "small"


def test_weights_of_another_network_and_damaged_ones_are_refused(weights, tmp_path):
    with pytest.raises(WeightsError, match="does not fit its network"):
        RaftDynamics(weights=str(weights), size="large")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        RaftDynamics(weights=str(cut), size="small")
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"weight": print}))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        RaftDynamics(weights=str(tmp_path / "bad.pth"), size="small")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": "tiny"}, "Choose from"), ({"micro_batch": 0}, "micro_batch is 0")],
)
def test_options_out_of_range_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_fingerprint_is_of_size_and_weights_and_not_of_speed(make, weights, tmp_path):
    other = {name: value * 2 for name, value in torch.load(weights, weights_only=True).items()}
    torch.save(other, tmp_path / "other.pth")
    same = make().fingerprint()
    assert make(micro_batch=1).fingerprint() == same
    assert make(weights=str(tmp_path / "other.pth")).fingerprint() != same


def test_a_run_does_not_carry_the_weights_in_its_checkpoints(make):
    composite = CompositeReward({"raft_dynamics": (make(), 1.0)})
    assert list(composite.state_dict()) == ["moments"]
