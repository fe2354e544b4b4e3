"""Commands about training runs."""

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astrolabe.code_option import AllowCode
from astrolabe.epilog import examples
from astrolabe.errors import ConfigError
from astrolabe.screen import echo
from astrolabe.setting_options import Overrides, Unset

if TYPE_CHECKING:
    from astrolabe.config import Run

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "astrolabe train",
        "astrolabe train tiny --set train.steps=10 --set train.seed=1 --out runs/short",
        "astrolabe train tiny my_changes.toml --dry-run",
        "astrolabe train --resume runs/short",
        "astrolabe train --resume runs/short --set train.steps=40 --force",
        "astrolabe train --resume runs/short --unset evaluation.judges.NAME --force",
        "torchrun --nproc-per-node 8 --max-restarts 10 -m astrolabe train RECIPE --out runs/long",
    )
)
def train(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", help="Names or .toml files; a later one wins."),
    ] = None,
    overrides: Overrides = None,
    unset: Unset = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default runs/RECIPE-TIME.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with this run, as it was started.")
    ] = None,
    auto_resume: Annotated[
        bool,
        typer.Option("--auto-resume", help="Go on with --out if it is begun, for schedulers."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Go on with other settings where they are safe to change."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print all settings, say what is missing or wrong, and stop.")
    ] = False,
    allow_code: AllowCode = False,
) -> None:
    """Train a model: by default the embedded one, with the recipe `tiny`.

    The run folder gets all settings, the metrics of every step, checkpoints, sample videos and, at
    the end, `report.html` with the model before and after. Ctrl-C saves first.

    Under torchrun the processes share the videos of each step, and train as one would. What
    torchrun starts again goes on by itself. `astrolabe plan` says what fits into which GPU.
    """
    from astrolabe.load import Code, load, to_json

    code: Code = "any" if allow_code else "parts"
    if resume is not None:
        if out or auto_resume or dry_run:
            raise ConfigError(
                "--resume goes on in the folder of the run. Leave out --out, --auto-resume and "
                "--dry-run."
            )
        given = {"overrides": overrides or [], "unset": unset or []}
        wanted = load(recipes, **given, code=code) if recipes else None
        _tell(f"Going on with {resume}")
        from astrolabe import session

        raise typer.Exit(
            session.resume(
                resume,
                wanted,
                **({} if recipes else given),
                force=force,
                allow_code=allow_code,
            )
        )
    chosen = recipes or ["tiny"]
    run = load(chosen, overrides or [], unset=unset or [], code=code)
    # The processes of torchrun must agree on a name, and find it again after a restart.
    shared = os.environ.get("TORCHELASTIC_RUN_ID", "")
    name = shared[:8] if shared and shared != "none" else f"{datetime.now():%Y%m%d-%H%M%S}"
    folder = out or Path("runs") / f"{Path(chosen[0]).stem}-{name}"
    if dry_run:
        echo(to_json(run), nl=False)
        _rehearse(run, folder)
        return
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if auto_resume and out is None:
        raise ConfigError("--auto-resume needs the folder of the run. Name it with --out.")
    from astrolabe import preflight

    # First of all, as it takes a second: what follows takes minutes before it says what is missing.
    for download in preflight.check(run, folder) if _first_here() else []:
        _tell(f"To be downloaded: {download}")
    _tell(f"Run folder: {folder}")
    from astrolabe import session

    again = auto_resume or restarted
    raise typer.Exit(session.start(run, folder, again=again, force=force, allow_code=allow_code))


def _rehearse(run: "Run", folder: Path) -> None:
    """Refuse what building would refuse, without reading weights."""
    from astrolabe import checks, preflight
    from astrolabe.launch_errors import world_size

    processes = world_size(os.environ)
    checks.check_settings(run, processes)
    preflight.check(run, folder)
    checks.check_prompts(run)
    checks.check_model(run, processes)
    checks.check_terms(run)


def _first_here() -> bool:
    """Whether this process is the first on its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _tell(text: str) -> None:
    """Print a line, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        echo(text)


