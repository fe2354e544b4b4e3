"""The TensorDict entries this package reads and writes.

Each value is ``dtype [shape] meaning and unit``; ``*B`` is any batch shape, ``F`` pixel frames,
``O`` frames of an overview. Two packages that name the same entry give it the same text
(tests/contract/test_keys.py).
"""

TEXT = ("prompt", "text")
GROUP = ("prompt", "group")
METADATA = ("prompt", "metadata")
INDEX = ("window", "index")
PIXELS = ("video", "pixels")
FPS = ("video", "fps")
OVERVIEW = ("video", "overview")
OVERVIEW_FPS = ("video", "overview_fps")
SCORE = "score"
ROUNDING = "rounding"
MONITOR = "monitor"
VALID = ("next", "valid")
REWARD = ("next", "reward")

READS = {
    TEXT: "str [*B] what to show in this window",
    GROUP: "int64 [*B] equal for samples that compete for one prompt",
    INDEX: "int64 [*B] 0 for the first window of a video",
    PIXELS: "uint8 [*B, F, 3, H, W] RGB, 0 to 255",
    FPS: "float32 [*B] frames per second",
    OVERVIEW: "uint8 [*B, O, 3, H, W] frames spread over the whole video so far, RGB, 0 to 255",
    OVERVIEW_FPS: "float32 [*B] frames of the overview per second",
}
WRITES = {
    (SCORE, "*"): "float32 [*B, 1] raw output of one reward model, its own unit, larger is better",
    (ROUNDING, SCORE, "*"): "float32 [*B, 1] by how much equal scores may differ by rounding",
    VALID: "bool [*B, 1] false where a score could not be had",
    REWARD: "float32 [*B, 1] weighted sum of scores, NaN where it could not be had",
    (ROUNDING, *REWARD): "float32 [*B, 1] by how much equal rewards may differ by rounding",
    (MONITOR, "brightness"): "float32 [*B, 1] mean luma, 0 to 1",
    (MONITOR, "saturation"): "float32 [*B, 1] mean of largest minus least of R, G, B, 0 to 1",
    (MONITOR, "sharpness"): "float32 [*B, 1] mean size of the gradient of luma, per pixel",
    (MONITOR, "motion"): "float32 [*B, 1] mean change of luma, per second",
    (MONITOR, "thumbnail"): "float16 [*B, P] four frames of 3x8x8 pixels, 0 to 1",
}
