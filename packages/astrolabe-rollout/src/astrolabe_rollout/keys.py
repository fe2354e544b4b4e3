"""The TensorDict entries this package reads and writes.

Each value is ``dtype [shape] meaning and unit``; ``*B`` is any batch shape, ``f`` latent frames,
``F`` pixel frames, ``O`` frames of an overview, ``c`` context frames, ``K`` denoising steps, ``L``
text tokens, ``D`` text width. Two packages that name the same entry give it the same text
(tests/contract/test_keys.py).
"""

TEXT = ("prompt", "text")
GROUP = ("prompt", "group")
SEED = ("prompt", "seed")
SCRIPT = ("prompt", "script")
METADATA = ("prompt", "metadata")
HISTORY_SEED = ("prompt", "history_seed")
EMBEDS = ("prompt", "embeds")
INDEX = ("window", "index")
CONTEXT = ("window", "context")
LATENTS = ("video", "latents")
PIXELS = ("video", "pixels")
FPS = ("video", "fps")
OVERVIEW = ("video", "overview")
OVERVIEW_FPS = ("video", "overview_fps")
NOISY = ("noisy", "latents")
SIGMA = ("noisy", "sigma")
DENOISED = ("denoised", "latents")
STEPS = ("steps", "latents")

READS = {
    EMBEDS: "float32 [*B, L, D] text encoder output, zero after the last token",
    SEED: "int64 [*B] seed of the noise of this video",
    GROUP: "int64 [*B] equal for samples that compete for one prompt",
    SCRIPT: "str [*B] prompts of the whole video",
    HISTORY_SEED: "int64 [*B] seed of the noise before the window, equal in a group",
    INDEX: "int64 [*B] 0 for the first window of a video",
    CONTEXT: "float32 [*B, c, C, h, w] clean latents just before the window, oldest first",
    LATENTS: "float32 [*B, f, C, h, w] clean latents x0, normalised",
    NOISY: "float32 [*B, f, C, h, w] x_t = (1 - σ) x0 + σ ε",
    SIGMA: "float32 [*B, f] noise level in (0, 1]",
}
WRITES = {
    TEXT: "str [*B] what to show in this window",
    METADATA: "dict [*B] row of the prompt table, where prompts are rows",
    GROUP: "int64 [*B] equal for samples that compete for one prompt",
    SEED: "int64 [*B] seed of the noise of this video",
    SCRIPT: "str [*B] prompts of the whole video",
    HISTORY_SEED: "int64 [*B] seed of the noise before the window, equal in a group",
    EMBEDS: "float32 [*B, L, D] text encoder output, zero after the last token",
    INDEX: "int64 [*B] 0 for the first window of a video",
    CONTEXT: "float32 [*B, c, C, h, w] clean latents just before the window, oldest first",
    LATENTS: "float32 [*B, f, C, h, w] clean latents x0, normalised",
    PIXELS: "uint8 [*B, F, 3, H, W] RGB, 0 to 255",
    FPS: "float32 [*B] frames per second",
    OVERVIEW: "uint8 [*B, O, 3, H, W] frames spread over the whole video so far, RGB, 0 to 255",
    OVERVIEW_FPS: "float32 [*B] frames of the overview per second",
    DENOISED: "float32 [*B, f, C, h, w] predicted x0",
    STEPS: "float32 [*B, K, f, C, h, w] what the sampler denoised at each of its noise levels",
}
