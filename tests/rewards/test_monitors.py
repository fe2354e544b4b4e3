import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional

from astrolabe_rewards import Monitors, monitors
from astrolabe_rewards.monitors import distance, diversity, drift


def watched(*videos, fps=16.0):
    batch = TensorDict(
        {"video": {"pixels": torch.stack(videos), "fps": torch.full((len(videos),), fps)}},
        batch_size=[len(videos)],
    )
    return Monitors()(batch)["monitor"]


@pytest.fixture
def picture():
    """A coloured picture with detail, float [1, 3, 24, 32]."""
    noise = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    return 40 + 170 * functional.avg_pool2d(noise, 3, stride=1, padding=1)


def still(picture, num_frames=9):
    return picture.clamp(0, 255).to(torch.uint8).repeat(num_frames, 1, 1, 1)


def grey(picture, share):
    return torch.lerp(picture.mean(1, keepdim=True).expand_as(picture), picture, share)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("brightness", lambda picture: picture * 0.5),
        ("saturation", lambda picture: grey(picture, 0.3)),
        ("sharpness", lambda picture: functional.avg_pool2d(picture, 5, stride=1, padding=2)),
    ],
)
def test_a_monitor_notices_what_it_is_named_after(picture, name, change):
    less, same = watched(still(change(picture)), still(picture))[name].flatten()
    assert less < 0.8 * same


def test_motion_is_the_change_of_luma_in_a_second(picture):
    frames = still(picture)
    moving = torch.stack([frame.roll(index, -1) for index, frame in enumerate(frames)])
    rest, moved = watched(frames, moving)["motion"].flatten()
    assert rest == 0
    assert moved > 0.1
    assert watched(moving, fps=32.0)["motion"].item() == pytest.approx(2 * moved.item())


def test_the_motion_of_a_single_frame_cannot_be_measured(picture):
    found = watched(still(picture, num_frames=1))
    assert found["motion"].isnan().all()
    assert found["brightness"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_monitor(picture, dtype):
    frames = still(picture)
    moving = torch.stack([frame.roll(index, -1) for index, frame in enumerate(frames)])
    plain = watched(moving)
    with torch.autocast("cpu", dtype=dtype):
        cast = watched(moving)
    assert all((cast[name] == plain[name]).all() for name in plain.keys())  # noqa: SIM118


def test_figures_have_the_units_they_are_said_to_have():
    frames = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    frames[:, 0] = 255  # red
    frames[1] = 255  # white
    (found,) = watched(frames, fps=10.0)
    assert found["brightness"].item() == pytest.approx((0.299 * 2 + 1) / 3)
    assert found["saturation"].item() == pytest.approx(2 / 3)
    assert found["sharpness"].item() == 0
    assert found["motion"].item() == pytest.approx(0.701 * 10)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (0,)])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 3), (40, 8, 8)])
def test_any_batch_of_any_video_is_measured(shape, size):
    frames, height, width = size
    pixels = torch.randint(0, 256, (*shape, frames, 3, height, width), dtype=torch.uint8)
    batch = TensorDict({"video": {"pixels": pixels, "fps": torch.ones(shape)}}, batch_size=shape)
    found = Monitors()(batch)["monitor"]
    assert {name: value.shape for name, value in found.items()} == {
        **dict.fromkeys(monitors.FIGURES, (*shape, 1)),
        "thumbnail": (*shape, 768),
    }
    known = {name: value for name, value in found.items() if frames > 1 or name != "motion"}
    assert all(value.isfinite().all() for value in known.values())


def test_the_size_of_the_parts_changes_nothing(picture, monkeypatch):
    videos = [still(picture * share) for share in (0.3, 0.6, 1.0)]
    whole = watched(*videos)
    monkeypatch.setattr(monitors, "_VALUES", 1)
    assert (watched(*videos) == whole).all()


def test_other_keys_may_be_used_and_missing_ones_are_named():
    batch = TensorDict(
        {"clip": torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), "rate": torch.ones(1)}, [1]
    )
    names = ["a", "b", "c", "d", "e"]
    assert {*names} <= {*Monitors(in_keys=["clip", "rate"], out_keys=names)(batch).keys()}
    with pytest.raises(KeyError, match=r"Monitors: the batch lacks \[\('video', 'pixels'\)"):
        Monitors()(batch)
    with pytest.raises(ValueError, match=r"out_keys has 1 entries\. Give 5 keys"):
        Monitors(out_keys=["a"])


def test_diversity_compares_videos_of_a_group_only():
    thumbnails = torch.tensor([0.0, 0.0, 1.0, 0.5])[:, None].expand(4, 768).half()
    assert diversity(thumbnails, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.25)
    assert diversity(thumbnails, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.75)
    assert diversity(thumbnails, torch.arange(4)) != diversity(thumbnails, torch.arange(4))  # NaN


def test_drift_compares_the_first_window_with_the_last():
    thumbnails = torch.tensor([[0.0, 9.0, 0.5], [0.0, 0.0, 0.0]])[..., None].expand(2, 3, 768)
    assert drift(thumbnails) == pytest.approx(0.25)
    assert distance(thumbnails[0, 0], thumbnails[0, 2]) == pytest.approx(0.5)
