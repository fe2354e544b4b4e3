"""WholeVideo: lets a reward see the whole video so far in place of its newest window."""

from collections.abc import Callable

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from astrolabe_rewards.errors import RewardError
from astrolabe_rewards.keys import FPS, OVERVIEW, OVERVIEW_FPS, PIXELS, SCORE
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.rounding import rounding_key


class WholeVideo(TensorDictModuleBase):
    """A reward of long videos: it is shown some frames from all that was made so far.

    Reads ``("video","overview")``, ``("video","overview_fps")`` and ``("prompt","text")``; writes
    ``("score", name)``. The prompt is that of the newest window.

    Args:
        scorer: Any reward: it reads the overview as its pixels, at the overview's rate.
        name: Name of the score.

    Raises:
        KeyError: When called, if the batch has no overview.
        RewardError: When called, if the reward writes no score.
    """

    def __init__(self, scorer: Callable[[TensorDictBase], TensorDictBase], name: str) -> None:
        super().__init__()
        self.scorer = scorer
        self.in_keys = [OVERVIEW, OVERVIEW_FPS]
        self.out_keys = [(SCORE, name)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Score the overviews of a batch of any shape."""
        if tensordict.get(OVERVIEW, None) is None:
            raise KeyError(
                f"WholeVideo: the batch has no {OVERVIEW}. Ask the policy for one: "
                "StreamingPolicy(..., overview=16)."
            )
        whole = tensordict.copy()
        whole[PIXELS], whole[FPS] = tensordict[OVERVIEW], tensordict[OVERVIEW_FPS]
        scored = self.scorer(whole)
        own = self.scorer.out_keys if isinstance(self.scorer, Reward) else self.out_keys
        key: NestedKey = own[0]
        if scored.get(key, None) is None:
            raise RewardError(f"WholeVideo: the reward did not write {key}. Let it set that entry.")
        blur = scored.get(rounding_key(key), None)
        if blur is not None:
            tensordict.set(rounding_key(self.out_keys[0]), blur)
        return tensordict.set(self.out_keys[0], scored[key])
