"""What the rewards of this package need from disk, hub or elsewhere, told without building them.

Light on purpose: torch is not imported, so that what is missing can be said within a second. The
classes read where their weights are from here.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from astrolabe_rewards.wanted import Wanted

#: Modules that an extra of this package brings, as they are imported.
EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "clip": ("transformers", "PIL"),
    "flow": ("torchvision",),
    "judge": ("httpx", "PIL"),
    "opencv": ("cv2",),
    "openclip": ("open_clip",),
    "qwen": ("transformers", "PIL"),
    "serve": ("httpx",),
    "video": ("av",),
}
#: Files of a model folder of transformers.
MODEL_SETTINGS: Final = ("*.json", "*.txt", "*.model")
MODEL_WEIGHTS: Final = ("model*.safetensors", "pytorch_model*.bin")
VOCABULARIES: Final = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
#: VideoReward's settings, and what is needed of its repository.
VIDEOREWARD_CONFIG: Final = "model_config.json"
VIDEOREWARD_FILES: Final = (
    VIDEOREWARD_CONFIG,
    "checkpoint-*/*.pth",
    "checkpoint-*/*.safetensors",
)
#: torchvision's files of RAFT, by the size of the network, and their bytes.
RAFT_FILES: Final = {
    "large": "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    "small": "raft_small_C_T_V2-01064c6d.pth",
}
RAFT_BYTES: Final = {"large": 21_100_000, "small": 4_000_000}
RAFT_URL: Final = "https://download.pytorch.org/models"
#: What starts a server of rewards, in Python.
SERVE: Final = "RewardServer({NAME: reward}).run()"
#: Seconds in which a server must take a connection.
CONNECT: Final = 3.0


@dataclass(frozen=True)
class Published:
    """Weights, or a model's settings, as they are published.

    Attributes:
        source: ``owner/repository`` or ``owner/repository/file`` of the Hugging Face hub.
        size: Bytes, about.
        files: See `Wanted`; empty: the file that ``source`` names.
        groups: See `Wanted`.
        beside: See `Wanted`.
        what: What it is of ``{}``, the reward.
        option: The option that names it.
    """

    source: str
    size: int
    files: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    beside: tuple[str, ...] = ()
    what: str = "weights of {}"
    option: str = "weights"

    @property
    def file(self) -> str:
        """Name of the only file."""
        return self.source.rpartition("/")[2]

    def wanted(self, asker: str, source: str | None = None) -> Wanted:
        """Return it as a reward wants it.

        Args:
            asker: Name of the reward.
            source: Where it is; None: where it is published.
        """
        return Wanted(
            self.source if source is None else source,
            self.source,
            self.what.format(asker),
            self.option,
            self.files or (self.file,),
            self.beside,
            self.groups,
            self.size,
        )


def _model(source: str, size: int, option: str = "weights") -> Published:
    """A model of transformers."""
    groups = (MODEL_WEIGHTS, ("config.json",))
    return Published(source, size, MODEL_SETTINGS + MODEL_WEIGHTS, groups, option=option)


def _settings(source: str) -> Published:
    """The settings and the tokenizer of a model of transformers, without its weights."""
    what = "config and tokenizer of {}"
    groups = (VOCABULARIES,)
    return Published(source, 3_000_000, MODEL_SETTINGS, groups, what=what, option="base")


def _qwen(source: str) -> Published:
    what = "config and tokenizer of {}'s base model"
    return Published(source, 7_000_000, ("config.json", "tokenizer.json"), what=what, option="base")


HPSV3: Final = Published("MizzenAI/HPSv3/HPSv3.safetensors", 16_600_000_000)
HPSV3_BASE: Final = _qwen("Qwen/Qwen2-VL-7B-Instruct")
VIDEOREWARD: Final = Published(
    "KlingTeam/VideoReward",
    4_600_000_000,
    VIDEOREWARD_FILES,
    ((*VIDEOREWARD_FILES[1:], "model.safetensors", "model.pth", "adapter_model.safetensors"),),
    (VIDEOREWARD_CONFIG,),
)
VIDEOREWARD_BASE: Final = _qwen("Qwen/Qwen2-VL-2B-Instruct")
HPSV2: Final = Published("xswu/HPSv2/HPS_v2.1_compressed.pt", 1_970_000_000)
IMAGE_REWARD: Final = Published("THUDM/ImageReward/ImageReward.pt", 1_790_000_000)
IMAGE_REWARD_BASE: Final = _settings("google-bert/bert-base-uncased")
CLIP: Final = _model("openai/clip-vit-base-patch32", 605_000_000)
PICKSCORE: Final = _model("yuvalkirstain/PickScore_v1", 3_940_000_000)
PICKSCORE_BASE: Final = _settings("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
AESTHETIC: Final = Published(
    "camenduru/improved-aesthetic-predictor/sac+logos+ava1-l14-linearMSE.pth", 3_700_000
)
AESTHETIC_BASE: Final = _model("openai/clip-vit-large-patch14", 1_710_000_000, "base")

#: Extra, and published things, of each reward by ``module:Class``.
_NEEDS: Final[dict[str, tuple[str, tuple[Published, ...]]]] = {
    "hpsv3:HPSv3": ("qwen", (HPSV3, HPSV3_BASE)),
    "videoalign:VideoAlignVQ": ("qwen", (VIDEOREWARD, VIDEOREWARD_BASE)),
    "videoalign:VideoAlignMQ": ("qwen", (VIDEOREWARD, VIDEOREWARD_BASE)),
    "videoalign:VideoAlignTA": ("qwen", (VIDEOREWARD, VIDEOREWARD_BASE)),
    "hpsv2:HPSv2": ("openclip", (HPSV2,)),
    "image_reward:ImageReward": ("clip", (IMAGE_REWARD, IMAGE_REWARD_BASE)),
    "clip:CLIPScore": ("clip", (CLIP,)),
    "pickscore:PickScore": ("clip", (PICKSCORE, PICKSCORE_BASE)),
    "aesthetic:LaionAesthetic": ("clip", (AESTHETIC, AESTHETIC_BASE)),
    "raft:RaftDynamics": ("flow", ()),
    "attributes:AttributeTA": ("opencv", ()),
    "motion:FlowMQ": ("opencv", ()),
    "pixel_check:PixelCheck": ("opencv", ()),
    "quality:SharpnessVQ": ("opencv", ()),
    "vlm_judge:VLMJudge": ("judge", ()),
    "client:RemoteReward": ("serve", ()),
}
#: Where RemoteReward and VLMJudge look for their server.
SERVERS: Final = {"client:RemoteReward": "", "vlm_judge:VLMJudge": "http://127.0.0.1:8000/v1"}


def lacks(target: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a reward of this package needs and is not there.

    Args:
        target: ``"module:attribute"`` of the part, as its entry point says.
        options: Arguments of its constructor.

    Returns:
        For each thing that is missing: ``what`` it is, its ``source``, ``why`` it counts as
        missing, its size in ``bytes`` (0: not known), the ``option`` that names it; if something
        fetches it, the command ``fetch`` and the ``value`` that the option then gets; if the hub
        has it, the repository ``hub`` and the patterns ``files``.

    Example:
        >>> lacks("astrolabe_rewards.quality:SharpnessVQ", {})
        []
    """
    name = target.removeprefix("astrolabe_rewards.")
    if name == "worker:ScoringWorker":
        elsewhere = options.get("python") or options.get("requirements")
        inner = str(options.get("target", ""))
        return [] if elsewhere else lacks(inner, options.get("options") or {})
    if name not in _NEEDS:
        return []
    extra, published = _NEEDS[name]
    found = _libraries(extra, options)
    # The name of a reward in messages is that of its module: the classes say it again.
    asker = name.partition(":")[0]
    for one in published:
        source = options.get(one.option)
        missing = one.wanted(asker, None if source is None else str(source)).lacking()
        found += [missing] if missing else []
    if name == "raft:RaftDynamics":
        found += _raft(options)
    if name in SERVERS:
        found += _server(str(options.get("url") or SERVERS[name]), name)
    return found


