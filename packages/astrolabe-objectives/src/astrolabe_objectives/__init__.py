"""Forward-process RL for video: advantages, snapshots and losses as TorchRL modules."""

from astrolabe_objectives.advantage import GroupAdvantage, group_statistics
from astrolabe_objectives.denoising import DenoisingLoss
from astrolabe_objectives.disagreement import RankDisagreement
from astrolabe_objectives.errors import SnapshotError
from astrolabe_objectives.kl import selective_kl
from astrolabe_objectives.nft import NFTLoss
from astrolabe_objectives.schedules import OLD_DECAYS, OldDecay, ReferenceReset
from astrolabe_objectives.snapshots import Snapshots

__all__ = [
    "OLD_DECAYS",
    "DenoisingLoss",
    "GroupAdvantage",
    "NFTLoss",
    "OldDecay",
    "RankDisagreement",
    "ReferenceReset",
    "SnapshotError",
    "Snapshots",
    "group_statistics",
    "selective_kl",
]
