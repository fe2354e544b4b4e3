"""Draw the pictures of the documentation from a finished run.

A contact sheet before and after, the reward curves, and a video of three scenes (which is the
untrained model's).

uv run python tools/make_pictures.py runs/RUN [docs]
"""

import sys
from pathlib import Path

import torch

from astrolabe.compose import build_model
from astrolabe.evaluate import make_suite
from astrolabe.fit import evaluation_frames
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import load_trained, sampler
from astrolabe.tracking import read_curves
from astrolabe_eval import Suite, contact_sheet, generate, reward_curves
from astrolabe_rollout.chunks import ChunkStream
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.scenes import parse_scenes

PROMPTS = 6
SCENES = (
    "a red circle moves left on a black background[2.25s] | "
    "a yellow circle moves left on a black background[2.25s] | "
    "a blue circle spins on a white background[2.25s#]"
)


def scenes_sheet(model: VideoModel) -> bytes:
    """Return a contact sheet of one video, a row for each of its scenes."""
    stream = ChunkStream(model, [0])
    scenes, captions = [], []
    for number, scene in enumerate(parse_scenes(SCENES)):
        embeds = model.text([scene.prompt])
        chunks = scene.chunks(model.geometry, model.fps, default=1)
        frames = [
            stream.next(embeds, cut=scene.cut and not chunk).pixels[0] for chunk in range(chunks)
        ]
        scenes.append(torch.cat(frames).numpy())
        kind = "hard cut: " if scene.cut else "soft: " if number else ""
        captions.append(kind + scene.prompt)
    return contact_sheet(scenes, captions, columns=9, tile=72)


def main() -> None:
    """Write before-after.png, curves.png and scenes.png."""
    folder, run = RunFolder.open(sys.argv[1])
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "docs")
    out.mkdir(exist_ok=True)
    whole, _ = make_suite(run)
    # Evenly over the list, whatever they look like.
    rows = [index * len(whole) // PROMPTS for index in range(PROMPTS)]
    prompts, seeds = ([values[row] for row in rows] for values in (whole.prompts, whole.seeds))
    suite = Suite("pictures", tuple(prompts), tuple(seeds))
    model = build_model(run.model)
    (out / "scenes.png").write_bytes(scenes_sheet(model))
    videos = []
    for trained in (False, True):
        if trained:
            load_trained(model, folder)
        (batch,) = generate(
            sampler(model, evaluation_frames(run, model)), suite, fps=model.fps, batch_size=PROMPTS
        )
        videos.append(list(batch["video", "pixels"].numpy()))
    sheet = contact_sheet(videos[0], prompts, after=videos[1], columns=6, tile=72)
    (out / "before-after.png").write_bytes(sheet)
    curves = {
        name: curve for name, curve in read_curves(folder).items() if name.startswith("reward/")
    }
    (out / "curves.png").write_bytes(reward_curves(curves, format="png"))


if __name__ == "__main__":
    main()