@commands.command(
    "eval",
    epilog=examples(
        "astrolabe eval runs/short",
        "astrolabe eval runs/short --num-videos 256 --prompts my_prompts.txt",
        "astrolabe eval runs/short --step 10 --step 20 --exact",
        "astrolabe eval runs/short --unset evaluation.judges.NAME",
        "astrolabe eval runs/long --prompts interactive_benchmark.txt --scenes --num-videos 0",
        "astrolabe eval runs/long --prompts VBench_full_info.json --num-videos 0 --out vbench",
        "torchrun --nproc-per-node 8 -m astrolabe eval runs/long --num-videos 946",
    ),
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    prompts: Annotated[
        str | None,
        typer.Option(help="Packaged list, .txt, .jsonl, .csv, or VBench's .json; else the run's."),
    ] = None,
    num_videos: Annotated[
        int | None, typer.Option(help="Videos of each model; 0 for all prompts.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of a video.")] = None,
    scenes: Annotated[
        bool | None, typer.Option(help="Prompts are scripts: a cat wakes[10s] | it runs[10s].")
    ] = None,
    step: Annotated[
        list[int] | None, typer.Option(help="Checkpoint to compare; may be repeated.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change evaluation.*, or a held-out reward."
        ),
    ] = None,
    unset: Unset = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Videos made together, without --exact.")
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option(help="One by one, so that no number depends on the batch; else the run's."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of videos, scores and report; else the run's.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Compare a run's model before and after, on held-out prompts with the same noise.

    Writes every video with its scores, then report.html, .json, .csv, .md and .tex. The same
    command goes on after an interruption; under torchrun, processes share the videos.

    What --set and --unset change is not kept in the run. A judge that fails, such as one whose name
    is misspelt, is mended by them: --unset evaluation.judges.NAME, --set
    evaluation.judges.OTHER.weight=1. Options such as --prompts come after them.
    """
    from dataclasses import replace

    from astrolabe import preflight
    from astrolabe.evaluate import evaluate as evaluate_run
    from astrolabe.jobs import share_of_work
    from astrolabe.load import changed, names_in
    from astrolabe.recipe_changes import check_judged
    from astrolabe.run_folder import RunFolder

    sets, unsets = overrides or [], unset or []
    typed = names_in(sets, unsets)
    folder, trained = RunFolder.open(run, allow_code=allow_code, typed=typed)
    settings = changed(trained, sets, unsets)
    check_judged(trained, settings)
    given: dict[str, Any] = {  # Any: settings have many types
        "prompts": prompts,
        "num_videos": num_videos,
        "seconds": seconds,
        "num_frames": 0 if seconds else None,
        "scenes": scenes,
        "batch_size": batch_size,
        "exact": exact,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        evaluation = replace(settings.evaluation, **changes)
    except ValueError as error:
        raise ConfigError(f"astrolabe eval: {error}") from error
    judged = replace(settings, evaluation=evaluation)
    for download in preflight.check(judged, training=False) if _first_here() else []:
        _tell(f"To be downloaded: {download}")
    evaluate_run(
        folder,
        judged,
        echo,
        steps=step or (),
        out=out,
        share=share_of_work(),
    )


@commands.command(
    epilog=examples(
        "astrolabe export runs/short adapter",
        "astrolabe export runs/short adapter.safetensors --format original",
        "astrolabe export runs/short merged.safetensors --format merged --dtype bf16",
    )
)
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    target: Annotated[Path, typer.Argument(help="File or folder to write.")],
    kind: Annotated[
        str,
        typer.Option("--format", help="lora, diffusers or original: the adapter; merged: all."),
    ] = "lora",
    dtype: Annotated[
        str, typer.Option(help="Of merged: bf16, fp16, fp32; keep: as the checkpoint was.")
    ] = "keep",
    overwrite: Annotated[bool, typer.Option(help="Replace a target that exists.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Write what a run has trained for use elsewhere, and say what opens it.

    lora: a folder for diffusers (WanPipeline.load_lora_weights), peft (PeftModel.from_pretrained)
    and lora.start of another run. diffusers: a folder for WanPipeline alone, half as large.
    original: a file .safetensors of Wan's own names and an alpha for each layer, which WanPipeline
    and lora.start read too.

    merged: the whole model, as `astrolabe convert` writes it. A folder is for diffusers'
    WanTransformer3DModel.from_pretrained, .safetensors for its from_single_file, .pt has the layout
    of Self-Forcing; all three go on as model.options.checkpoint. The adapter is added in float32 to
    the checkpoint that the run began with; how much of it arrived in the precision of --dtype is
    said, with a warning if it is not all.
    """
    from astrolabe.export import advice
    from astrolabe.export import export as export_run

    strength = export_run(
        run,
        target,
        kind=kind,
        dtype=dtype,
        overwrite=overwrite,
        say=echo,
        allow_code=allow_code,
    )
    if strength is not None and not strength.holds:
        echo(f"warning: {advice(strength)}", err=True)


@commands.command(
    epilog=examples(
        "astrolabe watch runs/short",
        "astrolabe watch runs --port 8000 --open",
    )
)
def watch(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, or of several to compare.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; by default none but this machine can look.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")
    ] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in a browser here.")
    ] = False,
) -> None:
    """Follow a training in the browser: curves, samples, alarms; also one that is finished.

    Reads the run folder only and writes nothing; needs no network. From another machine, tunnel:
    ssh -L 8000:127.0.0.1:8000 MACHINE, with --port 8000 here.
    """
    from astrolabe.watch import watch as watch_runs

    watch_runs(folder, host=host, port=port, open_browser=open_browser, say=echo)


@commands.command(
    epilog=examples(
        "astrolabe speed runs/short",
        "astrolabe speed runs/short --seconds 20 --repeats 40",
    )
)
def speed(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    seconds: Annotated[
        float | None, typer.Option(help="Video that is timed each time; by default ten chunks.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Videos of each variant, in turn.")] = 20,
    allow_code: AllowCode = False,
) -> None:
    """Measure what tuning costs in speed: base, merged and with the adapter apart, in turn.

    Frames per second with and without decoding, seconds to the first frame, latency of a chunk and
    peak memory. Writes `speed.json` and `speed.md` into the run folder.
    """
    from astrolabe.speed import speed as measure_speed

    measure_speed(run, seconds=seconds, repeats=repeats, say=echo, allow_code=allow_code)
