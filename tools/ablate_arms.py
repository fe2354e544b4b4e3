"""The arms of the laboratory: what `tools/ablate.py` trains, each a recipe with a few changes."""

from dataclasses import dataclass

#: Every arm at this size: 32 videos and four updates of 8 a step, on one thread.
COMMON = (
    "rollout.num_prompts=4",
    "rollout.group_size=8",
    "train.updates=4",
    "evaluation.num_videos=64",
    "evaluation.at_end=false",
    "logging.samples_every=0",
    "logging.checkpoint_every=1000",
    "logging.keep=1",
)
STEPS = 5


@dataclass(frozen=True)
class Arm:
    """One choice to compare; its family is what stands before the slash of its name."""

    name: str
    what: str
    changes: tuple[str, ...] = ()
    """``--set`` overrides, over `COMMON`."""
    recipes: tuple[str, ...] = ("tiny",)
    baseline: str = "base"
    """Name of the arm that this one is compared with."""
    length: int = 1
    """Times as many steps as the others."""

    @property
    def family(self) -> str:
        """The question that this arm belongs to."""
        return self.name.partition("/")[0]

    def overrides(self, seed: int, steps: int = STEPS) -> list[str]:
        """Everything after ``--set`` for one run."""
        # The laboratory compares with the paper's beta, which recipe tiny has left for its result.
        beta = [] if len(self.recipes) > 1 else ["objective.options.beta=1.0"]
        size = [f"train.steps={steps * self.length}", f"train.seed={seed}"]
        return [*COMMON, *beta, *self.changes, *size]


def _kl(mode: str, coeff: str, sign: str = "paper") -> tuple[str, ...]:
    return (
        f"disagreement.mode={mode}",
        f"disagreement.sign={sign}",
        f"objective.options.kl_coeff={coeff}",
    )


def _rewards(*names: str) -> tuple[str, ...]:
    """Train on some of the three and watch the others; a lone one has nobody to disagree with."""
    everything = ("sharpness_vq", "flow_mq", "tiny_ta")
    weights = tuple(f"rewards.{name}.weight=0" for name in everything if name not in names)
    return weights if len(names) > 1 else (*weights, "disagreement.mode=none")


def _objective(name: str, options: str) -> tuple[str, ...]:
    return (f"objective.name={name}", f"objective.options={options}")


def _pairs(*changes: str) -> tuple[str, ...]:
    """DPO picks its pairs in a minibatch: one update, whole groups; micro-batches count pairs."""
    return ("train.updates=1", "train.micro_batch=6", *changes)


_STREAM = ("rollout.length=4", "rollout.start=uniform")
_FULL = "train.context=attached"
_SEQUENCE = (
    *("rollout.num_frames=36", "rollout.num_prompts=2", "train.micro_batch=4"),
    "evaluation.num_frames=9",
)

