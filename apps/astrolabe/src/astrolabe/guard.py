"""What is wrong with a step: tells it, keeps batches that were skipped, and ends a bad run."""

from safetensors.torch import save as to_bytes
from tensordict import TensorDictBase
from torch import Tensor

from astrolabe.config import Run
from astrolabe.errors import InvariantError
from astrolabe.run_folder import RunFolder
from astrolabe.train import Step
from astrolabe.view import View
from astrolabe.world import ALONE, World
from astrolabe_eval.files import write_atomic


class StepGuard:
    """Looks at each finished step.

    Args:
        folder: Of the run; batches are kept in ``skipped/``.
        run: The settings.
        view: Is told.
        world: The processes; each keeps its own part of a batch.

    Attributes:
        stop: Whether the alarm ends the run.
    """

    def __init__(self, folder: RunFolder, run: Run, view: View, world: World = ALONE) -> None:
        self.folder, self.run, self.view, self.world = folder, run, view, world
        self.stop = False
        self._in_a_row = 0
        self._dull_told = False

    def __call__(self, step: Step) -> None:
        """Look at a finished step.

        Raises:
            InvariantError: If too many steps in a row had no video that could be scored, or a loss
                that is not finite.
            OSError: If a batch cannot be written.
        """
        if step.alarm:
            self.view.say(f"Step {step.number}: {step.alarm}")
            self.stop = self.run.guard.action == "stop"
        dull = step.metrics.get("advantage/zero_std_fraction") == 1.0 and not step.unscored
        if dull and not self._dull_told:
            self._dull_told = True
            self.view.say(
                f"Step {step.number}: all videos of each prompt got the same reward, or none, so "
                "nothing can be learned. Raise rollout.group_size, or choose rewards or prompts "
                "that tell these videos apart. (Told once.)"
            )
        self._in_a_row = self._in_a_row + 1 if step.skipped or step.unscored else 0
        if step.unscored:
            self._pass_over(step)
        for index, batch in enumerate(step.skipped):
            self._keep(step.number, index, batch)

    def end(self, step: Step) -> None:
        """Say how to go on where the alarm ended the run."""
        if self.stop and step.number < self.run.train.steps:
            self.view.say(
                f"Stopped by the alarm; saved after step {step.number} of {self.run.train.steps}. "
                "Compare in the report, then start anew with other weights or more KL; to go on "
                f"all the same: astrolabe train --resume {self.folder.path}"
            )

    def _pass_over(self, step: Step) -> None:
        """Tell of a step in which nothing was scored; it made no update."""
        silent = [
            name.removeprefix("valid_fraction/")
            for name, share in step.metrics.items()
            if name.startswith("valid_fraction/") and share == 0.0
        ]
        who = f" ({', '.join(silent)} gave no score at all)" if silent else ""
        limit = self.run.guard.max_skipped
        if self._in_a_row >= limit:
            raise InvariantError(
                f"nothing could be learned in {limit} steps in a row, the last one as no video "
                f"could be scored{who}. Look into {str(self.folder.path / 'logs')!r} why; when the "
                f"rewards answer again, go on with: astrolabe train --resume {self.folder.path}"
            )
        self.view.say(
            f"Step {step.number}: no video could be scored{who}; nothing was learned in this step."
        )

    def _keep(self, step: int, index: int, batch: TensorDictBase) -> None:
        whose = f"-rank-{self.world.rank}" if self.world.size > 1 else ""
        path = self.folder.skipped / f"step-{step:06d}-{index}{whose}.safetensors"
        entries = {
            key if isinstance(key, str) else ".".join(key): value.contiguous().cpu()
            for key, value in batch.items(include_nested=True, leaves_only=True)
            if isinstance(value, Tensor)
        }
        metadata = {"step": str(step), "seed": str(self.run.train.seed)}
        kept = f"kept its batch in {path}"
        try:
            write_atomic(path, to_bytes(entries, metadata=metadata))
        except OSError as error:  # a full disk must not end a run of days
            kept = f"its batch cannot be kept in {path} ({error.strerror})"
        limit = self.run.guard.max_skipped
        if self._in_a_row >= limit:
            raise InvariantError(
                f"the loss or its gradient was not finite in {limit} steps in a row; {kept}. Look "
                "whether it is finite itself; if so, start anew with a lower train.lr."
            )
        self.view.say(
            f"Step {step}: a loss or gradient is not finite; skipped that update and {kept}."
        )
