"""Commands about the videos that an evaluation made."""

from pathlib import Path
from typing import Annotated

import typer

from astrolabe.code_option import AllowCode
from astrolabe.epilog import examples, lines
from astrolabe.reward_options import RewardNames, RewardOverrides, RewardRecipes
from astrolabe.screen import echo
from astrolabe_eval.vbench_needs import overview

commands = typer.Typer()

Folder = Annotated[
    Path, typer.Argument(help="Run with one evaluation, or one of its folders evaluation/*.")
]


@commands.command(epilog=examples("astrolabe votes runs/short --pairs 30"))
def votes(
    folder: Folder,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of videos to show.")] = 30,
    question: Annotated[str, typer.Option(help="What people are asked.")] = "Which is better?",
) -> None:
    """Write a page on which people choose between before and after, without knowing which.

    The page is one file that works from disk and saves the votes to a file. votes-key.json says
    which side was which: keep it, and count with astrolabe count-votes.
    """
    from astrolabe.evaluated import ask_people

    ask_people(folder, pairs, question, echo)


@commands.command("count-votes", epilog=examples("astrolabe count-votes votes votes-key.json"))
def count_votes(
    files: Annotated[Path, typer.Argument(help="A file of votes, or a folder of them.")],
    key: Annotated[Path, typer.Argument(help="The votes-key.json of that page.")],
) -> None:
    """Say how often the tuned model won, with intervals, for each rater and all together."""
    from astrolabe.evaluated import count_votes as count

    count(files, key, echo)


@commands.command(
    "over-time",
    epilog=examples("astrolabe over-time runs/long --reward clip --seconds 10"),
)
def over_time(
    folder: Folder,
    reward: RewardNames = None,
    recipe: RewardRecipes = None,
    overrides: RewardOverrides = None,
    seconds: Annotated[float, typer.Option(help="Length of an interval.")] = 10.0,
    allow_code: AllowCode = False,
) -> None:
    """Score each interval of the videos, to see whether they fade as they go on."""
    from astrolabe.evaluated import over_time as score_over_time
    from astrolabe.reward_choice import choose_terms

    terms = choose_terms(reward or [], recipe or [], overrides or [], allow_code=allow_code)
    score_over_time(folder, terms, seconds, echo)


@commands.command(
    epilog="\n\n".join(
        (
            examples(
                "astrolabe vbench runs/long --dimension temporal_flickering",
                "astrolabe vbench runs/long --dimension all --cache weights --download",
                "astrolabe vbench runs/long --dimension color --python vbench-env/bin/python",
            ),
            lines("Dimension, what it reads, prompts it can judge, weights:", *overview()),
        )
    )
)
def vbench(
    folder: Folder,
    dimension: Annotated[
        list[str],
        typer.Option(
            help="One of the sixteen below; may be repeated. all: what the prompts allow."
        ),
    ],
    python: Annotated[
        Path | None,
        typer.Option(help="Interpreter that has vbench; without it uv makes one (6 GB on disk)."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of VBench's weights; else $VBENCH_CACHE_DIR or ~/.cache/vbench."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let VBench fetch weights that are absent there.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; else CUDA if there is.")] = None,
) -> None:
    """Run VBench over the videos and give its totals, with the dimensions that are missing.

    Videos of VBench's own prompts (astrolabe eval --prompts VBench_full_info.json) are judged on
    all dimensions. Of other prompts, human_action needs some that end in "person is" and a class of
    Kinetics-400, and those that compare with VBench's list mean nothing and are refused.
    """
    from astrolabe.evaluated import vbench as run_dimensions

    run_dimensions(
        folder,
        dimension,
        echo,
        python=python,
        cache=cache,
        download=download,
        device=device,
    )
