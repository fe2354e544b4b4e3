"""The TensorDict entries this package reads and writes.

Each value is ``dtype [shape] meaning and unit``; ``*B`` is any batch shape, ``f`` latent frames.
Two packages that name the same entry give it the same text (tests/contract/test_keys.py).
"""

GROUP = ("prompt", "group")
INDEX = ("window", "index")
LATENTS = ("video", "latents")
SCORE = "score"
VALID = ("next", "valid")
REWARD = ("next", "reward")
ADVANTAGE = "advantage"
SELECTED = ("kl", "selected")
NOISY = ("noisy", "latents")
SIGMA = ("noisy", "sigma")
DENOISED = ("denoised", "latents")

READS = {
    GROUP: "int64 [*B] equal for samples that compete for one prompt",
    INDEX: "int64 [*B] 0 for the first window of a video",
    LATENTS: "float32 [*B, f, C, h, w] clean latents x0, normalised",
    (SCORE, "*"): "float32 [*B, 1] raw output of one reward model, its own unit, larger is better",
    VALID: "bool [*B, 1] false where a score could not be had",
    REWARD: "float32 [*B, 1] weighted sum of scores",
    ADVANTAGE: "float32 [*B, 1] reward minus group mean, over a standard deviation",
    SELECTED: "bool [*B, 1] true where rewards disagree and the policy is held back",
    DENOISED: "float32 [*B, f, C, h, w] predicted x0",
}
WRITES = {
    ADVANTAGE: "float32 [*B, 1] reward minus group mean, over a standard deviation",
    SELECTED: "bool [*B, 1] true where rewards disagree and the policy is held back",
    NOISY: "float32 [*B, f, C, h, w] x_t = (1 - σ) x0 + σ ε",
    SIGMA: "float32 [*B, f] noise level in (0, 1]",
    "loss_policy": "float32 [] summed and minimised",
    "loss_kl": "float32 [] summed and minimised",
    "kl": "float32 [] mean squared distance to the reference, over the selected samples",
    "old_deviation": "float32 [] mean squared distance to the behaviour policy",
    "policy_positive": "float32 [] mean squared error of the implicit positive policy",
    "policy_negative": "float32 [] mean squared error of the implicit negative policy",
}
