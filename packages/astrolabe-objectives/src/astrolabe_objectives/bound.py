"""A module that always runs with the values of one copy of its parameters."""

from typing import TYPE_CHECKING

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

if TYPE_CHECKING:
    from astrolabe_objectives.snapshots import Snapshots


class Bound(TensorDictModuleBase):
    """What `Snapshots.bind` returns.

    Args:
        snapshots: Of the parameters of ``module``.
        name: Of the copy.
        module: What runs.
    """

    def __init__(self, snapshots: "Snapshots", name: str, module: TensorDictModuleBase) -> None:
        super().__init__()
        self.module = module
        self.in_keys = list(module.in_keys)
        self.out_keys = list(module.out_keys)
        # Not as a submodule: a policy's state is its network's.
        self.__dict__["_snapshots"] = snapshots
        self._name = name

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Run the module with the values of the copy."""
        with self._snapshots.use(self._name):
            return self.module(tensordict)
