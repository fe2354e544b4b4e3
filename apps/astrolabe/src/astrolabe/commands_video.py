"""Commands that make videos, and convert the models that make them."""

from pathlib import Path
from typing import Annotated

import typer

from astrolabe.code_option import AllowCode
from astrolabe.epilog import examples
from astrolabe.errors import ConfigError
from astrolabe.limits import COUNT
from astrolabe.screen import echo

commands = typer.Typer()


@commands.command(
    epilog=examples(
        'astrolabe generate "a blue square orbits on a black background"',
        "astrolabe generate --file prompts.txt --run runs/short --seconds 10 --out videos",
        'astrolabe generate "a cat wakes[5s] | it runs[10s#]" --model infinity-rope',
        "torchrun --nproc-per-node 8 -m astrolabe generate --file prompts.txt --model longlive",
    )
)
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to show, or scenes.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Prompts or scripts: text, .csv, .tsv, .json, .jsonl; or LongLive's."),
    ] = None,
    switch_frames: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Latent frames at which LongLive's prompts change."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Use what this run has learned.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, if no run is given; by default the embedded one.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="model.options.NAME=VALUE", help="Option of the model."),
    ] = None,
    begin: Annotated[
        Path | None, typer.Option(help="Picture or video that the videos go on from.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Pixel frames, whole chunks.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length instead of --frames.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Noise of the first video.")] = 0,
    num_seeds: Annotated[int, typer.Option(min=1, help="Videos of each prompt.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos sampled together.")] = 8,
    overwrite: Annotated[bool, typer.Option(help="Make again what is there.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the mp4 files.")] = Path("videos"),
    allow_code: AllowCode = False,
) -> None:
    """Make videos from prompts, one mp4 each, written while they are made.

    The embedded model knows coloured shapes: "a red circle bounces on a white background". Memory
    does not grow with length, so videos may be far longer than those a model was trained on.

    Scenes are parted by |, each with its length: "a cat wakes[5s] | it runs[10s#] | it sleeps".
    The # makes a hard cut at the START of its scene: here, before "it runs". Scenes without a
    length take --seconds or --frames.

    Called again, it makes only what is missing; manifest.jsonl says how each video was made.
    """
    from astrolabe.generation import Request, perform
    from astrolabe.load import changed, load
    from astrolabe.run_folder import RunFolder

    outside = [text for text in overrides or [] if not text.startswith("model.options.")]
    if outside:
        raise ConfigError(
            f"--set {outside[0]}: only model.options.NAME=VALUE can be set here; "
            "see astrolabe parts models NAME for the options of a model."
        )
    try:
        switches = [int(number) for number in (switch_frames or "").split(",") if number.strip()]
    except ValueError:
        raise ConfigError(
            f"--switch-frames {switch_frames!r:.60} is no list of latent frames such as 40,80,120."
        ) from None
    if any(not 0 < number <= COUNT for number in switches):
        raise ConfigError(
            f"--switch-frames {switch_frames!r:.60} has a number that no video has. Give latent "
            f"frames from 1 to {COUNT}."
        )
    if run is not None and model is not None:
        raise ConfigError(
            f"--run {run} and --model {model} are both given, and a run has a model of its own. "
            "Leave one of them out."
        )
    if run is None:
        chosen = load(["tiny"], [f"model.name={model or 'tiny'}", *(overrides or [])])
    else:
        chosen = changed(RunFolder.open(run, allow_code=allow_code)[1], overrides or [])
    request = Request(
        prompts=prompts or [],
        file=file,
        switch_frames=switches,
        model=chosen.model,
        trained_on=None if run is None else chosen.rollout.num_frames,
        run=run,
        begin=begin,
        frames=frames,
        seconds=seconds,
        seed=seed,
        num_seeds=num_seeds,
        batch_size=batch_size,
        overwrite=overwrite,
        out=out,
    )
    perform(request, echo)


@commands.command(
    epilog=examples(
        "astrolabe convert self_forcing_dmd.pt wan-diffusers",
        "astrolabe convert wan-diffusers/transformer generator.pt --dtype bf16",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint: a file or a folder.")],
    target: Annotated[Path, typer.Argument(help="File or folder to write.")],
    dtype: Annotated[str, typer.Option(help="keep, bf16, fp16 or fp32.")] = "keep",
    overwrite: Annotated[bool, typer.Option(help="Replace a target that exists.")] = False,
) -> None:
    """Turn a checkpoint of Wan's transformer into another form, with all its keys checked.

    TARGET ends in .safetensors: one file with Wan's own names; in .pt: the layout of Self-Forcing;
    in nothing: a folder that diffusers reads.
    """
    from astrolabe.export import convert as convert_checkpoint

    count = convert_checkpoint(source, target, dtype=dtype, overwrite=overwrite)
    echo(f"{target}  {count / 1e9:.3f} B parameters")
