import subprocess
import sys
from importlib.metadata import entry_points

import astrolabe_rewards


def test_importing_the_package_is_light():
    heavy = ("cv2", "skimage", "scipy", "torchrl", "diffusers", "transformers")
    code = (
        f"import sys, astrolabe_rewards; print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_public_names_can_be_had():
    for name in astrolabe_rewards.__all__:
        assert getattr(astrolabe_rewards, name).__name__ == name


def test_every_built_in_is_offered_under_its_own_name():
    offered = {entry.name: entry for entry in entry_points(group="astrolabe.rewards")}
    for name in ("attribute_ta", "flow_mq", "pixel_check", "sharpness_vq", "tiny_ta"):
        assert offered[name].load().name == name
