"""Prompt suites, paired comparisons and self-contained reports for video models.

Names are loaded on first use: reading a suite needs no torch, and a score no matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from astrolabe_eval.comparison import Comparison, compare, verdict
    from astrolabe_eval.errors import SuiteError, VideoError
    from astrolabe_eval.generation import generate
    from astrolabe_eval.plots import paired_differences, reward_curves
    from astrolabe_eval.report import interval_in_words, write_report
    from astrolabe_eval.scoring import Evaluation, Scores, evaluate_suite, score_suite
    from astrolabe_eval.sheets import contact_sheet
    from astrolabe_eval.statistics import bootstrap_interval, paired_interval
    from astrolabe_eval.suites import Suite, load_suite
    from astrolabe_eval.video_io import Mp4Writer, Video, encode_mp4, read_mp4, write_mp4

_HOMES = {
    "Comparison": "comparison",
    "Evaluation": "scoring",
    "Mp4Writer": "video_io",
    "Scores": "scoring",
    "Suite": "suites",
    "SuiteError": "errors",
    "Video": "video_io",
    "VideoError": "errors",
    "bootstrap_interval": "statistics",
    "compare": "comparison",
    "contact_sheet": "sheets",
    "encode_mp4": "video_io",
    "evaluate_suite": "scoring",
    "generate": "generation",
    "interval_in_words": "report",
    "load_suite": "suites",
    "paired_differences": "plots",
    "paired_interval": "statistics",
    "read_mp4": "video_io",
    "reward_curves": "plots",
    "score_suite": "scoring",
    "verdict": "comparison",
    "write_mp4": "video_io",
    "write_report": "report",
}

__all__ = [
    "Comparison",
    "Evaluation",
    "Mp4Writer",
    "Scores",
    "Suite",
    "SuiteError",
    "Video",
    "VideoError",
    "bootstrap_interval",
    "compare",
    "contact_sheet",
    "encode_mp4",
    "evaluate_suite",
    "generate",
    "interval_in_words",
    "load_suite",
    "paired_differences",
    "paired_interval",
    "read_mp4",
    "reward_curves",
    "score_suite",
    "verdict",
    "write_mp4",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
