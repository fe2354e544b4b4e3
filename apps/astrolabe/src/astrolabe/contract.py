"""What the training loop needs of a part of one's own, checked when the run is built.

A part that lacks something would otherwise fail after the first videos are sampled, or not at all:
a metric that is not declared would just be missing.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from astrolabe.config import Run
from astrolabe.errors import ConfigError
from astrolabe_objectives.keys import SELECTED, STEPS
from astrolabe_rewards import CompositeReward, Reward
from astrolabe_rewards.declared import check_declared
from astrolabe_rewards.errors import RewardError
from astrolabe_rewards.whole_video import WholeVideo
from astrolabe_rollout.model import VideoModel

_log = logging.getLogger(__name__)

#: What an objective has, and what that is; `astrolabe.compose.Objective` is its type.
OBJECTIVE = {
    "in_keys": "list of the entries of the batch that it reads; all others stay out of the buffer",
    "optional_keys": "list of the entries that it reads where they are; may be empty",
    "out_keys": "list of the names in what forward returns: one or more loss_*, which are summed "
    "and minimised, then metrics, which are logged; each a mean over the clips",
    "sigmas": "tuple of the noise levels in (0, 1] at which it trains",
    "whole": "True if noise() must see a whole minibatch, as it compares the clips, else False",
    "seed": "method: seed(number) restarts its random numbers",
    "noise": "method: noise(batch) flattens a batch and draws all random numbers that its loss "
    "needs; it keeps the entries of the batch",
    "forward": "method: the loss, called with (a part of) what noise() returned, returns a "
    "TensorDict of scalars",
}
#: What a reward declares as attributes of its class, and the method that it has.
REWARD = {
    "name": "text; second element of the key that is written",
    "unit": "text; what the number means, with its range",
    "needs_text": "whether score gets the prompts; else None",
    "may_fail": "whether score may answer NaN",
    "deterministic": "whether equal input gives equal scores",
    "score": "method: score(pixels, prompts, fps), uint8 [N, F, 3, H, W], N texts or None and "
    "float32 [N], returns floating numbers [N], larger for better",
}
#: Where the objectives are that need no trial.
OURS = "astrolabe_objectives."
_METHODS = ("seed", "noise")
_CLIPS = 2


def contract_of(kind: str, maker: Any) -> Iterator[str]:  # Any: a class or function
    """Say in lines what a part of a kind has or declares; where known, what this one has."""
    declared = {"objectives": OBJECTIVE, "rewards": REWARD}.get(kind, {})
    if declared:
        yield f"\nContract of all {kind}; what stands after '=' is this one's:"
    for name, meaning in declared.items():
        value = getattr(maker, name, None)
        if isinstance(value, property):  # tensordict moves key lists of a class at its first use
            value = getattr(maker, f"_{name}", None)
        known = isinstance(value, (str, bool, list, tuple))
        yield f"  {name}{f' = {value!r}' if known else ''}: {meaning}"


def check_objective(loss: Any, name: str) -> None:  # Any: whatever a setting names
    """Refuse an objective that lacks a part of `OBJECTIVE`.

    Args:
        loss: Any object.
        name: Of the setting ``objective.name``, for the message.

    Raises:
        ConfigError: Says what is wrong, what it must be, and where to read on.
    """
    for attribute, meaning in OBJECTIVE.items():
        if attribute == "forward":
            wrong = None if callable(loss) else "cannot be called"
        elif not hasattr(loss, attribute):
            wrong = f"has no {attribute}"
        elif attribute in _METHODS:
            wrong = None if callable(getattr(loss, attribute)) else f"has no method {attribute}"
        else:
            value = getattr(loss, attribute)
            wrong = None if _fits(attribute, value) else f"has {attribute} = {value!r:.200}"
        if wrong:
            raise ConfigError(
                f"the objective {name!r} ({type(loss).__name__}) {wrong}. It needs {attribute}, "
                f"{meaning}. Subclass AnchoredLoss or DenoisingLoss, and see: {_MORE}"
            )


def try_objective(loss: Any, name: str, run: Run, model: VideoModel) -> None:  # Any: see above
    """Call an objective once on made-up clips, as the loop will, and look at what it returns.

    Args:
        loss: One that passed `check_objective`.
        name: For the message.
        run: The settings.
        model: That it trains.

    Raises:
        ConfigError: If it reads an entry that no batch has, fails, or returns something else than
            it declares.
    """
    batch = _made_up(run, model, steps=STEPS in loss.in_keys)
    if absent := [key for key in loss.in_keys if batch.get(key, None) is None]:
        held = sorted(map(str, batch.keys(include_nested=True, leaves_only=True)))
        raise ConfigError(
            f"the objective {name!r} reads {absent} by its in_keys, and a batch of this run has no "
            f"such entry. It has: {', '.join(held)}. {_MORE}"
        )
    wanted = [key for key in (*loss.in_keys, *loss.optional_keys) if key in batch.keys(True)]
    try:
        loss.seed(0)
        noised = loss.noise(batch.select(*wanted, SELECTED))
        if not isinstance(noised, TensorDictBase) or noised.get(SELECTED, None) is None:
            raise ConfigError(
                f"the objective {name!r}: noise() returned {_kind(noised)}, not a TensorDict that "
                f"still holds {SELECTED}. Add the noise to the batch and return that."
            )
        device = next(model.transformer.parameters()).device
        found = loss(noised[:_CLIPS].to(device))
    except ConfigError:
        raise
    except Exception as error:  # whatever somebody's code raises, it is told with its name
        raise ConfigError(
            f"the objective {name!r} fails on {_CLIPS} made-up clips: {type(error).__name__}: "
            f"{error}. Mend it, or its in_keys: it is given {wanted} and nothing else. {_MORE}"
        ) from error
    _check_outcome(found, list(loss.out_keys), name)


def check_model(model: object, name: str) -> VideoModel:
    """Return a model if it is one.

    Raises:
        ConfigError: If it is not.
    """
    if not isinstance(model, VideoModel):
        raise ConfigError(
            f"the model {name!r} makes {_kind(model)}. Let it return an "
            "astrolabe_rollout.VideoModel: transformer, text encoder, codec, geometry, schedule."
        )
    return model


def check_reward(scorer: object, name: str, where: str) -> None:
    """Refuse what is no reward.

    Args:
        scorer: What a setting makes.
        name: Of the part.
        where: The setting, such as ``rewards.hpsv3``.

    Raises:
        ConfigError: If it is none, or a `Reward` whose constructor left out that of its base.
    """
    if not callable(scorer) or isinstance(scorer, type):
        raise ConfigError(
            f"{where}: {name!r} makes {_kind(scorer)}, which is no reward. Name a subclass of "
            "astrolabe_rewards.Reward, or what makes a callable that writes ('score', name)."
        )
    if isinstance(scorer, Reward) and not hasattr(scorer, "out_keys"):
        raise ConfigError(
            f"{where}: the constructor of {name!r} does not call super().__init__(). Call it first."
        )


def check_class(maker: object) -> bool:
    """Refuse a class of rewards that declares something wrong; nothing is made.

    Returns:
        Whether to make one reads no weights, as it has no constructor of its own.

    Raises:
        ConfigError: Says what, and the way out.
    """
    if not (isinstance(maker, type) and issubclass(maker, Reward)):
        return False
    if maker.__init__ is Reward.__init__:
        return True
    # What a constructor gives to the object is not known yet.
    if hasattr(maker, "name") and hasattr(maker, "unit"):
        check_declared(maker.__new__(maker), Reward)
    return False


def try_scorer(scorer: Any, name: str, where: str) -> None:  # Any: whatever a setting makes
    """Call a plain function once on made-up videos, to see that it writes its score.

    A `Reward` is checked when it is made. What fails on such videos may judge real ones.

    Args:
        scorer: One that passed `check_reward`.
        name: Of the score.
        where: The table of settings, such as ``rewards``.

    Raises:
        ConfigError: If it writes no score, or something else than a number for each video.
    """
    if isinstance(scorer, (Reward, WholeVideo)):
        return
    pixels = torch.randint(256, (_CLIPS, 9, 3, 64, 64), dtype=torch.uint8)
    batch = TensorDict({"video": {"pixels": pixels}}, batch_size=[_CLIPS])
    batch["video", "fps"] = torch.full((_CLIPS,), 16.0)
    batch["prompt", "text"] = ["a red circle"] * _CLIPS
    try:
        CompositeReward({name: (scorer, 1.0)}, on_error="raise").score(batch)
    except RewardError as error:
        raise ConfigError(f"{where}.{name}: {error}") from error
    except Exception as error:  # it may need what only a real video has
        _log.debug("%s.%s fails on made-up videos: %s", where, name, error)


_MORE = "'Your own loss' in the README of astrolabe-objectives; `astrolabe parts objectives nft`."


def _fits(attribute: str, value: Any) -> bool:  # Any: whatever it has there
    if attribute == "whole":
        return isinstance(value, bool)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    if attribute == "sigmas":
        return bool(value) and all(isinstance(v, (int, float)) and 0 < v <= 1 for v in value)
    if attribute == "out_keys":
        texts = all(isinstance(key, str) for key in value) and len(set(value)) == len(value)
        return texts and any(key.startswith("loss_") for key in value)
    keys = all(isinstance(key, (str, tuple)) for key in value)
    return keys and (bool(value) or attribute == "optional_keys")


def _made_up(run: Run, model: VideoModel, *, steps: bool) -> TensorDict:
    """Two clips of one prompt as the buffer holds them, one better than the other."""
    geometry, frames = model.geometry, run.rollout.num_frames
    shape = (geometry.channels, *geometry.latent_size)
    generator = torch.Generator().manual_seed(0)

    def column(first: float, second: float) -> Tensor:
        return torch.tensor([[first], [second]])

    batch = TensorDict(
        {
            "prompt": {
                "embeds": model.text([""] * _CLIPS).cpu(),
                "group": torch.zeros(_CLIPS, dtype=torch.int64),
                "seed": torch.arange(_CLIPS),
            },
            "window": {
                "index": torch.zeros(_CLIPS, dtype=torch.int64),
                "context": torch.zeros(_CLIPS, geometry.context, *shape),
            },
            "video": {
                "latents": torch.randn(_CLIPS, frames, *shape, generator=generator),
                "fps": torch.full((_CLIPS,), float(model.fps)),
            },
            "score": {name: column(0.0, 1.0) for name in run.rewards},
            "next": {"reward": column(0.0, 1.0), "valid": column(1, 1).bool()},
            "advantage": column(-1.0, 1.0),
            "kl": {"selected": column(0, 0).bool()},
            "noisy": {"seed": torch.arange(_CLIPS)},
        },
        batch_size=[_CLIPS],
    )
    batch["prompt", "text"] = [""] * _CLIPS
    if steps:
        size = (_CLIPS, len(model.sigmas), frames, *shape)
        batch[STEPS] = torch.randn(size, generator=generator)
    return batch


def _check_outcome(found: Any, declared: list[str], name: str) -> None:  # Any: what it returned
    if not isinstance(found, TensorDictBase):
        raise ConfigError(
            f"the objective {name!r} returned {_kind(found)}. Return a TensorDict with "
            f"{', '.join(declared)}."
        )
    returned = [str(key) for key in found.keys()]  # noqa: SIM118
    if set(returned) != set(declared):
        raise ConfigError(
            f"the objective {name!r} returned {', '.join(returned)}, and its out_keys are "
            f"{', '.join(declared)}. List each name of what it returns, and only those."
        )
    for key in declared:
        value = found[key]
        if not isinstance(value, Tensor) or value.numel() != 1 or value.ndim:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else _kind(value)
            raise ConfigError(
                f"the objective {name!r} returned {key!r} of {shape}. Return a scalar: the mean "
                "over the clips."
            )
    if not any(found[key].requires_grad for key in declared if key.startswith("loss_")):
        raise ConfigError(
            f"no loss of the objective {name!r} depends on the network with a gradient. Look for a "
            "detach or no_grad in its forward."
        )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
