"""One call of `astrolabe generate`, from what was typed to the files."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from astrolabe import generate
from astrolabe.checkpoint_files import LORA
from astrolabe.compose import build_model
from astrolabe.config import Part
from astrolabe.errors import ConfigError
from astrolabe.jobs import (
    MANIFEST,
    Job,
    Manifest,
    digest,
    make_jobs,
    scenes_to_parts,
    share_of_work,
    switches_to_parts,
    whole_batches,
)
from astrolabe.masking import hide
from astrolabe.run_folder import RunFolder
from astrolabe.sampling import load_trained
from astrolabe.screen import console as make_console
from astrolabe.screen import echo
from astrolabe_eval.files import check_place
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.prompt_files import PROMPT, SCRIPT, Row, read_rows
from astrolabe_rollout.scenes import Scene, parse_scenes, read_interactive


@dataclass(frozen=True)
class Request:
    """What was typed."""

    prompts: Sequence[str]
    """Prompts and scripts of scenes."""
    file: Path | None
    """More of them, see `read_rows`; or LongLive's interactive scripts."""
    switch_frames: Sequence[int]
    """Latent frames at which the prompts of an interactive script change."""
    model: Part
    trained_on: int | None
    """Latent frames of the run's windows."""
    run: Path | None
    """Whose checkpoint is used."""
    begin: Path | None
    """Picture or video that the videos go on from."""
    frames: int | None
    seconds: float | None
    seed: int
    num_seeds: int
    batch_size: int
    overwrite: bool
    out: Path


def perform(request: Request, say: Callable[[str], None]) -> None:
    """Make what is asked for and is not there yet; the path of each finished file is said.

    Under torchrun every process makes its share of the videos.

    Raises:
        ConfigError: If something typed does not fit, or other videos are in the way.
    """
    rank, world = share_of_work()
    check_place(request.out / MANIFEST)
    scenes, interactive = read_scripts(request.prompts, request.file, request.switch_frames)
    model, length, common = _model(request)
    jobs = make_jobs(
        [
            *(scenes_to_parts(s, model.geometry, model.fps, length) for s in scenes),
            *(switches_to_parts(s, length, model.geometry.chunk) for s in interactive),
        ],
        request.seed,
        request.num_seeds,
    )
    request.out.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(request.out, common, rank)
    # Shared out before anything is made: what is missing changes while other processes work.
    own = jobs[rank::world]
    left = manifest.missing(own, overwrite=request.overwrite)
    for note in manifest.notes:
        echo(note, err=True)
    if len(left) < len(own):
        echo(f"{len(own) - len(left)} of {len(own)} videos are there already.", err=True)
    begin = None if request.begin is None else generate.beginning(request.begin, model)
    work = whole_batches(own, request.batch_size, left)
    embed_all(model, [job for batch, _ in work for job in batch])
    made = generate.generate_videos(model, work, manifest, begin=begin)
    _show(made, request.out, say)


def read_scripts(
    prompts: Sequence[str], file: Path | None, switch_frames: Sequence[int]
) -> tuple[list[list[Scene]], list[list[tuple[str, int]]]]:
    """Read all prompts, before any weights.

    Args:
        prompts: Those that were typed.
        file: More of them, see `Request`.
        switch_frames: As there.

    Returns:
        Scripts of scenes, and interactive ones as `read_interactive` gives them.

    Raises:
        ConfigError: If a script does not parse, or there is none.
        PromptFileError: If the file, or an entry of it, cannot be read.
    """
    rows = [] if file is None else read_rows(file)
    interactive: list[list[tuple[str, int]]] = []
    if file is not None and any(SCRIPT in row.values for row in rows):
        try:
            rows, interactive = [], read_interactive(file, switch_frames)
        except ValueError as error:
            raise ConfigError(f"--file, --switch-frames: {error}") from error
    if switch_frames and not interactive:
        raise ConfigError(
            '--switch-frames belongs to --file with interactive scripts ({"prompts": [...]} in '
            "each line of a .jsonl). Give that file too."
        )
    if not any(line.strip() for line in prompts) and not rows and not interactive:
        raise ConfigError(
            "there is no prompt. Give one in quotes, or --file with one per line: "
            'astrolabe generate "a red circle bounces on a white background".'
        )
    try:
        typed = [parse_scenes(line) for line in prompts]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return typed + [_scenes_of(row) for row in rows], interactive


def _scenes_of(row: Row) -> list[Scene]:
    text = row.text()
    try:
        return parse_scenes(text)
    except ValueError as error:
        raise ConfigError(f"--file: {row.error(str(error), PROMPT)}") from error


def _model(request: Request) -> tuple[VideoModel, int, dict[str, object]]:
    """Build the model; return it with the chunks of a video and its description."""
    begin = None if request.begin is None else digest_of(request.begin)
    model = build_model(request.model)
    default = request.trained_on or 3 * model.geometry.chunk
    length = generate.length(model, request.frames, request.seconds, default)
    common: dict[str, object] = {
        "astrolabe": version("astrolabe"),
        "model": hide(asdict(request.model)),
        "steps": list(model.denoising_steps),
        "size": [model.geometry.height, model.geometry.width],
        "fps": model.fps,
        "begin": begin,
        "adapter": None,
    }
    if request.run is not None:
        checkpoint = load_trained(model, RunFolder(request.run))
        weights = next((checkpoint / LORA).glob("*.safetensors"))
        common["adapter"] = {"checkpoint": str(checkpoint), "sha256": digest(weights)}
    return model, length, common


def embed_all(model: VideoModel, jobs: Sequence[Job]) -> None:
    """Encode every prompt once, then free the text encoder: UMT5 takes more room than Wan 1.3B.

    Each by itself, as the last bits depend on what is encoded together.
    """
    prompts = sorted({part.prompt for job in jobs for part in job.parts})
    model.encoder.remember = max(model.encoder.remember, len(prompts))
    for prompt in prompts:
        model.text([prompt])
    model.encoder.release()
    if model.encoder.num_cut:
        echo(f"{model.encoder.num_cut} prompts are longer than the model reads.", err=True)


def digest_of(path: Path) -> str:
    """Return the digest of a file that was typed.

    Raises:
        ConfigError: If there is none.
    """
    if not path.is_file():
        raise ConfigError(f"--begin: there is no file {str(path)!r}. Check the path.")
    return digest(path)


def _show(made: Iterable[generate.Progress], out: Path, say: Callable[[str], None]) -> None:
    """Show a bar for each batch on a terminal, plain lines elsewhere; say complete files."""
    console = make_console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # else paths for a pipe would end up on the screen
    )
    tasks: dict[str, TaskID] = {}
    with bar:
        for progress in made:
            name = progress.jobs[0].name
            more = f" and {len(progress.jobs) - 1} more" if len(progress.jobs) > 1 else ""
            if name not in tasks:
                tasks[name] = bar.add_task(name[:40] + more, total=1.0, figures="")
            figures = (
                f"{progress.frames} frames  {progress.rate:.1f} frames/s  "
                f"first after {progress.first:.1f} s  {progress.memory:.2f} GiB"
            )
            bar.update(tasks[name], completed=progress.share, figures=figures)
            if progress.share >= 1:
                for job in progress.jobs:
                    say(str(out / f"{job.name}.mp4"))
                if bar.disable:
                    echo(f"{name}{more}: {figures}", err=True)
