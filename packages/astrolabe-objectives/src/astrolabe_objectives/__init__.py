"""Forward-process RL for video: advantages, snapshots and losses as TorchRL modules.

Names are loaded on first use: TorchRL takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astrolabe_objectives.advantage import GroupAdvantage, group_statistics
    from astrolabe_objectives.anchored import AnchoredLoss
    from astrolabe_objectives.denoising import DenoisingLoss
    from astrolabe_objectives.disagreement import RankDisagreement
    from astrolabe_objectives.dpo import DPOLoss
    from astrolabe_objectives.errors import SnapshotError
    from astrolabe_objectives.grpo import CMGRPOLoss
    from astrolabe_objectives.kl import selective_kl
    from astrolabe_objectives.nft import NFTLoss
    from astrolabe_objectives.rwr import RWRLoss
    from astrolabe_objectives.schedules import (
        OLD_DECAYS,
        AdaptiveReferenceReset,
        OldDecay,
        ReferenceReset,
    )
    from astrolabe_objectives.snapshots import Snapshots

__all__ = [
    "OLD_DECAYS",
    "AdaptiveReferenceReset",
    "AnchoredLoss",
    "CMGRPOLoss",
    "DPOLoss",
    "DenoisingLoss",
    "GroupAdvantage",
    "NFTLoss",
    "OldDecay",
    "RWRLoss",
    "RankDisagreement",
    "ReferenceReset",
    "SnapshotError",
    "Snapshots",
    "group_statistics",
    "selective_kl",
]

_HOME = {
    "AdaptiveReferenceReset": "schedules",
    "AnchoredLoss": "anchored",
    "CMGRPOLoss": "grpo",
    "DPOLoss": "dpo",
    "DenoisingLoss": "denoising",
    "GroupAdvantage": "advantage",
    "NFTLoss": "nft",
    "OLD_DECAYS": "schedules",
    "OldDecay": "schedules",
    "RWRLoss": "rwr",
    "RankDisagreement": "disagreement",
    "ReferenceReset": "schedules",
    "SnapshotError": "errors",
    "Snapshots": "snapshots",
    "group_statistics": "advantage",
    "selective_kl": "kl",
}


def __getattr__(name: str) -> Any:  # Any: a module attribute can be anything
    if name == "__version__":
        return import_module("importlib.metadata").version("astrolabe-objectives")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
