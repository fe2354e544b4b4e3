"""Whether settings go with the model that they name."""

from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe_rollout.model import VideoModel


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
