import cv2
import numpy as np
import pytest
import skimage.data
import torch
from tensordict import TensorDict


def panned(name, height, width, step, num_frames=17):
    """A photograph that slides by under the camera, uint8 [F, 3, H, W]."""
    picture = getattr(skimage.data, name)()[..., :3]
    room = (height + 0.4 * num_frames * step + 4, width + num_frames * step + 4)
    scale = max(room[0] / picture.shape[0], room[1] / picture.shape[1])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frames = [
        cv2.warpAffine(
            picture,
            np.array([[1, 0, -step * t], [0, 1, -0.4 * step * t]], np.float32),
            (width, height),
            flags=cv2.INTER_CUBIC,
        )
        for t in range(num_frames)
    ]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(
    scope="session",
    params=[
        ("astronaut", 48, 48, 1.5),
        ("coffee", 48, 48, 1.5),
        ("chelsea", 48, 48, 0.8),
        ("astronaut", 160, 240, 4.0),
    ],
    ids=lambda param: f"{param[0]}-{param[1]}x{param[2]}",
)
def real_video(request):
    return panned(*request.param)


def _as_video(frames):
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def blurred(video, sigma=1.5):
    frames = video.permute(0, 2, 3, 1).contiguous().numpy()
    return _as_video([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def noisy(video, sigma=12):
    noise = np.random.default_rng(0).normal(0, sigma, tuple(video.shape))
    return torch.from_numpy((video.numpy() + noise).round().clip(0, 255).astype(np.uint8))


def flickering(video):
    gain = 1 + 0.12 * torch.where(torch.arange(len(video)) % 2 == 0, 1.0, -1.0)
    return (video * gain[:, None, None, None]).round().clamp(0, 255).to(torch.uint8)


def shuffled(video):
    return video[torch.randperm(len(video), generator=torch.Generator().manual_seed(0))]


def frozen(video):
    return video[len(video) // 2].expand_as(video).contiguous()


def shaken(video):
    moves = np.random.default_rng(0).integers(-1, 2, (len(video), 2))
    return torch.stack(
        [torch.roll(f, (int(a), int(b)), (1, 2)) for f, (a, b) in zip(video, moves, strict=True)]
    )


def wobbling(video, amount=1.0):
    rng = np.random.default_rng(0)
    height, width = video.shape[-2:]
    across, down = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    frames = []
    for frame in video.permute(0, 2, 3, 1).contiguous().numpy():
        bend = rng.normal(0, amount, (6, 6, 2)).astype(np.float32)
        bend = cv2.resize(bend, (width, height), interpolation=cv2.INTER_CUBIC)
        frames.append(
            cv2.remap(
                frame,
                across + bend[..., 0],
                down + bend[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )
    return _as_video(frames)


@pytest.fixture(scope="session")
def spoil():
    """Spoil a video in a named way: spoil("noisy", video)."""
    kinds = (blurred, noisy, flickering, shuffled, frozen, shaken, wobbling)
    return lambda kind, *args: {function.__name__: function for function in kinds}[kind](*args)


@pytest.fixture
def make_batch():
    """Pixels and texts as the batch that rewards read."""

    def build(pixels, texts=None, fps=16.0):
        shape = pixels.shape[:-4]
        batch = TensorDict(
            {"video": {"pixels": pixels, "fps": torch.full(shape, fps)}}, batch_size=shape
        )
        if texts is not None:
            batch.set(("prompt", "text"), texts)
        return batch

    return build
