"""Forward-process RL for video: advantages, snapshots and losses as TorchRL modules."""

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
