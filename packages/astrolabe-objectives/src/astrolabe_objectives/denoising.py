"""The part that all losses on re-noised samples share: add noise, predict three times.

Left out on purpose: sampling trajectories, log-probabilities and solvers. A forward-process loss
needs the finished sample only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives import LossModule

from astrolabe_objectives import settings
from astrolabe_objectives.keys import DENOISED, LATENTS, NOISE_SEED, NOISY, SIGMA
from astrolabe_objectives.live import nested
from astrolabe_objectives.no_trace import no_trace
from astrolabe_objectives.noise import Draw, Levels, NoiseSource, as_level, told
from astrolabe_objectives.samples import as_samples, explain, marked, read_latents, read_seeds
from astrolabe_objectives.snapshots import OLD, REFERENCE, Snapshots

__all__ = ["DenoisingLoss", "Draw", "Levels", "Predictions"]


@dataclass(frozen=True)
class Predictions:
    """Clean-latent predictions of one noised batch; only ``policy`` carries a gradient."""

    policy: Tensor
    """``[M, *event]``, float32 like all below."""
    old: Tensor
    """Prediction with the weights that sampled the data."""
    reference: Tensor | None
    """Prediction of the KL anchor; None where it was not asked for."""
    noisy: Tensor
    """``x_t``, what was denoised."""
    sigma: Tensor
    """``[M, 1, ...]`` of as many dimensions, noise level of each sample."""


class DenoisingLoss(LossModule):
    """Base of losses that compare predictions on re-noised samples.

    Reads ``("video","latents")``, where present ``("noisy","seed")``, and what the network reads;
    hands ``("noisy","latents")`` and ``("noisy","sigma")`` to the network, which writes
    ``("denoised","latents")``.

    A sample is ``[*event]``, any shape: a point ``[2]``, an image ``[C, h, w]``, a video
    ``[f, C, h, w]``. What has four dimensions is taken for a video, and the network is told the
    level of each frame, ``[M, f]``; of anything else one level, ``[M]``. A TensorDict without a
    batch size, as keyword calls make, has that of its data.

    A noise level is drawn for each sample and shared by its frames, then
    ``x_t = (1 - σ) x_0 + σ ε`` (rectified flow). What is drawn for a sample with a seed follows
    from that seed alone: it is the same in any batch, in any place of it and on any process.
    Without seeds, levels and noise of a batch come from one stream.

    Processes that share a minibatch give `noise` their own part of it, with seeds, unless the loss
    is `whole`: then they gather the minibatch first, and split what `noise` returns.

    The network stays an ordinary submodule: a copy of a billion frozen weights would buy nothing. A
    subclass calls `noise` and then `predict`, which runs ``old`` and ``reference`` first, without a
    gradient, and the policy last, so that no weight changes between the policy's pass and
    ``backward``. All of them draw the same random numbers, so that dropout masks the same in each.

    ``state_dict()`` holds the network, the snapshots with the age of the reference, and the state
    of the stream. TorchRL's target updaters find ``"old"`` as ``target_network_params`` beside
    ``network_params``, unless the parameters are sharded.

    Args:
        network: Any TensorDict module that predicts clean latents from noisy ones.
        snapshots: Copies of the network's trained parameters, one of them named ``"old"``.
        sigmas: Noise levels in (0, 1]. Give those at which the model samples.
        levels: ``"one"`` draws one level per sample; ``"all"`` takes every sample at as many levels
            as are given, at as many times the work.
        draw: ``"list"`` takes the levels that are given; ``"uniform"`` draws from all between the
            lowest and the highest of them, for ``levels="all"`` one from each of as many equal
            parts of that range.
        seed: Start of the stream of levels and noise, see `seed`.

    Attributes:
        whole: Whether `noise` must see a whole minibatch, as it compares the samples with each
            other. A subclass that does so sets it.

    Raises:
        ValueError: If a level is outside (0, 1], there is none, or only one to draw between, if
            ``levels`` or ``draw`` is unknown, or ``snapshots`` has no copy ``"old"`` or is
            of another network.
        TypeError: If ``network``, ``snapshots`` or ``seed`` is something else.
    """

    @dataclass
    class _AcceptedKeys(LossModule._AcceptedKeys):
        """Keys that `set_keys` can rename.

        Attributes:
            latents: Clean latents of the sample.
            noisy: Noised latents, for the network.
            sigma: Noise level of every frame, or of the sample, for the network.
            denoised: The network's prediction.
            seed: Seed of what is drawn for a sample; may be missing.
        """

        latents: NestedKey = LATENTS
        noisy: NestedKey = NOISY
        sigma: NestedKey = SIGMA
        denoised: NestedKey = DENOISED
        seed: NestedKey = NOISE_SEED

    default_keys: ClassVar[type] = _AcceptedKeys
    whole: ClassVar[bool] = False

    def __init__(
        self,
        network: TensorDictModuleBase,
        snapshots: Snapshots,
        sigmas: Sequence[float],
        *,
        levels: Levels = "one",
        draw: Draw = "list",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(snapshots, Snapshots):
            raise TypeError(
                f"{self._name} got snapshots of type {type(snapshots).__name__}. "
                'Make them with Snapshots(network, "old", "reference").'
            )
        if OLD not in snapshots.names:
            raise ValueError(
                f"the snapshots are {snapshots.names}, without the behaviour policy. "
                'Make them with Snapshots(network, "old", "reference").'
            )
        if not hasattr(network, "in_keys"):
            raise TypeError(
                f"{self._name} got a network of type {type(network).__name__}, which does not say "
                "what it reads. Wrap it in a TensorDictModule."
            )
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if trained and not {*map(id, trained)} & {*map(id, snapshots.live().values())}:
            raise ValueError(
                f"{self._name} got snapshots of {sorted(snapshots.live())}, none of which are "
                "parameters of its network. Make them from the network that is trained."
            )
        self._source = NoiseSource(self._name, sigmas, levels, draw, seed)
        self.network = network
        self.snapshots = snapshots
        self.sigmas = self._source.sigmas
        self.levels: Levels = levels
        self.draw: Draw = draw
        if not snapshots.sharded:
            # Target updaters look for a submodule of this name, then read the property.
            self._modules["target_network_params"] = nn.Module()
        self._set_in_keys()

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def functional(self) -> bool:
        """False: the network is used as it is."""
        return False

    @property
    def in_keys(self) -> list[NestedKey]:
        """What has to be in the batch; follows `set_keys`."""
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    @property
    def optional_keys(self) -> list[NestedKey]:
        """What is used besides `in_keys` if the batch holds it; a buffer should carry it too."""
        return self._optional_keys()

    def _optional_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.seed]

    @property
    def keyword_keys(self) -> list[NestedKey]:
        """What can be given by keyword: `in_keys`, then `optional_keys`."""
        return [*self.in_keys, *self.optional_keys]

    @property
    def network_params(self) -> TensorDict:
        """The trained parameters, nested by name; the source of TorchRL's target updaters."""
        return nested(self.snapshots.live())

    @property
    def target_network_params(self) -> TensorDict:
        """Copy ``"old"``, nested by name: its own memory, which target updaters write."""
        return nested(self.snapshots.values(OLD))

    def set_keys(self, **keys: NestedKey | None) -> None:
        """Rename entries, see `_AcceptedKeys`; None gives one its first name back.

        Raises:
            TypeError: If a key is neither text nor a tuple of texts.
        """
        settings.keys(self._name, **{name: key for name, key in keys.items() if key is not None})
        super().set_keys(**keys)

    def seed(self, seed: int) -> None:
        """Restart the stream of levels and noise; the same on every device."""
        self._source.seed(seed)

    def get_extra_state(self) -> Tensor:
        """Return the state of the stream of levels and noise, for ``state_dict()``."""
        return self._source.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` gave."""
        if not isinstance(state, Tensor):
            raise TypeError(
                f"{self._name} was given the state of its stream as a {type(state).__name__}. "
                "Give state_dict() of the same loss, whole."
            )
        self._source.generator.set_state(state.cpu())

    def noise(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Flatten a batch to ``[M]`` and add noise; ``levels="all"`` repeats it for each level.

        A batch that holds noise already keeps it: whoever splits a batch draws the noise of the
        whole first, so that the size of the parts changes no number. Samples that TorchRL marks as
        padding (`loss_mask_key`) are left out.

        Returns:
            A new TensorDict with the entries of ``tensordict``, ``x_t`` and its level.

        Raises:
            KeyError: If the batch lacks an entry.
            TypeError: If the latents are not floating numbers, or the seeds not whole ones.
            ValueError: If an entry is not of the batch, or a seed not in [0, 2³²).
        """
        batch = self._samples(tensordict)  # [M]
        return batch if self._is_noised(batch) else self._noise(batch)

    def _samples(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The samples ``[M]`` of a batch, checked."""
        if torch.compiler.is_compiling():  # what follows depends on values
            return tensordict.reshape(-1)
        size = self._batch_size(tensordict)
        wanted = [*self.keyword_keys, *self._drawn_keys()]
        batch = as_samples(tensordict, size, wanted, self._name)
        batch = marked(batch, self.loss_mask_key, self._name)
        read_latents(batch, self.tensor_keys.latents, self._name, finite=True)
        return batch

    def _batch_size(self, tensordict: TensorDictBase) -> torch.Size:
        """Batch size of the data; a subclass that reads numbers of samples knows more."""
        return torch.Size(tensordict.batch_size)

    def _is_noised(self, batch: TensorDictBase) -> bool:
        return set(self._drawn_keys()) <= set(batch.keys(True, True))

    def _drawn_keys(self) -> list[NestedKey]:
        """What `noise` writes, by which a batch that went through it is known."""
        return [self.tensor_keys.noisy, self.tensor_keys.sigma]

    def _noise(self, batch: TensorDictBase) -> TensorDictBase:
        """Noise ``[M, *S]``; what lies along S shares the level and the noise of its M.

        A subclass adds here what else must be known of a batch before it is split.
        """
        latents = batch[self.tensor_keys.latents]
        event = latents.shape[batch.ndim :]
        size = (*[1] * (batch.ndim - 1), *event)
        seeds = read_seeds(batch, self.tensor_keys.seed, self._name)
        level, noise = self._source.draw(len(batch), size, seeds)
        if self.levels == "all":
            batch = batch[torch.arange(len(batch)).repeat(len(self.sigmas))]
        batch = batch.clone(recurse=False)
        latents = batch[self.tensor_keys.latents]
        level = level.to(latents.device)
        sigma = as_level(level, latents)
        # Summed in float32 at least, at the level that the network is told, and rounded once.
        noisy = (1 - sigma) * latents + sigma * noise.to(latents.device)
        batch.set(self.tensor_keys.noisy, noisy.to(latents.dtype))
        every = level.view(-1, *[1] * (batch.ndim - 1)).expand(batch.batch_size)
        batch.set(self.tensor_keys.sigma, told(every, event))  # [M, *S, f], or [M, *S]
        return batch

    def predict(self, noised: TensorDictBase, *, reference: bool) -> Predictions:
        """Predict clean latents with ``old``, ``reference`` if asked, and last the policy.

        Args:
            noised: What `noise` returned, ``[M]``.
            reference: Whether the reference is needed.

        Raises:
            ValueError: If the network's prediction has another shape than its input, or the network
                fails on entries of another device or precision than its parameters.
        """
        noisy, sigma = noised[self.tensor_keys.noisy], noised[self.tensor_keys.sigma]
        with self.snapshots.use(OLD), no_trace(self.network, noisy):
            old = self._denoise(noised)
        anchor = None
        if reference:
            with self.snapshots.use(REFERENCE), no_trace(self.network, noisy):
                anchor = self._denoise(noised)
        return Predictions(
            policy=self._denoise(noised),
            old=old,
            reference=anchor,
            noisy=noisy.float(),
            sigma=as_level(sigma.reshape(len(sigma), -1)[:, 0], noisy).float(),
        )

    def _denoise(self, noised: TensorDictBase) -> Tensor:
        key, shape = self.tensor_keys.noisy, tuple(noised[self.tensor_keys.noisy].shape)
        try:
            # A shallow copy for each pass: none may see what another one wrote.
            output = self.network(noised.clone(recurse=False))
        except RuntimeError as error:
            if reason := explain(error, self.network, noised):
                raise ValueError(f"{self._name}: {reason}") from error
            error.add_note(f"{self._name} gave its network {key!r} of {shape}.")
            raise
        denoised: Tensor = output[self.tensor_keys.denoised]
        if denoised.shape != shape:
            raise ValueError(
                f"{self._name}: the network wrote {self.tensor_keys.denoised!r} of shape "
                f"{tuple(denoised.shape)} for {key!r} of shape {shape}. It has to predict the "
                "clean latents, which have the shape of the noisy ones."
            )
        return denoised.float()

    def _set_in_keys(self) -> None:
        ours = (self.tensor_keys.noisy, self.tensor_keys.sigma)
        keys = [*self._own_keys(), *(key for key in self.network.in_keys if key not in ours)]
        self._in_keys = list(dict.fromkeys(keys))

    def _own_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.latents]

    def _forward_value_estimator_keys(self, **_: Any) -> None:  # TorchRL's hook in `set_keys`
        self._set_in_keys()