def installs(extra: str) -> str:
    """Return the command that installs what an extra brings, wherever this package came from.

    Example:
        >>> installs("openclip").startswith("pip install 'huggingface-hub>=")
        True
    """
    marked = re.compile(rf"(.+?)\s*;.*extra == ['\"]{extra}['\"]")
    found = [
        match[1] for line in requires("astrolabe-rewards") or () if (match := marked.match(line))
    ]
    return f"pip install {' '.join(repr(one) for one in found)}"


def require(extra: str, asker: str) -> None:
    """Refuse to go on without what an extra brings.

    Args:
        extra: One of ``EXTRAS``.
        asker: The reward, for the message.

    Raises:
        ModuleNotFoundError: If some of it is not installed.
    """
    absent = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if absent:
        raise ModuleNotFoundError(
            f"{asker} needs {' and '.join(absent)}. Install it: {installs(extra)}.", name=absent[0]
        )


def _libraries(extra: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    wanted = {name: installs(extra) for name in EXTRAS[extra]}
    if options.get("quantization"):
        wanted |= dict.fromkeys(
            ("bitsandbytes", "accelerate"), "pip install bitsandbytes accelerate"
        )
    return [
        {"what": "library", "source": name, "why": "it is not installed", "fetch": command}
        for name, command in wanted.items()
        if find_spec(name) is None
    ]


def _server(url: str, name: str) -> list[dict[str, Any]]:
    """What is missing if nobody answers at an address; whether it is one is for others to say."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return []
    if not parts.hostname or not port:
        return []
    try:
        socket.create_connection((parts.hostname, port), CONNECT).close()
    except OSError as error:
        served = name.startswith("client")
        start = SERVE if served else "vllm serve MODEL"
        reason = error.strerror or str(error)
        return [
            {
                "what": "server",
                "source": url,
                "option": "url",
                "why": f"nothing answers there ({reason})",
                "fetch": start,
                "value": "http://HOST:PORT" + parts.path,
            }
        ]
    return []


def raft_file(weights: str | None, size: str, hub: str) -> Path:
    """Return where RAFT's weights are, or ought to be.

    Args:
        weights: The file or its folder; None: where torchvision puts it, in ``hub``.
        size: "large" or "small".
        hub: The cache of torch.hub.
    """
    if weights is None:
        return Path(hub, "checkpoints", RAFT_FILES[size])
    file = Path(weights).expanduser()
    return file / RAFT_FILES[size] if file.is_dir() else file


def _raft(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    size = str(options.get("size") or "large")
    if size not in RAFT_FILES:
        return []
    # As torch.hub.get_dir has it.
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    hub = Path(os.environ.get("TORCH_HOME", f"{cache}/torch"), "hub").expanduser()
    file = raft_file(options.get("weights"), size, str(hub))
    if file.is_file():
        return []
    return [
        {
            "what": "weights of raft_dynamics",
            "source": str(file),
            "option": "weights",
            "why": "there is no such file",
            "fetch": f"curl -fLO {RAFT_URL}/{RAFT_FILES[size]}",
            "value": f"DIR/{RAFT_FILES[size]}",
            "bytes": RAFT_BYTES[size],
        }
    ]