#: In the order of the table.
ARMS = (
    Arm("base", "recipe tiny at the laboratory's size"),
    Arm("kl/none", "no KL term", _kl("none", "1e-4")),
    Arm("kl/uniform-1e-4", "KL on every sample", _kl("uniform", "1e-4")),
    Arm("kl/uniform-5e-4", "KL on every sample, five times", _kl("uniform", "5e-4")),
    Arm("kl/uniform-0.04", "KL on every sample, 400 times", _kl("uniform", "0.04")),
    Arm("kl/selective-0.04", "selective KL, 400 times", _kl("selective", "0.04")),
    Arm("kl/public-sign", "the public code's sign", _kl("selective", "1e-4", "public")),
    Arm("kl/uniform-1", "KL on every sample, 10,000 times", _kl("uniform", "1.0")),
    Arm("kl/selective-1", "selective KL, 10,000 times", _kl("selective", "1.0")),
    Arm("kl/public-sign-1", "its sign, 10,000 times", _kl("selective", "1.0", "public")),
    Arm("rewards/vq", "sharpness alone", _rewards("sharpness_vq")),
    Arm("rewards/mq", "motion alone", _rewards("flow_mq")),
    Arm("rewards/ta", "text alone", _rewards("tiny_ta")),
    Arm("rewards/vq-mq", "sharpness and motion", _rewards("sharpness_vq", "flow_mq")),
    Arm("rewards/vq-ta", "sharpness and text", _rewards("sharpness_vq", "tiny_ta")),
    Arm("rewards/mq-ta", "motion and text", _rewards("flow_mq", "tiny_ta")),
    Arm("beta/0.1", "public presets", ("objective.options.beta=0.1",)),
    Arm("beta/0.5", "between", ("objective.options.beta=0.5",)),
    Arm("adaptive/on", "DiffusionNFT's weighting", ("objective.options.adaptive=true",)),
    Arm("context/noisy", "earlier chunks noisy", ("train.context=noisy",)),
    Arm("mask/frame", "frame by frame", ("train.mask=frame",)),
    Arm("noise/unwarped", "levels never sampled", ("train.noise_levels=unwarped",)),
    Arm("noise/uniform", "levels between", ("train.noise_levels=uniform",)),
    Arm("levels/all", "every level of each clip", ("objective.options.levels=all",)),
    Arm("objective/rwr", "temperature 1", _objective("rwr", "{temperature = 1.0}")),
    Arm("objective/rwr-sharp", "temperature 0.3", _objective("rwr", "{temperature = 0.3}")),
    Arm("objective/dpo", "beta 2000", _pairs(*_objective("dpo", "{beta = 2000.0}"))),
    Arm(
        "objective/dpo-fast",
        "beta 2000, lr x 4 as it takes a quarter of the updates",
        _pairs(*_objective("dpo", "{beta = 2000.0}"), "train.lr=1.6e-3"),
    ),
    Arm(
        "objective/cm_grpo",
        "ratio_clip 1e-4",
        _objective("cm_grpo", "{ratio_clip = 1e-4, advantage_clip = 1.0}"),
    ),
    Arm(
        "objective/cm_grpo-wide",
        "ratio_clip 1e-2",
        _objective("cm_grpo", "{ratio_clip = 1e-2, advantage_clip = 1.0}"),
    ),
    Arm("advantage/global", "standard deviation of the batch", ("advantage.std=global",)),
    Arm("advantage/none", "not divided", ("advantage.std=none",)),
    Arm("advantage/leave-one-out", "mean of the others", ("advantage.mode=leave_one_out",)),
    Arm("advantage/rank", "ranks in the group", ("advantage.mode=rank",)),
    Arm("advantage/per-reward", "each reward by itself", ("advantage.mode=per_reward",)),
    Arm("group/4x8", "8 prompts x 4", ("rollout.group_size=4", "rollout.num_prompts=8")),
    Arm("group/16x2", "2 prompts x 16", ("rollout.group_size=16", "rollout.num_prompts=2")),
    Arm("group/32x1", "1 prompt x 32", ("rollout.group_size=32", "rollout.num_prompts=1")),
    Arm("prediction/x0", "errors of clean latents", ("objective.options.prediction=x0",)),
    Arm("stream/uniform", "a window anywhere in a video of four", _STREAM),
    Arm("stream/last", "the last window of four", (*_STREAM[:1], "rollout.start=last")),
    Arm("stream/uniform-full", "the same, full back-propagation in the window", (*_STREAM, _FULL)),
    Arm("stream/sequence", "all four windows at once, half the videos", _SEQUENCE),
    Arm("stream/sequence-full", "the same, full back-propagation", (*_SEQUENCE, _FULL)),
    Arm("public/all", "the public trainer's choices", recipes=("tiny", "compat_public")),
    Arm("longer/base", "three times as long", length=3),
    Arm(
        "longer/none",
        "no KL term, three times as long",
        _kl("none", "1e-4"),
        baseline="longer/base",
        length=3,
    ),
    Arm(
        "longer/vq-none",
        "sharpness alone, no KL, three times as long",
        _rewards("sharpness_vq"),
        baseline="longer/base",
        length=3,
    ),
    Arm(
        "longer/vq-uniform",
        "sharpness alone, uniform KL 0.04, three times as long",
        (*_rewards("sharpness_vq"), *_kl("uniform", "0.04")),
        baseline="longer/base",
        length=3,
    ),
)


def select(names: list[str]) -> list[Arm]:
    """Arms by name or family, all of them without names, in the order of the table.

    Raises:
        ValueError: If a name is neither.
    """
    known = {arm.name for arm in ARMS} | {arm.family for arm in ARMS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no arm or family {unknown[0]!r}. See --list.")
    return [arm for arm in ARMS if not names or {arm.name, arm.family} & set(names)]
