"""Video rewards as TensorDict modules.

``Reward`` is the base, ``CompositeReward`` the weighted sum. Names load on first use, so that
importing this package loads neither torch nor OpenCV nor weights.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astrolabe_rewards.attributes import AttributeTA
    from astrolabe_rewards.cache import CachedReward
    from astrolabe_rewards.composite import CompositeReward
    from astrolabe_rewards.errors import WeightsError
    from astrolabe_rewards.matcher import TinyTextReward
    from astrolabe_rewards.monitors import Monitors
    from astrolabe_rewards.motion import FlowMQ
    from astrolabe_rewards.pixel_check import PixelCheck
    from astrolabe_rewards.quality import SharpnessVQ
    from astrolabe_rewards.reward import Reward

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

_HOME = {
    "AttributeTA": "attributes",
    "CachedReward": "cache",
    "CompositeReward": "composite",
    "FlowMQ": "motion",
    "Monitors": "monitors",
    "PixelCheck": "pixel_check",
    "Reward": "reward",
    "SharpnessVQ": "quality",
    "TinyTextReward": "matcher",
    "WeightsError": "errors",
}


def __getattr__(name: str) -> Any:  # Any: a module attribute can be anything
    """Import what is first used."""
    if name == "__version__":
        return import_module("importlib.metadata").version("astrolabe-rewards")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
