"""What each distribution says of itself: version, licence, and all that it imports."""

import re
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = sorted(path.parent for path in ROOT.glob("*/*/pyproject.toml"))
OWN = {path.name.replace("-", "_") for path in MEMBERS}
IMPORT = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
#: Under which name a module is published, where that differs.
PUBLISHED = {"PIL": "pillow", "cv2": "opencv-python-headless", "open_clip": "open-clip-torch"}


def project(member):
    return tomllib.loads((member / "pyproject.toml").read_text())["project"]


def named(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def asked(member):
    """What a member asks for with all of its extras, and, of its siblings, with those it names."""
    told = project(member)
    for line in chain(told["dependencies"], *told.get("optional-dependencies", {}).values()):
        sibling = ROOT / "packages" / named(line)
        yield from asked(sibling) if sibling.is_dir() else [named(line)]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_package_knows_its_version_and_ships_its_licence(member):
    assert len(MEMBERS) == 5
    assert import_module(member.name.replace("-", "_")).__version__ == version(member.name)
    assert project(member)["license-files"] == ["LICENSE"]
    assert (member / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_package_asks_for_all_that_it_imports_and_for_nothing_else(member):
    imported = set()
    for file in member.glob("src/**/*.py"):
        found = IMPORT.findall(file.read_text("utf-8"))
        imported |= {name for name in found if name not in sys.stdlib_module_names | OWN}
    # What is no module is prose.
    wanted = {PUBLISHED.get(name, name.replace("_", "-")) for name in imported if find_spec(name)}
    assert wanted <= {*asked(member)}
    if member.parent.name == "packages":
        # TorchRL imports ray, a README the others.
        indirect = {"ray"} | ({"diffusers", "peft"} if "objectives" in member.name else set())
        assert {*asked(member)} - wanted <= indirect
