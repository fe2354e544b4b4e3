"""The part that all losses on re-noised clips share: noise a clip, predict it three times.

Left out on purpose: sampling trajectories, log-probabilities and solvers. A forward-process loss
needs the finished clip only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from astrolabe_objectives.batch import read
from astrolabe_objectives.keys import DENOISED, LATENTS, NOISE_SEED, NOISY, SIGMA
from astrolabe_objectives.no_trace import no_trace
from astrolabe_objectives.snapshots import OLD, REFERENCE, Snapshots

Levels = Literal["one", "all"]
Draw = Literal["list", "uniform"]


@dataclass(frozen=True)
class Predictions:
    """Clean-latent predictions of one noised batch; only ``policy`` carries a gradient."""

    policy: Tensor
    """``[M, f, C, h, w]``, float32 like all below."""
    old: Tensor
    """Prediction with the weights that sampled the clip."""
    reference: Tensor | None
    """Prediction of the KL anchor; None where it was not asked for."""
    noisy: Tensor
    """``x_t``, what was denoised."""
    sigma: Tensor
    """``[M, 1, 1, 1, 1]``, noise level of each clip."""


class DenoisingLoss(LossModule):
    """Base of losses that compare predictions on re-noised clips.

    Reads ``("video","latents")``, where present ``("noisy","seed")``, and what the network reads;
    hands ``("noisy","latents")`` and ``("noisy","sigma")`` to the network, which writes
    ``("denoised","latents")``.

    A noise level is drawn for each clip and shared by its frames, then
    ``x_t = (1 - σ) x_0 + σ ε`` (rectified flow). What is drawn for a clip with a seed follows from
    that seed alone: it is the same in any batch, in any place of it and on any process. Without
    seeds, levels and noise of a batch come from one stream.

    Processes that share a minibatch give `noise` their own part of it, with seeds, unless the loss
    is `whole`: then they gather the minibatch first, and split what `noise` returns.

    The network stays an ordinary submodule: a copy of a billion frozen weights would buy nothing. A
    subclass calls `noise` and then `predict`, which runs ``old`` and ``reference`` first, without a
    gradient, and the policy last, so that no weight changes between the policy's pass and
    ``backward``. All of them draw the same random numbers, so that dropout masks the same in each.

    Args:
        network: Any TensorDict module that predicts clean latents from noisy ones.
        snapshots: Copies of the network's trained parameters, one of them named ``"old"``.
        sigmas: Noise levels in (0, 1]. Give those at which the model samples.
        levels: ``"one"`` draws one level per clip; ``"all"`` takes every clip at as many levels as
            are given, at as many times the work.
        draw: ``"list"`` takes the levels that are given; ``"uniform"`` draws from all between the
            lowest and the highest of them, for ``levels="all"`` one from each of as many equal
            parts of that range.
        seed: Start of the stream of levels and noise, see `seed`.

    Attributes:
        whole: Whether `noise` must see a whole minibatch, as it compares the samples with each
            other. A subclass that does so sets it.

    Raises:
        ValueError: If a level is outside (0, 1], there is none, or only one to draw between, if
            ``levels`` or ``draw`` is unknown, or ``snapshots`` has no copy ``"old"``.
    """

    @dataclass
    class _AcceptedKeys(LossModule._AcceptedKeys):
        """Keys that `set_keys` can rename.

        Attributes:
            latents: Clean latents of the clip.
            noisy: Noised latents, for the network.
            sigma: Noise level of every frame, for the network.
            denoised: The network's prediction.
            seed: Seed of what is drawn for a clip; may be missing.
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
        if not sigmas or not all(0.0 < sigma <= 1.0 for sigma in sigmas):
            raise ValueError(
                f"sigmas are {tuple(sigmas)!r}. Give one or more noise levels in (0, 1], "
                "as the sampler uses them; a timestep is divided by 1000."
            )
        if levels not in get_args(Levels):
            raise ValueError(f"levels is {levels!r}. Choose from {get_args(Levels)}.")
        if draw not in get_args(Draw):
            raise ValueError(f"draw is {draw!r}. Choose from {get_args(Draw)}.")
        if draw == "uniform" and min(sigmas) == max(sigmas):
            raise ValueError(
                f"draw is 'uniform', but sigmas are {tuple(sigmas)!r}, with nothing between the "
                "lowest and the highest. Give two different levels, or draw='list'."
            )
        if OLD not in snapshots.names:
            raise ValueError(
                f"the snapshots are {snapshots.names}, without the behaviour policy. "
                'Make them with Snapshots(network, "old", "reference").'
            )
        self.network = network
        self.snapshots = snapshots
        self.sigmas = tuple(sigmas)
        self.levels: Levels = levels
        self.draw: Draw = draw
        self._generator = torch.Generator()
        self.seed(seed)
        self._set_in_keys()

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
        return [self.tensor_keys.seed]

    def seed(self, seed: int) -> None:
        """Restart the stream of levels and noise; the same on every device."""
        self._generator.manual_seed(seed)

    def noise(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Flatten a batch to ``[M]`` and add noise; ``levels="all"`` repeats it for each level.

        A batch that holds noise already keeps it: whoever splits a batch draws the noise of the
        whole first, so that the size of the parts changes no number.

        Returns:
            A new TensorDict with the entries of ``tensordict``, ``x_t`` and its level.

        Raises:
            ValueError: If the latents are not ``[*B, f, C, h, w]``, or the seeds not ``[*B]`` and
                in [0, 2³²).
        """
        batch = tensordict.reshape(-1)  # [M]
        return batch if self._is_noised(batch) else self._noise(batch)

    def _is_noised(self, batch: TensorDictBase) -> bool:
        return set(self._drawn_keys()) <= set(batch.keys(True, True))

    def _drawn_keys(self) -> list[NestedKey]:
        """What `noise` writes, by which a batch that went through it is known."""
        return [self.tensor_keys.noisy, self.tensor_keys.sigma]

    def _noise(self, batch: TensorDictBase) -> TensorDictBase:
        """Noise ``[M, *S]``; what lies along S shares the level and the noise of its M.

        A subclass adds here what else must be known of a batch before it is split.
        """
        shape = tuple(read(batch, self.tensor_keys.latents, type(self).__name__).shape)
        if len(shape) != batch.ndim + 4:
            raise ValueError(
                f"{self.tensor_keys.latents!r} is {shape} with the batch flattened, not "
                "[M, f, C, h, w]. Give the TensorDict all of its batch dimensions."
            )
        clips, frames = len(batch), shape[batch.ndim]
        size = (*[1] * (batch.ndim - 1), *shape[batch.ndim :])
        level, noise = self._draw(clips, size, self._seeds(batch))
        if self.levels == "all":
            batch = batch[torch.arange(clips).repeat(len(self.sigmas))]
        batch = batch.clone(recurse=False)
        latents = batch[self.tensor_keys.latents]
        level = level.to(latents.device)
        sigma = level.view(-1, *[1] * (latents.ndim - 1))
        # Summed in float32 at least, at the level that the network is told, and rounded once.
        noisy = (1 - sigma) * latents + sigma * noise.to(latents.device)
        batch.set(self.tensor_keys.noisy, noisy.to(latents.dtype))
        every = level.view(-1, *[1] * batch.ndim).expand(*batch.batch_size, frames)
        batch.set(self.tensor_keys.sigma, every.contiguous())  # [M, *S, f]
        return batch

    def _seeds(self, batch: TensorDictBase) -> Tensor | None:
        """Seed of each M of ``[M, *S]``, that of the first along S; None without the entry."""
        key = self.tensor_keys.seed
        seeds: Tensor | None = batch.get(key, None)
        if seeds is None:
            return None
        # Torch's CPU generator uses only the low 32 bits, so larger seeds would not be distinct.
        if seeds.shape != batch.shape or not ((seeds >= 0) & (seeds < 2**32)).all():
            raise ValueError(
                f"{key!r} is {tuple(seeds.shape)} for a batch {tuple(batch.shape)}, from "
                f"{seeds.min()} to {seeds.max()}. Give each clip one whole number in [0, 2³²)."
            )
        return seeds.reshape(len(batch), -1)[:, 0]

    def _draw(
        self, clips: int, size: tuple[int, ...], seeds: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Levels ``[K M]`` and noise ``[K M, *size]``: all M clips, K times with ``levels="all"``.

        Drawn on the CPU: a seed gives the same numbers on every device.
        """
        copies = len(self.sigmas) if self.levels == "all" else 1
        level, noise = torch.empty(copies, clips), torch.empty(copies, clips, *size)
        if seeds is None:
            level.copy_(self._draw_levels(clips, self._generator).view_as(level))
            noise.normal_(generator=self._generator)
        else:
            for clip, generator in enumerate(seeded(seeds)):
                level[:, clip] = self._draw_levels(1, generator)
                for one in noise[:, clip]:  # torch fills memory that is contiguous much faster
                    one.normal_(generator=generator)
        return level.flatten(), noise.flatten(0, 1)

    def _draw_levels(self, clips: int, generator: torch.Generator) -> Tensor:
        """One level for each clip, ``[M]``, or each of ``levels="all"`` for all, ``[K M]``."""
        grid = torch.tensor(self.sigmas)
        if self.draw == "uniform":
            parts = len(grid) if self.levels == "all" else 1
            part = torch.arange(parts).repeat_interleave(clips)
            share = (part + torch.rand(len(part), generator=generator)) / parts
            return torch.lerp(grid.min(), grid.max(), share)
        if self.levels == "all":
            return grid.repeat_interleave(clips)
        return grid[torch.randint(len(grid), (clips,), generator=generator)]

    def predict(self, noised: TensorDictBase, *, reference: bool) -> Predictions:
        """Predict clean latents with ``old``, ``reference`` if asked, and last the policy.

        Args:
            noised: What `noise` returned, ``[M]``.
            reference: Whether the reference is needed.
        """
        noisy = noised[self.tensor_keys.noisy]
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
            sigma=noised[self.tensor_keys.sigma][:, :1, None, None, None].float(),
        )

    def _denoise(self, noised: TensorDictBase) -> Tensor:
        # A shallow copy for each pass: none may see what another one wrote.
        output = self.network(noised.clone(recurse=False))
        denoised: Tensor = output[self.tensor_keys.denoised].float()
        return denoised

    def _set_in_keys(self) -> None:
        ours = (self.tensor_keys.noisy, self.tensor_keys.sigma)
        keys = [*self._own_keys(), *(key for key in self.network.in_keys if key not in ours)]
        self._in_keys = list(dict.fromkeys(keys))

    def _own_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.latents]

    def _forward_value_estimator_keys(self, **_: Any) -> None:  # TorchRL's hook in `set_keys`
        self._set_in_keys()


def seeded(seeds: Tensor) -> Iterator[torch.Generator]:
    """One CPU generator again and again, each time at the start of the next seed's stream."""
    generator = torch.Generator()
    for seed in seeds.tolist():
        yield generator.manual_seed(seed)
