"""Weights in the layouts of all families, small: the real path from the command line."""

import importlib.util
from pathlib import Path

import pytest

from astrolabe.cli import main
from astrolabe_eval import read_mp4

TOOL = Path(__file__).parents[2] / "tools" / "make_small_weights.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_small_weights", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tool.write(folder)
    return folder


@pytest.mark.parametrize("family", ["self-forcing", "longlive", "krea-14b", "wan-1.3b"])
def test_each_family_films_with_small_weights_of_its_layout(
    tool, weights, family, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(tool.command(family, weights))
    assert not end.value.code
    assert len(read_mp4(tmp_path / "videos" / family / "000-a-cat-runs.mp4").frames) == 9


def test_small_weights_are_let_in_only_where_that_is_asked_for(tool, weights, capsys):
    words = [word.replace("size=any", "size=1.3b") for word in tool.command("wan-1.3b", weights)]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "Set size=any" in " ".join(capsys.readouterr().err.split())
