"""Weights for TorchRL's collectors in other processes: the LoRA travels, the base stays.

Each worker makes its own policy, base and all, from a ``policy_factory``. What is trained is a
small part of it, and all that these schemes send: once when a worker starts, and at each
``collector.update_policy_weights_(policy)``.
"""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.weight_update import (
    RayWeightSyncScheme,
    SharedMemWeightSyncScheme,
    WeightStrategy,
    WeightSyncScheme,
)

from astrolabe_rollout.conversion import difference
from astrolabe_rollout.lora import trainable_parameters


def adapter_weights(policy: nn.Module) -> TensorDict:
    """Return the trained parameters of a policy where they are, without a gradient.

    Args:
        policy: A policy on a network with a LoRA, such as `StreamingPolicy`.

    Returns:
        A part of ``TensorDict.from_module(policy)``, which shares its memory.

    Raises:
        ValueError: If nothing of the policy is trained.
    """
    trained = trainable_parameters(policy)
    if not trained:
        raise ValueError(
            f"no parameter of the {type(policy).__name__} is trained, so there is nothing to send "
            "to workers. Call add_lora on the transformer's .network first."
        )
    return TensorDict({name: value.detach() for name, value in trained.items()}).unflatten_keys(".")


class AdapterWeights(WeightStrategy):
    """Takes the trained parameters out of a policy, and copies them into another one in place."""

    def extract_weights(self, source: Any) -> Any:
        """Return what is trained of a module; anything else as TorchRL does."""
        return adapter_weights(source) if isinstance(source, nn.Module) else source

    @torch.no_grad()
    def apply_weights(self, destination: nn.Module, weights: Any, inplace: bool = True) -> None:
        """Copy weights into the parameters of the same names.

        Args:
            destination: The worker's policy; its other parameters are left alone.
            weights: What `extract_weights` returned, here or in another process.
            inplace: Not heeded: parameters stay the same objects, and none becomes the sender's
                memory, whose changes would show in the middle of a video.

        Raises:
            ValueError: If a name or shape is not the policy's.
        """
        del inplace
        values = dict(weights.flatten_keys(".").items())
        parameters = dict(destination.named_parameters())
        expected = {name: tuple(parameters[name].shape) for name in values if name in parameters}
        found = {name: tuple(value.shape) for name, value in values.items()}
        if mismatch := difference(expected, found):
            raise ValueError(
                f"the adapter that was sent does not fit the worker's policy: {mismatch}. Let "
                "policy_factory call add_lora with the settings of the policy that is trained."
            )
        for name, value in values.items():
            parameters[name].copy_(value)
        torch.clear_autocast_cache()  # it would hold the weights before, cast


class _AdapterScheme(WeightSyncScheme):
    """What the two schemes share: they send the adapter of one policy, whatever they are given."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.strategy = AdapterWeights()
        self._policy = policy
        self._names = list(adapter_weights(policy).keys(include_nested=True, leaves_only=True))

    def prepare_weights(
        self, weights: Any, model_id: str, strategy: WeightStrategy, context: Any = None
    ) -> Any:
        """Return the adapter of a policy or of weights; given none, that of the trained policy."""
        if weights is None:
            weights = self._policy
        elif isinstance(weights, TensorDictBase):
            weights = weights.select(*self._names)
        return super().prepare_weights(weights, model_id, strategy, context)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_policy": None}  # its base must not go to a worker


class SharedAdapterScheme(_AdapterScheme, SharedMemWeightSyncScheme):
    """Sends the adapter to workers on this machine, through one piece of shared memory.

    For `torchrl.collectors.MultiSyncCollector`, whose workers rest while weights are sent. Those of
    a ``MultiAsyncCollector`` go on: a video that is under way ends with other weights than it began
    with.

    Args:
        policy: The policy that is trained. A worker's policy has the same adapter, and a base of
            its own.

    Raises:
        ValueError: If nothing of the policy is trained.

    Example:
        ::

            def make_policy():
                model = load_tiny()
                add_lora(model.transformer.network, rank=16, alpha=32)
                return StreamingPolicy(model)

            policy = make_policy()
            collector = MultiSyncCollector(
                [make_env_0, make_env_1],
                policy_factory=make_policy,
                weight_sync_schemes={"policy": SharedAdapterScheme(policy)},
                ...,
            )
            for batch in collector:
                ...  # train
                collector.update_policy_weights_(policy)
    """

    def _init_on_sender_impl(self, *, model_id: str, context: Any, ctx: Any = None) -> None:
        # One storage, as each that is shared takes a file descriptor, and a LoRA has hundreds.
        weights = adapter_weights(self._policy).cpu().consolidate()
        workers = dict.fromkeys(range(context.num_workers), weights)
        super()._init_on_sender_impl(params_map=workers, ctx=ctx)
        self.model_id = model_id


class RayAdapterScheme(_AdapterScheme, RayWeightSyncScheme):
    """Sends the adapter to the actors of a `torchrl.collectors.distributed.RayCollector`.

    Ray starts collectors without weights: call ``collector.update_policy_weights_(policy)`` before
    the first batch too.

    Args:
        policy: The policy that is trained, as for `SharedAdapterScheme`. The collector is given a
            ``policy_factory`` and no policy, which would go to every actor with its base.

    Raises:
        ValueError: If nothing of the policy is trained.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__(policy)
        self.model = policy  # else the sender makes one from the collector's policy_factory
        self.weights = adapter_weights(policy).cpu()  # an actor's buffer to receive into
