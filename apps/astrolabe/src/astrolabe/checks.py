"""What keeps settings from becoming a run, found before any weight is read.

The same functions serve `train`, its dry run and `plan`, so that none accepts what another refuses.
"""

from collections.abc import Collection
from dataclasses import replace

from astrolabe.compose_rewards import build_term
from astrolabe.config import RewardTerm, Run
from astrolabe.contract import OURS, check_class, check_objective, try_objective, try_scorer
from astrolabe.errors import ConfigError
from astrolabe.evaluate import make_suite
from astrolabe.fit import check_fit, check_scenes, check_whole, window_schedule
from astrolabe.launch_errors import check_world
from astrolabe.plan_model import blueprint, describable
from astrolabe.plan_passes import FEW, loss_of
from astrolabe.preflight import declaration, part_lacks
from astrolabe.prompts import prompt_list
from astrolabe.registry import check, find, locate
from astrolabe_rollout.scenes import parse_scenes
from astrolabe_rollout.tiny import build_tiny

#: Rewards that are a process or a connection as soon as they are made.
_LIVING = ("astrolabe_rewards.worker:ScoringWorker", "astrolabe_rewards.client:RemoteReward")


def check_settings(run: Run, processes: int) -> None:
    """Refuse what no machine can run: parts, options, and work that cannot be shared.

    Args:
        run: The settings.
        processes: Among which a step is shared.

    Raises:
        ConfigError: Names the setting.
        LookupError: If a part is not installed.
    """
    check_world(run, processes)
    window_schedule(run)
    check("models", run.model.name, run.model.options, where="model")
    check("objectives", run.objective.name, run.objective.options, provided=3, where="objective")
    for where, name, term in _terms(run):
        check("rewards", term.name or name, term.options, where=f"{where}.{name}")


def check_prompts(run: Run, absent: Collection[str] = ()) -> None:
    """Read the prompts of training, and of the report if there is to be one.

    Args:
        run: The settings.
        absent: Settings whose file is known to be absent, and is not asked for.

    Raises:
        ConfigError: If a script of scenes is none.
        LookupError: If there is no packaged list of a name.
        PromptFileError: If a list of prompts cannot be read.
        SuiteError: If VBench's list cannot be read.
    """
    if "rollout.prompts" not in absent:
        scripts = prompt_list(run.rollout.prompts, "rollout.prompts")
        for number, script in enumerate(scripts if run.rollout.scene_windows else (), start=1):
            try:
                parse_scenes(script)
            except ValueError as error:
                raise ConfigError(f"rollout.prompts, prompt {number}: {error}") from error
    if run.evaluation.at_end and "evaluation.prompts" not in absent:
        make_suite(run)


def check_model(run: Run, processes: int, absent: Collection[str] = ()) -> None:
    """Refuse what does not go with the model, which is made without its weights.

    Of a model that is neither the embedded one nor of the Wan family nothing is checked. An
    objective of one's own is called once on made-up clips of an embedded model at random, in place
    of the real one.

    Args:
        run: The settings.
        processes: Among which a step is shared.
        absent: As in `check_prompts`.

    Raises:
        ConfigError: Names the setting.
    """
    _check_loss(run)
    if not describable(run.model):
        return
    model = blueprint(run.model).build(FEW)
    check_fit(run, model, processes)
    if run.rollout.scene_windows and "rollout.prompts" not in absent:
        check_scenes(run, model, prompt_list(run.rollout.prompts, "rollout.prompts"))
    check_whole(run, loss_of(run, model).whole, processes)


def _check_loss(run: Run) -> None:
    """Refuse an objective of one's own that lacks a part of its contract."""
    if locate("objectives", run.objective.name, "objective").startswith(OURS):
        return
    model = build_tiny()
    small = replace(run, rollout=replace(run.rollout, num_frames=model.geometry.chunk))
    loss = loss_of(small, model)
    check_objective(loss, run.objective.name)
    try_objective(loss, run.objective.name, small, model)


def check_terms(run: Run, *, judges_only: bool = False, offline: bool = False) -> None:
    """Refuse what rewards and judges refuse of their options, by making them for a moment.

    Args:
        run: The settings.
        judges_only: Make all judges, as the report will, and call those that are plain functions
            once; else the rewards and judges of packages that say what they need, whose making
            reads no weights, and those that have no constructor of their own. Of others the class
            alone is checked.
        offline: Pass over those that lack something, whose making would fetch it.
    """
    for where, name, term in _terms(run):
        target = locate("rewards", term.name or name, f"{where}.{name}")
        cheap = target not in _LIVING and (
            declaration(target) is not None
            or check_class(find("rewards", term.name or name, where))
        )
        chosen = where == "evaluation.judges" if judges_only else cheap
        if offline and part_lacks("rewards", term.name or name, term.options, f"{where}.{name}"):
            continue
        if chosen:
            scorer = build_term(name, term, where)
            if judges_only:
                try_scorer(scorer, name, where)


def _terms(run: Run) -> list[tuple[str, str, RewardTerm]]:
    tables = {"rewards": run.rewards, "evaluation.judges": run.evaluation.judges}
    return [(where, name, term) for where, terms in tables.items() for name, term in terms.items()]
