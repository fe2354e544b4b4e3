"""TorchRL's collector with the settings that video needs, and why."""

from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector

from astrolabe_rollout.env import PromptEnv


def make_collector(env: PromptEnv, policy: TensorDictModuleBase, steps: int) -> Collector:
    """Collect ``steps`` batches of whole videos: ``[N, T]`` = videos x windows.

    Args:
        env: Draws N videos of T windows.
        policy: Reads the environment's keys, writes latents, pixels and context of one window. It
            is called T times a batch and at no other time, with its weights where they are.
        steps: Batches, at least 1.

    Returns:
        An iterable of TensorDicts ``[N, T]`` with nothing but ``done`` and ``terminated`` under
        ``"next"``. Making it resets ``env``.

    Raises:
        ValueError: If ``steps`` is below 1.
    """
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
