"""The command line. Imports torch only inside commands, so that ``--help`` is quick."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from astrolabe.errors import ConfigError, InvariantError

#: Modules whose errors are the user's to mend; others are bugs and keep their traceback.
ERROR_MODULES = ("astrolabe_rollout.errors", "astrolabe_rewards.errors", "astrolabe_eval.errors")


def examples(*commands: str) -> str:
    """End of a help text; the first character keeps its lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


app = typer.Typer(
    name="astrolabe",
    help="""Align video models with what people like, by online reinforcement learning.

    Start here: `astrolabe train` teaches the embedded model on this machine in some minutes and
    ends with a report that shows it before and after.""",
    epilog="Every command explains itself: astrolabe train --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(
    epilog=examples(
        "astrolabe train",
        "astrolabe train tiny --set train.steps=10 --set train.seed=1 --out runs/short",
        "astrolabe train tiny my_changes.toml --dry-run",
        "astrolabe train --resume runs/short",
    )
)
def train(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", help="Names or .toml files; a later one wins."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default runs/RECIPE-TIME.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with this run; no other setting.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print all settings and stop.")] = False,
) -> None:
    """Train a model: by default the embedded one, with the recipe `tiny`.

    The run folder gets all settings, the metrics of every step, checkpoints, sample videos and, at
    the end, `report.html` with the model before and after. Ctrl-C saves first.
    """
    from astrolabe.load import load, to_json

    if resume is not None:
        if recipes or overrides or out or dry_run:
            raise ConfigError(
                "--resume takes no other setting: the run goes on as it was started. "
                "Leave out the recipes, --set, --out and --dry-run."
            )
        typer.echo(f"Going on with {resume}")
        from astrolabe import session

        raise typer.Exit(session.resume(resume))
    chosen = recipes or ["tiny"]
    run = load(chosen, overrides or [])
    if dry_run:
        typer.echo(to_json(run), nl=False)
        return
    folder = out or Path("runs") / f"{Path(chosen[0]).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    typer.echo(f"Run folder: {folder}")
    from astrolabe import session

    raise typer.Exit(session.start(run, folder))


@app.command(
    "eval",
    epilog=examples(
        "astrolabe eval runs/short",
        "astrolabe eval runs/short --num-videos 256 --prompts my_prompts.txt",
    ),
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    prompts: Annotated[
        str | None, typer.Option(help="Prompt file or packaged list; by default the run's.")
    ] = None,
    num_videos: Annotated[int | None, typer.Option(help="Videos before and after.")] = None,
) -> None:
    """Compare a run's model before and after, on held-out prompts with the same noise.

    Writes `report.html` and `report.json` into the run folder.
    """
    from dataclasses import replace

    from astrolabe.evaluate import evaluate as evaluate_run
    from astrolabe.run_folder import RunFolder

    folder, settings = RunFolder.open(run)
    evaluation = settings.evaluation
    try:
        evaluation = replace(
            evaluation,
            prompts=prompts or evaluation.prompts,
            num_videos=evaluation.num_videos if num_videos is None else num_videos,
        )
    except ValueError as error:
        raise ConfigError(f"astrolabe eval: {error}") from error
    evaluate_run(folder, replace(settings, evaluation=evaluation), typer.echo)


@app.command(
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
        typer.Option(help="One prompt or script of scenes per line; or LongLive's .jsonl."),
    ] = None,
    switch_frames: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Latent frames at which a .jsonl's prompts change."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Use what this run has learned.")] = None,
    model: Annotated[str, typer.Option(help="Model, if no run is given.")] = "tiny",
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
    from astrolabe.load import load

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
            f"--switch-frames {switch_frames!r} is no list of latent frames such as 40,80,120."
        ) from None
    chosen = load(["tiny"], [f"model.name={model}", *(overrides or [])]).model
    request = Request(
        prompts=prompts or [],
        file=file,
        switch_frames=switches,
        model=chosen,
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
    perform(request, typer.echo)


@app.command(
    epilog=examples(
        "astrolabe score videos/*.mp4 --reward sharpness_vq --reward flow_mq",
        'astrolabe score ball.mp4 --prompt "a red ball rolls to the left" --reward attribute_ta',
    )
)
def score(
    videos: Annotated[list[Path], typer.Argument(help="Video files.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What a video should show: one for all, or one for each, in order."),
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="Names of rewards; see astrolabe parts rewards.")
    ] = None,
) -> None:
    """Score video files with reward models; larger is better."""
    from astrolabe.config import RewardTerm
    from astrolabe.score import score_videos

    given = prompt or [""]
    if len(given) not in (1, len(videos)):
        raise ConfigError(
            f"{len(given)} prompts for {len(videos)} videos. Give one for all, or one for each."
        )
    texts = given * len(videos) if len(given) == 1 else given
    terms = {name: RewardTerm() for name in reward or ["sharpness_vq", "flow_mq"]}
    for path, scores in zip(videos, score_videos(videos, texts, terms), strict=True):
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        typer.echo(f"{path}  {numbers}")


