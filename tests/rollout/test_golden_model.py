"""Parity with the public reference code, fp32, absolute tolerance 2e-5.

The difference is 3e-6 as a rule; outputs reach 10.
"""

import copy

import pytest
import torch

from astrolabe_rollout.geometry import Geometry
from astrolabe_rollout.sampler import prefill, rebuild, recache, sample_chunk
from astrolabe_rollout.schedule import FlowSchedule, add_noise, to_x0
from astrolabe_rollout.transformer import CausalWan

SIGMAS = FlowSchedule(5.0).warp((1000, 750, 500, 250))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


def x0_of(case, flow, x):
    sigma = FlowSchedule(5.0).nearest(case["timestep"].expand(x.shape[:2]))
    return to_x0(x, flow, sigma)


def test_schedule_equals_the_reference_tables(golden):
    case, schedule = golden("scheduler"), FlowSchedule(5.0)
    torch.testing.assert_close(schedule.sigmas, case["sigmas"], rtol=0, atol=1e-6)
    torch.testing.assert_close(schedule.sigmas * 1000, case["timesteps"], rtol=1e-6, atol=0)
    close(torch.tensor(SIGMAS) * 1000, case["warped"])
    warped_8 = FlowSchedule(8.0).warp((1000, 750, 500, 250))
    torch.testing.assert_close(
        torch.tensor(warped_8) * 1000, case["warped_shift8"], rtol=1e-6, atol=0
    )
    near = schedule.nearest(torch.tensor([1000.0, 750, 500, 250, 0, 125]))
    torch.testing.assert_close(
        near, case["sigma_nearest_of_1000_750_500_250_0_125"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "chunks", "options"),
    [
        ("i_train_chunk3_perframe_t", [3] * 7, {}),
        ("i_train_chunk3_same_t750_grads", [3] * 7, {}),
        ("i_train_chunk1_same_t750", [1] * 21, {"chunk": 1}),
        ("i_train_local12_chunk3", [3] * 7, {"window": 12}),
        ("i_train_indep_first_22", [1] + [3] * 7, {}),
    ],
)
def test_window_forward_with_noisy_context(golden, golden_wan, name, chunks, options):
    case, wan = golden(name), golden_wan(**options)
    flow = wan.forward_window(case["x"], case["timestep"], case["prompt_embeds"], chunks=chunks)
    close(flow, case["flow"])
    close(x0_of(case, flow, case["x"]), case["x0"])


def test_gradients_equal_the_reference_with_and_without_checkpointing(golden, golden_wan):
    case, wan = golden("i_train_chunk3_same_t750_grads"), golden_wan()
    names = {
        "blocks.0.ffn.0.bias": "blocks.0.ffn.net.0.proj.bias",
        "blocks.0.self_attn.q.weight": "blocks.0.attn1.to_q.weight",
        "blocks.1.cross_attn.o.weight": "blocks.1.attn2.to_out.0.weight",
        "blocks.1.self_attn.k.weight": "blocks.1.attn1.to_k.weight",
        "blocks.2.modulation": "blocks.2.scale_shift_table",
        "blocks.2.self_attn.v.bias": "blocks.2.attn1.to_v.bias",
        "head.modulation": "scale_shift_table",
        "patch_embedding.weight": "patch_embedding.weight",
        "time_projection.1.bias": "condition_embedder.time_proj.bias",
    }
    parameters = dict(wan.network.named_parameters())
    chosen = {f"grad.{key}": parameters[name] for key, name in names.items()}
    wan.network.requires_grad_(True)
    try:
        for checkpointing in (False, True):
            if checkpointing:
                wan.network.enable_gradient_checkpointing()
            flow = wan.forward_window(case["x"], case["timestep"], case["prompt_embeds"])
            loss = (x0_of(case, flow, case["x"]) * case["grad_weight"]).mean()
            close(loss[None], case["loss"])
            gradients = torch.autograd.grad(loss, list(chosen.values()))
            for key, gradient in zip(chosen, gradients, strict=True):
                close(gradient, case[key])
    finally:
        wan.network.disable_gradient_checkpointing()
        wan.network.requires_grad_(False)


def test_clean_detached_context_equals_teacher_forcing(golden, golden_wan):
    case, wan, record = golden("i_train_teacher_forcing"), golden_wan(), {}
    embeds = case["prompt_embeds"]
    wan.forward_window(case["clean_x"], torch.zeros(1, 21), embeds, record=record)
    flow = wan.forward_window(case["x"], case["timestep"], embeds, clean=record)
    close(flow, case["flow"])
    close(x0_of(case, flow, case["x"]), case["x0"])


