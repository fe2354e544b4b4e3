"""What each of VBench's sixteen dimensions reads, and what it needs to run.

From the code of VBench 0.1.5 (Apache-2.0). Seven dimensions look at the frames alone. The others
read words as well, each from another place: from the prompt, from the file's name, or from what
VBench's list says of its own prompts beside their text.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple


class Needs(NamedTuple):
    """Of one dimension.

    Attributes:
        reads: ``"frames"`` alone; the ``"prompt"``; the ``"action"`` in the file's name; what
            VBench's ``"list"`` says of the prompt, which no other prompt has.
        files: In VBench's folder of weights.
        detectron2: Whether the environment must have it.
        own: Whether it means something for prompts of your own, else why not.
    """

    reads: Literal["frames", "prompt", "action", "list"]
    files: tuple[str, ...]
    detectron2: bool = False
    own: str = ""


class Source(NamedTuple):
    """Where VBench fetches a file from, and about how many GB it has, if that is known here."""

    address: str
    gb: float | None = None


_HUB = "https://huggingface.co/"
_OURS = f"{_HUB}OpenGVLab/VBench_Used_Models"
_CLIP_B, _CLIP_L = "clip_model/ViT-B-32.pt", "clip_model/ViT-L-14.pt"
_GRIT = ("grit_model/grit_b_densecap_objectdet.pth",)
_VICLIP = ("ViCLIP/ViClip-InternVid-10M-FLT.pth", "ViCLIP/bpe_simple_vocab_16e6.txt.gz")
_LISTED = "it compares with what VBench's own list says of each prompt"

#: Dimension to what it needs, in the order of the leaderboard.
NEEDS: Final[Mapping[str, Needs]] = MappingProxyType(
    {
        "subject_consistency": Needs(
            "frames",
            (
                "dino_model/facebookresearch_dino_main/hubconf.py",
                "dino_model/dino_vitbase16_pretrain.pth",
            ),
        ),
        "background_consistency": Needs("frames", (_CLIP_B,)),
        "temporal_flickering": Needs("frames", ()),
        "motion_smoothness": Needs("frames", ("amt_model/amt-s.pth",)),
        "aesthetic_quality": Needs(
            "frames", (_CLIP_L, "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth")
        ),
        "imaging_quality": Needs("frames", ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",)),
        "dynamic_degree": Needs("frames", ("raft_model/models/raft-things.pth",)),
        "object_class": Needs("list", _GRIT, detectron2=True, own=_LISTED),
        "multiple_objects": Needs("list", _GRIT, detectron2=True, own=_LISTED),
        "human_action": Needs("action", ("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",)),
        "color": Needs("list", _GRIT, detectron2=True, own=_LISTED),
        "spatial_relationship": Needs("list", _GRIT, detectron2=True, own=_LISTED),
        "scene": Needs("list", ("caption_model/tag2text_swin_14m.pth",), own=_LISTED),
        "appearance_style": Needs("list", (_CLIP_B,), own=_LISTED),
        "temporal_style": Needs(
            "prompt",
            _VICLIP,
            own="it is the number of overall_consistency, on VBench's prompts of camera styles",
        ),
        "overall_consistency": Needs("prompt", _VICLIP),
    }
)
#: Dimension to its files in VBench's folder of weights.
WEIGHTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {name: needs.files for name, needs in NEEDS.items()}
)
#: Each file to where VBench fetches it from.
SOURCES: Final[Mapping[str, Source]] = MappingProxyType(
    {
        "dino_model/facebookresearch_dino_main/hubconf.py": Source(
            "https://github.com/facebookresearch/dino (clone)", 0.01
        ),
        "dino_model/dino_vitbase16_pretrain.pth": Source("https://dl.fbaipublicfiles.com", 0.34),
        _CLIP_B: Source("https://openaipublic.azureedge.net", 0.35),
        _CLIP_L: Source("https://openaipublic.azureedge.net", 0.93),
        "amt_model/amt-s.pth": Source(f"{_HUB}lalala125/AMT", 0.01),
        "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth": Source(
            "https://github.com/LAION-AI/aesthetic-predictor", 0.01
        ),
        "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth": Source(
            "https://github.com/chaofengc/IQA-PyTorch", 0.11
        ),
        "raft_model/models/raft-things.pth": Source("https://dl.dropboxusercontent.com", 0.08),
        _GRIT[0]: Source(_OURS),
        "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth": Source(_OURS),
        "caption_model/tag2text_swin_14m.pth": Source(f"{_HUB}spaces/xinyu1205/recognize-anything"),
        _VICLIP[0]: Source(_OURS),
        _VICLIP[1]: Source("https://github.com/openai/CLIP", 0.01),
    }
)


def absent_weights(dimensions: Iterable[str], cache: Path) -> dict[str, list[str]]:
    """Dimension to its files that are not in VBench's folder of weights; none for complete ones."""
    absent = {
        name: [file for file in WEIGHTS[name] if not (cache / file).exists()] for name in dimensions
    }
    return {name: files for name, files in absent.items() if files}


def describe(file: str) -> str:
    """A file of weights with its size and source.

    >>> describe("clip_model/ViT-B-32.pt")
    'clip_model/ViT-B-32.pt (about 0.35 GB, https://openaipublic.azureedge.net)'
    """
    source = SOURCES[file]
    size = "" if source.gb is None else f"about {source.gb:g} GB, "
    return f"{file} ({size}{source.address})"


def overview() -> list[str]:
    """A line for each dimension: what it reads, which prompts it can judge, what it needs."""
    lines = []
    for name, needs in NEEDS.items():
        prompts = "VBench's" if needs.own else "actions" if needs.reads == "action" else "any"
        sizes = [SOURCES[file].gb for file in needs.files]
        known = sum(size or 0 for size in sizes)
        weights = "none" if not sizes else f"about {known:.2g} GB" if all(sizes) else "large"
        extra = ", detectron2" if needs.detectron2 else ""
        lines.append(f"{name:<24}{needs.reads:<8}{prompts:<10}{weights}{extra}")
    return lines
