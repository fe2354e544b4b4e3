"""WholeVideo: lets a reward see the whole video so far in place of its newest window."""

from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase

from astrolabe_rewards.errors import RewardError
from astrolabe_rewards.keys import FPS, OVERVIEW, OVERVIEW_FPS, PIXELS, SCORE
from astrolabe_rewards.reward import Reward
from astrolabe_rewards.rounding import rounding_key
from astrolabe_rewards.wiring import (
    UNDECLARED,
    Rewired,
    Scorer,
    name_of,
    reads,
    renamed,
    written_by,
)


class WholeVideo(Rewired):
    """A reward of long videos: it is shown some frames from all that was made so far.

    Reads ``("video","overview")``, ``("video","overview_fps")`` and what else the reward reads,
    such as ``("prompt","text")``; writes ``("score", name)``. The prompt is that of the newest
    window.

    Args:
        scorer: Any reward: it reads the overview as its pixels, at the overview's rate.
        name: Name of the score.
        in_keys: Where the overview, its rate and the rest are, in this order.
        out_keys: Where the score goes; one key.

    Raises:
        KeyError: When called, if the batch has no overview.
        RewardError: When called, if the reward writes no score.
    """

    def __init__(
        self,
        scorer: Scorer,
        name: str,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        self.scorer = scorer
        keys = reads(scorer)
        # A reward takes its pixels and rate from where its own keys say.
        shown = keys[:2] if keys and isinstance(scorer, Reward) else [PIXELS, FPS]
        rest = [key for key in keys or UNDECLARED if key not in shown]
        self._wanted: list[NestedKey] = [*shown, *rest]
        self._wire(
            "WholeVideo", [OVERVIEW, OVERVIEW_FPS, *rest], [(SCORE, name)], in_keys, out_keys
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Score the overviews of a batch of any shape."""
        if missing := [key for key in self.in_keys[:2] if tensordict.get(key, None) is None]:
            raise KeyError(
                f"WholeVideo: the batch lacks {missing}. Add frames spread over the whole video so "
                "far and their rate (astrolabe-rollout: StreamingPolicy(..., overview=16))."
            )
        scored = self.scorer(renamed(tensordict, self.in_keys, self._wanted))
        key = written_by(self.scorer, name_of(self._wired[2][0]))
        if scored.get(key, None) is None:
            raise RewardError(f"WholeVideo: the reward did not write {key}. Let it set that entry.")
        blur = scored.get(rounding_key(key), None)
        if blur is not None:
            tensordict.set(rounding_key(self.out_keys[0]), blur)
        return tensordict.set(self.out_keys[0], scored[key])
