"""Commands about rewards: score videos, serve rewards to others."""

from pathlib import Path
from typing import Annotated

import typer

from astrolabe.code_option import AllowCode
from astrolabe.epilog import examples
from astrolabe.reward_options import RewardNames, RewardOverrides, RewardRecipes
from astrolabe.screen import echo

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "astrolabe score videos/*.mp4 --reward sharpness_vq --reward flow_mq",
        'astrolabe score ball.mp4 --prompt "a red ball rolls to the left" --reward attribute_ta',
        "astrolabe score videos --prompts p.csv --reward hpsv3 --cache seen --out scores.csv",
        "astrolabe score videos --recipe tiny --report agreement",
    )
)
def score(
    videos: Annotated[list[Path], typer.Argument(help="Video files, or folders of them.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What a video should show: one for all, or one for each, in order."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Table (.csv, .tsv, .json, .jsonl) of path and prompt.")
    ] = None,
    reward: RewardNames = None,
    recipe: RewardRecipes = None,
    overrides: RewardOverrides = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos scored together.")] = 8,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that remembers scores of videos seen before.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write: .csv or .jsonl.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder of a page that shows how the rewards agree.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Score video files with reward models; larger is better.

    Prompts of videos that `astrolabe generate` made are known. Folders are searched for .mp4,
    .webm, .mov, .mkv and .avi. A video that cannot be read or scored is listed and skipped; the
    exit code is then 1.
    """
    from astrolabe.score import Request, perform

    request = Request(
        videos=videos,
        prompts=prompt or [],
        prompt_file=prompts,
        rewards=reward or [],
        recipes=recipe or [],
        overrides=overrides or [],
        batch_size=batch_size,
        cache=cache,
        out=out,
        report=report,
        allow_code=allow_code,
    )
    raise typer.Exit(perform(request, echo))


@commands.command(
    "serve-rewards",
    epilog=examples(
        "astrolabe serve-rewards sharpness_vq flow_mq",
        "TOKEN=... astrolabe serve-rewards hpsv3 --host 0.0.0.0 --token-variable TOKEN",
        "astrolabe serve-rewards --recipe self_forcing_multi --port 9000",
    ),
)
def serve_rewards(
    rewards: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REWARD]...", help="Names; see astrolabe parts rewards."),
    ] = None,
    recipe: RewardRecipes = None,
    overrides: RewardOverrides = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine it needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_variable: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds the token.")
    ] = "",
    max_mib: Annotated[int, typer.Option(min=1, help="Largest request, MiB.")] = 512,
    max_memory_mib: Annotated[
        int, typer.Option(min=1, help="Most MiB of requests held at once.")
    ] = 2048,
    queue_size: Annotated[int, typer.Option(min=1, help="Most requests held at once.")] = 64,
    max_batch: Annotated[
        int,
        typer.Option(min=1, help="Join requests up to this many videos; 1 keeps scores exact."),
    ] = 1,
    max_wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for others.")] = 0.01,
    allow_code: AllowCode = False,
) -> None:
    """Serve rewards over HTTP to runs on this or other machines, until Ctrl-C.

    A run takes a served reward as its reward "remote", with the options url and reward. There is
    no TLS: beyond a trusted network, go through an SSH tunnel or a proxy.
    """
    from astrolabe.reward_choice import choose_terms
    from astrolabe.serve import serve_rewards as serve

    serve(
        choose_terms(rewards or [], recipe or [], overrides or [], allow_code=allow_code),
        host=host,
        port=port,
        token_variable=token_variable,
        max_mib=max_mib,
        max_memory_mib=max_memory_mib,
        queue_size=queue_size,
        max_batch=max_batch,
        max_wait=max_wait,
        say=echo,
    )