def noise_of(case, index, chunk):
    """The injected noise of a chunk by denoising step."""
    start = case["noise"][:, index * chunk : (index + 1) * chunk]
    return lambda step: case["renoise"][index][step - 1] if step else start


def stream(case, wan, chunk):
    """Sample a whole video with the injected noise of a golden case."""
    frames, embeds = case["noise"].shape[1], case["prompt_embeds"]
    cache = wan.new_cache(frames if wan.rule.window is None else None)
    latents = [
        sample_chunk(wan, SIGMAS, embeds, cache, noise_of(case, index, chunk), chunk)
        for index in range(frames // chunk)
    ]
    return torch.cat(latents, 1), cache


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ii_stream_global_7", {}),
        ("ii_stream_global_5_batch2", {}),
        ("ii_stream_framewise_global_7", {"chunk": 1}),
        ("iii_roll_L12_S3_8", {"window": 12, "sink": 3}),
        ("iii_roll_L6_S0_6", {"window": 6}),
        ("iii_roll_L6_S1_6", {"window": 6, "sink": 1}),
        ("iii_roll_framewise_L6_S1_10", {"chunk": 1, "window": 6, "sink": 1}),
        ("iii_roll_framewise_L6_S3_10", {"chunk": 1, "window": 6, "sink": 3}),
    ],
)
def test_streaming_with_a_rolling_cache(golden, golden_wan, name, options):
    case, wan = golden(name), golden_wan(**options)
    latents, cache = stream(case, wan, options.get("chunk", 3))
    close(latents, case["latents"])
    close(cache._keys[0], case["cache_k_layer0"])
    close(cache._values[-1], case["cache_v_last"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("i_train_chunk3_perframe_t", {}), ("iii_roll_L12_S3_8", {"window": 12, "sink": 3})],
)
def test_half_precision_is_near(golden, golden_half, name, options):
    """bf16 against fp32 of the reference, relative to the size of the answer."""
    case, wan = golden(name), golden_half(**options)
    if options:
        found, expected = stream(case, wan, 3)[0], case["latents"]
    else:
        found = wan.forward_window(case["x"], case["timestep"], case["prompt_embeds"])
        expected = case["flow"]
    assert found.dtype == torch.float32
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 1e-4 < error < 3e-2


def test_a_global_model_sees_the_newest_21_frames(golden, golden_wan):
    case, wan = golden("iii_global_capped21_8"), golden_wan(window=21)
    latents, cache = stream(case, wan, 3)
    close(latents, case["latents"])
    close(cache._keys[0], case["cache_k_layer0"][:, -21 * 12 :])


@pytest.mark.parametrize(
    ("name", "window", "sink"),
    [
        ("vi_window_L12_S3", 12, 3),
        ("vi_window_L12_S3_W21", 12, 3),
        ("vi_window_L12_S3_W21_from0", 12, 3),
        ("vi_window_L12_S3_t0_prefix_full", 12, 3),
        ("vi_window_global", None, 0),
    ],
)
def test_window_over_a_clean_prefix(golden, golden_wan, name, window, sink):
    case, wan = golden(name), golden_wan(window=window, sink=sink)
    embeds, timestep = case["prompt_embeds"], case["timestep"]
    frames = case["xt"].shape[1]
    before = case["clean"].shape[1] - frames
    prefix = None
    if before:
        prefix = wan.new_cache(case["clean"].shape[1] if window is None else None)
        prefill(wan, case["clean"][:, :before], embeds, prefix, 3)
    every = timestep.expand(1, frames)
    flow = wan.forward_window(case["xt"], every, embeds, prefix=prefix)
    close(flow, case["flow"])
    close(to_x0(case["xt"], flow, FlowSchedule(5.0).nearest(every)), case["x0"])
    close(
        add_noise(case["clean"][:, before:], case["noise"], FlowSchedule(5.0).nearest(every)),
        case["xt"],
    )


