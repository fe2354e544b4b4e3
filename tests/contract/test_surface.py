"""The public names of each package: a new one is a decision, not an accident."""

from importlib import import_module
from inspect import isclass, isfunction
from pkgutil import iter_modules
from types import ModuleType

import pytest

NAMES = {
    "astrolabe_rollout": """CausalTransformer CausalWan CheckpointError ChunkStream Denoiser
        FlowSchedule Geometry GroupSampler KVCache PrecisionWarning PromptEnv PromptFileError
        StreamingPolicy VideoModel add_lora export_lora export_transformer full_state
        load_checkpoint load_into load_lora load_tiny make_collector merge_lora
        read_prompt_table read_prompts sample_chunk save_lora shard trainable_parameters""",
    "astrolabe_rewards": """AttributeTA CachedReward CompositeReward FlowMQ Monitors PixelCheck
        Reward SharpnessVQ TinyTextReward WeightsError""",
    "astrolabe_objectives": """AdaptiveReferenceReset AnchoredLoss CMGRPOLoss DPOLoss DenoisingLoss
        GroupAdvantage NFTLoss OLD_DECAYS OldDecay RWRLoss RankDisagreement ReferenceReset
        SnapshotError Snapshots group_statistics selective_kl""",
    "astrolabe_eval": """Comparison Evaluation Mp4Writer Scores Suite SuiteError Video VideoError
        bootstrap_interval compare contact_sheet encode_mp4 evaluate_suite generate
        interval_in_words load_suite paired_differences paired_interval read_mp4 reward_curves
        score_suite verdict write_mp4 write_report Agreement agree agreement_map rank_scatter
        write_agreement VBenchError drift_curves first_last_consistency fuse_clips parse_script
        read_results read_vbench_prompts run_vbench score_flickering score_intervals script_suite
        SuiteFolder VoteError compare_many fill csv_table keep_shared latex_table markdown_table
        read_votes score_changes wilson_interval win_rate write_votes split_folder totals
        totals_latex totals_markdown vbench_suite write_flickering Speed Throughput compare_in_turn
        throughput_table""",
}


@pytest.mark.parametrize("package", NAMES)
def test_public_names_are_these_and_exist(package):
    module = import_module(package)
    assert sorted(module.__all__) == sorted(NAMES[package].split())
    # A file of that name would take its place as soon as anybody imports it.
    assert not {each.name for each in iter_modules(module.__path__)} & {*module.__all__}
    for name in module.__all__:
        value = getattr(module, name)
        assert not isinstance(value, ModuleType), name
        if isclass(value) or isfunction(value):  # a constant has no name of its own
            assert value.__name__ == name