@app.command(
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
    typer.echo(f"{target}  {count / 1e9:.3f} B parameters")


@app.command(
    epilog=examples(
        "astrolabe export runs/short adapter",
        "astrolabe export runs/short merged.safetensors --format merged",
    )
)
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    target: Annotated[Path, typer.Argument(help="File or folder to write.")],
    kind: Annotated[
        str, typer.Option("--format", help="lora: the adapter alone; merged: the whole model.")
    ] = "lora",
    overwrite: Annotated[bool, typer.Option(help="Replace a target that exists.")] = False,
) -> None:
    """Write what a run has trained for use elsewhere.

    A LoRA becomes a folder that peft and diffusers read. A merged model is written as `astrolabe
    convert` does: .safetensors, .pt, or a folder of diffusers.
    """
    from astrolabe.export import export as export_run

    export_run(run, target, kind=kind, overwrite=overwrite)
    typer.echo(target)


@app.command(
    epilog=examples(
        "astrolabe recipes tiny > mine.toml",
        "astrolabe train mine.toml",
    )
)
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
) -> None:
    """List the recipes, or print one as a start for your own."""
    from astrolabe.load import read_recipe, recipe_names

    if name is not None:
        typer.echo(read_recipe(name), nl=False)
        return
    for known in recipe_names():
        typer.echo(read_recipe(known).splitlines()[0].removeprefix("# "))


@app.command(
    epilog=examples(
        "astrolabe parts rewards",
        "astrolabe parts objectives nft",
    )
)
def parts(
    kind: Annotated[
        str | None, typer.Argument(help="models, rewards, objectives or suites.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Explain this part and its options.")] = None,
) -> None:
    """List the models, rewards, objectives and prompt lists that are installed, also your own."""
    import inspect
    from difflib import get_close_matches

    from astrolabe.registry import KINDS, find, names, options_of

    chosen = [known for known in KINDS if kind in (None, known)]
    if not chosen:
        close = get_close_matches(str(kind), KINDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"there is no kind of parts {kind!r}.{hint} Kinds: {', '.join(KINDS)}.")
    if name is not None:
        maker = find(chosen[0], name, f"astrolabe parts {kind}")
        typer.echo(f"{name}: {inspect.getdoc(maker) or 'no description'}\n\nOptions:")
        for option in options_of(maker).values():
            typer.echo(f"  {option}")
        return
    for known in chosen:
        typer.echo(f"{known}:")
        found = names(known)
        width = max(map(len, found), default=0)
        for part, target in found.items():
            typer.echo(f"  {part:<{width}}  {target}")


@app.command()
def keys() -> None:
    """Print the entries of a batch: what each is, who writes it, who reads it."""
    from astrolabe.keys_table import table

    typer.echo(table(), nl=False)


@app.command()
def doctor() -> None:
    """Examine this machine and the installation; exit code 1 if something needs mending."""
    from astrolabe.doctor import examine

    good = True
    for finding in examine(Path()):
        good &= finding.good
        typer.echo(f"{'ok ' if finding.good else 'BAD'}  {finding.name:<12} {finding.detail}")
    raise typer.Exit(0 if good else 1)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command; end with code 2 and one line for a mistake that the user can mend."""
    try:
        app(arguments, prog_name="astrolabe")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        typer.echo(f"error: {message}", err=True)
        raise SystemExit(2) from error
    raise SystemExit(0)


def explain(error: Exception) -> str | None:
    """Return a mistake of the user in one line; None for what is a bug."""
    if isinstance(error, OSError) and error.strerror:
        import errno

        ways_out = {
            errno.ENOSPC: "Free some space, or choose another --out; what was saved is intact.",
            errno.EROFS: "Choose another --out.",
            errno.EACCES: "Choose another --out, or change the permissions.",
        }
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}. {ways_out.get(error.errno or 0, 'Check the path.')}"
    known = isinstance(error, (ConfigError, InvariantError, OSError)) or type(error) is LookupError
    if not known and type(error).__module__ not in ERROR_MODULES:
        return None
    return " ".join(str(error.args[0] if error.args else error).split())
