"""Prompt suites, paired comparisons and self-contained reports for video models.

Names are loaded on first use: reading a suite needs no torch, and a score no matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astrolabe_eval.agreement import Agreement, agree
    from astrolabe_eval.agreement_plots import agreement_map, rank_scatter
    from astrolabe_eval.agreement_report import write_agreement
    from astrolabe_eval.comparison import Comparison, compare, compare_many, verdict
    from astrolabe_eval.drift import drift_curves, first_last_consistency
    from astrolabe_eval.errors import SuiteError, VBenchError, VideoError, VoteError
    from astrolabe_eval.filling import fill
    from astrolabe_eval.flicker import score_flickering, write_flickering
    from astrolabe_eval.generation import generate
    from astrolabe_eval.interval_scores import score_intervals
    from astrolabe_eval.pairing import keep_shared
    from astrolabe_eval.plots import paired_differences, reward_curves, score_changes
    from astrolabe_eval.report import interval_in_words, write_report
    from astrolabe_eval.scoring import Evaluation, Scores, evaluate_suite, score_suite
    from astrolabe_eval.sheets import contact_sheet
    from astrolabe_eval.statistics import bootstrap_interval, paired_interval
    from astrolabe_eval.suite_folder import SuiteFolder
    from astrolabe_eval.suites import Suite, load_suite
    from astrolabe_eval.tables import csv_table, latex_table, markdown_table
    from astrolabe_eval.throughput import Speed, Throughput, compare_in_turn, throughput_table
    from astrolabe_eval.vbench import read_results, totals
    from astrolabe_eval.vbench_clips import split_folder
    from astrolabe_eval.vbench_long import fuse_clips
    from astrolabe_eval.vbench_prompts import (
        parse_script,
        read_vbench_prompts,
        script_suite,
        vbench_suite,
    )
    from astrolabe_eval.vbench_run import run_vbench
    from astrolabe_eval.vbench_tables import totals_latex, totals_markdown
    from astrolabe_eval.video_io import Mp4Writer, Video, encode_mp4, read_mp4, write_mp4
    from astrolabe_eval.votes import read_votes, write_votes
    from astrolabe_eval.win_rates import wilson_interval, win_rate

_HOMES = {
    "Agreement": "agreement",
    "Comparison": "comparison",
    "Evaluation": "scoring",
    "Mp4Writer": "video_io",
    "Scores": "scoring",
    "Speed": "throughput",
    "Suite": "suites",
    "SuiteError": "errors",
    "SuiteFolder": "suite_folder",
    "Throughput": "throughput",
    "VBenchError": "errors",
    "Video": "video_io",
    "VideoError": "errors",
    "VoteError": "errors",
    "agree": "agreement",
    "agreement_map": "agreement_plots",
    "bootstrap_interval": "statistics",
    "compare": "comparison",
    "compare_in_turn": "throughput",
    "compare_many": "comparison",
    "contact_sheet": "sheets",
    "csv_table": "tables",
    "drift_curves": "drift",
    "encode_mp4": "video_io",
    "evaluate_suite": "scoring",
    "fill": "filling",
    "first_last_consistency": "drift",
    "fuse_clips": "vbench_long",
    "generate": "generation",
    "interval_in_words": "report",
    "keep_shared": "pairing",
    "latex_table": "tables",
    "load_suite": "suites",
    "markdown_table": "tables",
    "paired_differences": "plots",
    "paired_interval": "statistics",
    "parse_script": "vbench_prompts",
    "rank_scatter": "agreement_plots",
    "read_mp4": "video_io",
    "read_results": "vbench",
    "read_vbench_prompts": "vbench_prompts",
    "read_votes": "votes",
    "reward_curves": "plots",
    "run_vbench": "vbench_run",
    "score_changes": "plots",
    "score_flickering": "flicker",
    "score_intervals": "interval_scores",
    "score_suite": "scoring",
    "script_suite": "vbench_prompts",
    "split_folder": "vbench_clips",
    "throughput_table": "throughput",
    "totals": "vbench",
    "totals_latex": "vbench_tables",
    "totals_markdown": "vbench_tables",
    "vbench_suite": "vbench_prompts",
    "verdict": "comparison",
    "wilson_interval": "win_rates",
    "win_rate": "win_rates",
    "write_agreement": "agreement_report",
    "write_flickering": "flicker",
    "write_mp4": "video_io",
    "write_report": "report",
    "write_votes": "votes",
}

__all__ = [
    "Agreement",
    "Comparison",
    "Evaluation",
    "Mp4Writer",
    "Scores",
    "Speed",
    "Suite",
    "SuiteError",
    "SuiteFolder",
    "Throughput",
    "VBenchError",
    "Video",
    "VideoError",
    "VoteError",
    "agree",
    "agreement_map",
    "bootstrap_interval",
    "compare",
    "compare_in_turn",
    "compare_many",
    "contact_sheet",
    "csv_table",
    "drift_curves",
    "encode_mp4",
    "evaluate_suite",
    "fill",
    "first_last_consistency",
    "fuse_clips",
    "generate",
    "interval_in_words",
    "keep_shared",
    "latex_table",
    "load_suite",
    "markdown_table",
    "paired_differences",
    "paired_interval",
    "parse_script",
    "rank_scatter",
    "read_mp4",
    "read_results",
    "read_vbench_prompts",
    "read_votes",
    "reward_curves",
    "run_vbench",
    "score_changes",
    "score_flickering",
    "score_intervals",
    "score_suite",
    "script_suite",
    "split_folder",
    "throughput_table",
    "totals",
    "totals_latex",
    "totals_markdown",
    "vbench_suite",
    "verdict",
    "wilson_interval",
    "win_rate",
    "write_agreement",
    "write_flickering",
    "write_mp4",
    "write_report",
    "write_votes",
]


def __getattr__(name: str) -> Any:  # Any: a module attribute can be anything
    if name == "__version__":
        return import_module("importlib.metadata").version("astrolabe-eval")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
