"""Video rewards as TensorDict modules.

``Reward`` is the base, ``CompositeReward`` the weighted sum; the built-in rewards are imported when
first asked for, so that importing this package loads neither OpenCV nor weights.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from astrolabe_rewards.composite import CompositeReward
from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.monitors import Monitors
from astrolabe_rewards.reward import Reward

if TYPE_CHECKING:
    from astrolabe_rewards.attributes import AttributeTA
    from astrolabe_rewards.cache import CachedReward
    from astrolabe_rewards.matcher import TinyTextReward
    from astrolabe_rewards.motion import FlowMQ
    from astrolabe_rewards.pixel_check import PixelCheck
    from astrolabe_rewards.quality import SharpnessVQ

__all__ = [
    "AttributeTA",
    "CachedReward",
    "CompositeReward",
    "FlowMQ",
    "Monitors",
    "PixelCheck",
    "Reward",
    "SharpnessVQ",
    "TinyTextReward",
    "WeightsError",
]

_BUILT_IN = {
    "AttributeTA": "attributes",
    "CachedReward": "cache",
    "FlowMQ": "motion",
    "PixelCheck": "pixel_check",
    "SharpnessVQ": "quality",
    "TinyTextReward": "matcher",
}


def __getattr__(name: str) -> Any:  # Any: a module attribute can be anything
    """Import a built-in reward when it is first used."""
    if name not in _BUILT_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_BUILT_IN[name]}"), name)
