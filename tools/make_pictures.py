"""Draw the README's pictures from a finished run: a contact sheet and the reward curves.

uv run python tools/make_pictures.py runs/RUN [docs]
"""

import sys
from pathlib import Path

from astrolabe.compose import build_model
from astrolabe.evaluate import make_suite
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import evaluation_frames, load_trained, sampler
from astrolabe.tracking import read_curves
from astrolabe_eval import Suite, contact_sheet, generate, reward_curves

PROMPTS = 6


def main() -> None:
    """Write before-after.png and curves.png."""
    folder, run = RunFolder.open(sys.argv[1])
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "docs")
    out.mkdir(exist_ok=True)
    whole = make_suite(run)
    # Evenly over the list, whatever they look like.
    rows = [index * len(whole) // PROMPTS for index in range(PROMPTS)]
    prompts, seeds = ([values[row] for row in rows] for values in (whole.prompts, whole.seeds))
    suite = Suite("pictures", tuple(prompts), tuple(seeds))
    model = build_model(run.model)
    videos = []
    for trained in (False, True):
        if trained:
            load_trained(model, folder)
        (batch,) = generate(
            sampler(model, evaluation_frames(run)), suite, fps=model.fps, batch_size=PROMPTS
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
