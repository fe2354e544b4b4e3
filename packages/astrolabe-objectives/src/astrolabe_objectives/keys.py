"""The TensorDict entries this package reads and writes.

Each value is ``dtype [shape] meaning and unit``; ``*B`` is any batch shape, ``f`` latent frames,
``K`` denoising steps. Two packages that name the same entry give it the same text
(tests/contract/test_keys.py). Entries under ``"drawn"`` pass from a loss's ``noise()`` to its
``forward()`` and are nobody else's.
"""

GROUP = ("prompt", "group")
INDEX = ("window", "index")
LATENTS = ("video", "latents")
SCORE = "score"
ROUNDING = "rounding"
VALID = ("next", "valid")
REWARD = ("next", "reward")
ADVANTAGE = "advantage"
SELECTED = ("kl", "selected")
NOISY = ("noisy", "latents")
SIGMA = ("noisy", "sigma")
NOISE_SEED = ("noisy", "seed")
DENOISED = ("denoised", "latents")
STEPS = ("steps", "latents")
PAIR = ("drawn", "pair")
WEIGHT = ("drawn", "weight")
NEXT = ("drawn", "next")
NEXT_SIGMA = ("drawn", "next_sigma")

READS = {
    GROUP: "int64 [*B] equal for samples that compete for one prompt",
    INDEX: "int64 [*B] 0 for the first window of a video",
    LATENTS: "float32 [*B, f, C, h, w] clean latents x0, normalised",
    (SCORE, "*"): "float32 [*B, 1] raw output of one reward model, its own unit, larger is better",
    (ROUNDING, SCORE, "*"): "float32 [*B, 1] by how much equal scores may differ by rounding",
    VALID: "bool [*B, 1] false where a score could not be had",
    REWARD: "float32 [*B, 1] weighted sum of scores, NaN where it could not be had",
    (ROUNDING, *REWARD): "float32 [*B, 1] by how much equal rewards may differ by rounding",
    ADVANTAGE: "float32 [*B, 1] reward minus group mean, over a standard deviation",
    SELECTED: "bool [*B, 1] true where rewards disagree and the policy is held back",
    NOISE_SEED: "int64 [*B] seed of a sample's noise level and noise, in [0, 2³²)",
    DENOISED: "float32 [*B, f, C, h, w] predicted x0",
    STEPS: "float32 [*B, K, f, C, h, w] what the sampler denoised at each of its noise levels",
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
    "policy_error": "float32 [] mean squared error of the policy on the clips",
    "best_error": "float32 [] mean squared error of the policy on the best clip of each group",
    "worst_error": "float32 [] mean squared error of the policy on the worst clip of each group",
    "preference_accuracy": "float32 [] share of pairs whose better clip gained more",
    "ratio": "float32 [] likelihood of a sampler's step by the policy over that by old",
    "clipped_fraction": "float32 [] share of steps beyond the clip, which teach nothing",
    "step_residual": "float32 [] mean square of the steps' noise as old infers it, 1 if it fits",
}
