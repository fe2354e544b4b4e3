"""Whether settings go with the model that they name."""

from collections.abc import Sequence

from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe_rollout.model import VideoModel
from astrolabe_rollout.windows import WindowSchedule, prompt_of_window


def check_fit(run: Run, model: VideoModel, processes: int) -> None:
    """Refuse settings that do not go with a model.

    Raises:
        ConfigError: Names the setting.
    """
    check_frames(model, run.rollout.num_frames, "rollout.num_frames")
    if run.evaluation.at_end:
        check_frames(model, evaluation_frames(run, model), "evaluation.num_frames")
    sharded = processes > 1 and run.distributed.base == "sharded"
    if sharded and run.rollout.scene_windows and model.switch.startswith("recache"):
        raise ConfigError(
            f"distributed.base is 'sharded', but the model's switch is {model.switch!r}: where a "
            "prompt changes, it makes a pass that other processes do not. Set model.options.switch "
            "to 'keep' or 'flush', or distributed.base to 'replicated'."
        )


def window_schedule(run: Run) -> WindowSchedule:
    """Make the schedule of trained windows.

    Raises:
        ConfigError: If the windows do not fit into the video, or the curriculum shrinks.
    """
    rollout = run.rollout
    try:
        return WindowSchedule(
            windows=rollout.windows,
            length=rollout.length or rollout.windows,
            start=rollout.start,
            starts=rollout.starts,
            curriculum=rollout.curriculum,
            seed=run.train.seed,
        )
    except ValueError as error:
        raise ConfigError(f"rollout: {error}") from error


def check_scenes(run: Run, model: VideoModel, scripts: Sequence[str]) -> None:
    """Refuse prompts that change where training cannot follow.

    Args:
        run: The settings.
        model: That is trained.
        scripts: Of the run.

    Raises:
        ConfigError: Names the settings, a script and the window.
    """
    rollout = run.rollout
    if not rollout.scene_windows or model.rebuild:
        return
    starts = window_schedule(run).places
    for script in scripts:
        if "|" not in script:
            continue
        shown = [
            prompt_of_window(script, window, rollout.scene_windows)
            for window in range(starts[-1] + rollout.windows)
        ]
        for start in starts:
            _check_script(run, model, shown, start)


def _check_script(run: Run, model: VideoModel, shown: Sequence[str], start: int) -> None:
    """Refuse what `check_scenes` refuses of one video that is trained from a window on."""
    rollout, length, switch = run.rollout, run.rollout.num_frames, model.switch
    each = rollout.commit == "each" and rollout.shared and start > 0
    for window in range(start, start + rollout.windows):
        held = model.geometry.held(window * length)
        others = [shown[n] for n in sorted({frame // length for frame in held})]
        odd = next((text for text in others if text != shown[window]), None)
        if odd is None:
            continue
        found = f"window {window}, {shown[window]!r:.60}, comes after frames of {odd!r:.60}"
        if not switch.startswith("recache"):
            raise ConfigError(
                f"rollout.scene_windows is {rollout.scene_windows}: the trained {found}. The model "
                f"(switch {switch!r}) saw these under their own prompt, while the loss computes "
                "them under that of the window. Train windows that see no other prompt "
                "(rollout.start, starts, scene_windows), or a model whose option switch is "
                "'recache'."
            )
        if each and window > start and shown[window - 1] != shown[window]:
            raise ConfigError(
                "rollout.commit is 'each', and the prompt changes between trained windows: "
                f"{found}. Candidates that share a history cannot write it anew. Set "
                "rollout.commit to 'random' or 'best', rollout.windows to 1, or "
                "rollout.scene_windows so that no prompt changes there."
            )


def check_whole(run: Run, whole: bool, processes: int) -> None:
    """Refuse a loss that cannot be shared as the settings say.

    Args:
        run: The settings.
        whole: Whether the loss must see a whole minibatch.
        processes: Among which a step is shared.

    Raises:
        ConfigError: Names the setting.
    """
    if processes > 1 and run.distributed.base == "sharded" and whole:
        raise ConfigError(
            f"distributed.base is 'sharded', but the objective {run.objective.name!r} gives each "
            "process another number of passes. Set distributed.base to 'replicated'."
        )


def evaluation_frames(run: Run, model: VideoModel) -> int:
    """Latent frames of the videos that a run is judged by."""
    geometry, seconds = model.geometry, run.evaluation.seconds
    if seconds:
        frames = seconds * model.fps / geometry.temporal
        return geometry.chunk * max(round(frames / geometry.chunk), 1)
    return run.evaluation.num_frames or run.rollout.num_frames


def check_frames(model: VideoModel, latent_frames: int, setting: str) -> None:
    """Refuse a number of latent frames that is no whole number of chunks.

    Raises:
        ConfigError: Names the setting and the nearest numbers that are.
    """
    try:
        model.geometry.chunks(latent_frames)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from error
