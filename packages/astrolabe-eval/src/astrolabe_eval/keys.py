"""The TensorDict entries this package reads and writes.

Each value is ``dtype [shape] meaning and unit``; ``*B`` is any batch shape, ``F`` pixel frames. Two
packages that name the same entry give it the same text (tests/contract/test_keys.py).
"""

TEXT = ("prompt", "text")
SEED = ("prompt", "seed")
INDEX = ("window", "index")
PIXELS = ("video", "pixels")
FPS = ("video", "fps")
SCORE = "score"
REWARD = ("next", "reward")
VALID = ("next", "valid")

READS = {
    PIXELS: "uint8 [*B, F, 3, H, W] RGB, 0 to 255",
    (SCORE, "*"): "float32 [*B, 1] raw output of one reward model, its own unit, larger is better",
    REWARD: "float32 [*B, 1] weighted sum of scores, NaN where it could not be had",
    VALID: "bool [*B, 1] false where a score could not be had",
}
WRITES = {
    TEXT: "str [*B] what to show in this window",
    SEED: "int64 [*B] seed of the noise of this video",
    INDEX: "int64 [*B] 0 for the first window of a video",
    FPS: "float32 [*B] frames per second",
}