@pytest.mark.parametrize(
    ("name", "keep_sink"),
    [
        ("iv_switch_early_6", True),
        ("iv_switch_midchunk_10", True),
        ("iv_switch_global_sink", True),
        ("iv_switch_reset_sink", False),
    ],
)
def test_a_new_prompt_with_recache(golden, golden_wan, name, keep_sink):
    case, wan = golden(name), golden_wan(window=12, sink=3)
    cache, prompts, latents = wan.new_cache(), list(case["prompt_embeds"]), []
    switches = case["switch_frames"].tolist()
    embeds = prompts.pop(0)
    for index in range(case["noise"].shape[1] // 3):
        if switches and 3 * index >= switches[0]:
            switches.pop(0)
            embeds = prompts.pop(0)
            recache(wan, torch.cat(latents, 1), embeds, cache, keep_sink=keep_sink)
        latents.append(sample_chunk(wan, SIGMAS, embeds, cache, noise_of(case, index, 3), 3))
    assert not switches
    close(torch.cat(latents, 1), case["latents"])
    close(cache._keys[0], case["cache_k_layer0"])
    close(cache._values[-1], case["cache_v_last"])


@pytest.mark.parametrize(
    ("name", "window", "sink", "relative", "cuts"),
    [
        ("v_infinity_A_L12_S3_10", 12, 3, True, False),
        ("v_infinity_A_L6_S1_8", 6, 1, True, False),
        ("v_infinity_orig_L6_S1_8", 6, 1, True, False),
        ("v_infinity_A_flush_L12_S3_10", 12, 3, True, False),
        ("v_infinity_A_flush_L6_S1_9", 6, 1, True, False),
        ("v_infinity_orig_cut_L6_S1_9", 6, 1, True, True),
        ("v_abs_A_flush_cut_L12_S3_10", 12, 3, False, True),
    ],
)
def test_scenes_with_flush_and_hard_cut(golden, golden_wan, name, window, sink, relative, cuts):
    """The public code cuts at the end of a scene that is flagged, or (A) not at all."""
    case, wan = golden(name), golden_wan(window=window, sink=sink, relative=relative)
    begins = case["scene_blocks"].cumsum(0).tolist()
    cache, scene, latents = wan.new_cache(), 0, []
    for index in range(case["noise"].shape[1] // 3):
        cut = False
        if index == begins[scene]:
            cut = cuts and bool(case["scene_cut"][scene])
            scene += 1
            cache.flush()
        embeds, noise = case["prompt_embeds"][scene], noise_of(case, index, 3)
        latents.append(sample_chunk(wan, SIGMAS, embeds, cache, noise, 3, cut=cut))
    close(torch.cat(latents, 1), case["latents"])
    if not relative:
        close(
            cache._keys[0][:, : cache.length * 12], case["cache_k_layer0"][:, : cache.length * 12]
        )
    close(cache._values[-1][:, : cache.length * 12], case["cache_v_last"][:, : cache.length * 12])


@pytest.mark.parametrize("context", [3, 6])
def test_a_cache_computed_anew_for_every_chunk(golden, golden_wan, context):
    case, wan = golden(f"vii_krea_recompute_ctx{context}_6"), golden_wan(window=context + 3)
    sigmas = FlowSchedule(5.0).nearest(case["timesteps"]).tolist()
    cache, embeds, latents = wan.new_cache(), case["prompt_embeds"], []
    for index in range(6):
        if index:
            done = torch.cat(latents, 1)
            early = (index - 1) * 3 < context
            rest = done[:, 1:] if early else done
            seen = torch.cat([done[:, :1], rest[:, -(context - 1) :]], 1)
            rebuild(wan, seen, embeds, cache, 3)
        noise, told = noise_of(case, index, 3), case["timesteps"].tolist()
        chunk = sample_chunk(wan, sigmas, embeds, cache, noise, 3, timesteps=told, clean=False)
        latents.append(chunk)
    close(torch.cat(latents, 1), case["latents"])


def test_bfloat16_stays_within_3e_2_of_float32(golden, golden_network):
    case = golden("i_train_chunk3_same_t750_grads")
    wan = CausalWan(copy.deepcopy(golden_network).bfloat16(), Geometry(48, 64))
    flow = wan.forward_window(
        case["x"].bfloat16(), case["timestep"], case["prompt_embeds"].bfloat16()
    )
    error = (flow.float() - case["flow"]).abs().mean() / case["flow"].abs().mean()
    assert error < 3e-2, error


def test_a_prompt_meets_the_keys_and_values_of_cross_attention_once(golden, golden_wan):
    case, wan = golden("ii_stream_global_5_batch2"), golden_wan()
    calls = []
    hooks = [
        block.attn2.to_k.register_forward_hook(lambda *_: calls.append(1))
        for block in wan.network.blocks
    ]
    stream(case, wan, 3)
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(wan.network.blocks)
