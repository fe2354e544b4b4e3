"""TorchRL's collector with the settings that video needs, and why."""

from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from astrolabe_rollout.checks import without_transforms
from astrolabe_rollout.env import PromptEnv
from astrolabe_rollout.seeds import whole_number


def make_collector(env: EnvBase, policy: TensorDictModuleBase, steps: int) -> Collector:
    """Collect ``steps`` batches of whole videos: ``[N, T]`` = videos x windows.

    Args:
        env: Draws N videos of T windows: a `PromptEnv`, or TorchRL's transforms around one.
        policy: Reads the environment's keys, writes latents, pixels and context of one window. It
            is called T times a batch and at no other time, with its weights where they are.
        steps: Batches, at least 1.

    Returns:
        An iterable of TensorDicts ``[N, T]`` with nothing but ``done`` and ``terminated`` under
        ``"next"``. Making it resets ``env``; its ``set_seed`` begins anew.

    Raises:
        TypeError: If the environment is another one, or ``steps`` no whole number.
        ValueError: If ``steps`` is below 1, or windows have different lengths.
    """
    if not isinstance(env, EnvBase) or not isinstance(without_transforms(env), PromptEnv):
        raise TypeError(
            f"env is a {type(env).__name__}. Give a PromptEnv; several environments go into "
            "several workers of torchrl.collectors.MultiSyncCollector."
        )
    if not callable(policy):
        raise TypeError(f"policy is {policy!r}. Give a module that writes a window of video.")
    whole_number("steps", steps)
    if steps < 1:
        raise ValueError(f"steps is {steps}: nothing would be collected. Set it to 1 or more.")
    frames = env.batch_size.numel() * env.windows
    return Collector(
        env,
        policy,
        frames_per_batch=frames,
        total_frames=frames * steps,
        # With buffers the collector calls the policy once when it is made, for the shapes: minutes
        # of work on a real model. It would also hold a second copy of the pixels.
        use_buffers=False,
        # A TensorDict module as it is: no wrapping, no trial call. No device is given either,
        # because the collector would copy the policy, weights and all, to bring it there.
        trust_policy=True,
        # The batch is fresh at every iteration, so it need not be copied once more; without this,
        # pixels are twice in memory. TorchRL then wants a CUDA stream per device, needless here.
        return_same_td=True,
        no_cuda_sync=True,
        # The prompts and embeddings of the next window are those of the next row of the batch.
        compact_obs=True,
        # The policy asks for no state of the environment beyond its keys.
        auto_register_policy_transforms=False,
    )
