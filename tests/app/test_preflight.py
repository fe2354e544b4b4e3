"""What a run needs is found before anything is started."""

import http.server
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from astrolabe.errors import ConfigError, MissingError
from astrolabe.load import load
from astrolabe.preflight import check, part_lacks
from astrolabe.registry import find, names

TINY = ["tiny"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def missing(overrides, recipes=TINY, out=None):
    with pytest.raises(MissingError) as refused:
        check(load(recipes, overrides), out)
    return str(refused.value)


def alone(code, **environment):
    """Run Python in a process with an empty cache of the hub."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HOME": str(Path("hub").absolute())} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_without_anything_is_told_all_at_once_and_nothing_is_made(tmp_path):
    code = (
        "import sys\nfrom astrolabe.cli import main\n"
        "try:\n    main(['train', 'self_forcing_multi', '--out', 'runs/a'])\n"
        "finally:\n    assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    done = alone(code)
    assert done.returncode == 2
    assert done.stdout == ""
    first, *lines = done.stderr.splitlines()
    assert first.startswith("error: 8 things are missing that this run needs, 50.1 GB")
    settings = (
        *("model.options.checkpoint", "model.options.components", "rewards.hpsv3.options.weights"),
        *("rewards.hpsv3.options.base", "rewards.videoalign_mq.options.weights"),
        *("rewards.videoalign_ta.options.base", "rollout.prompts", "evaluation.prompts"),
    )
    assert len(lines) == 8
    for setting, line in zip(settings, lines, strict=True):
        assert f"--set {setting}=" in line
    assert sum("Get it: hf download " in line for line in lines) == 6
    assert list(tmp_path.iterdir()) == []


def test_what_the_report_needs_counts_only_if_there_is_one():
    overrides = ["evaluation.prompts=mine.txt", "evaluation.judges.hpsv2.weight=1"]
    text = missing(overrides)
    assert "prompt file 'mine.txt'" in text
    assert "xswu/HPSv2/HPS_v2.1_compressed.pt" in text
    assert check(load(TINY, [*overrides, "evaluation.at_end=false"])) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["rollout.prompts=a.txt"], "there is no prompt file 'a.txt': no such file is here"),
        (["evaluation.prompts=vbench.json"], "prompt file 'vbench.json'"),
        (["lora.start=no/adapter/lora.pt"], "LoRA 'no/adapter/lora.pt': it is not on this machine"),
        (["lora.start=/no/adapter"], "LoRA '/no/adapter': there is no such path"),
        (["rewards.raft_dynamics.weight=0"], "raft_large_C_T_SKHT_V2-ff5fadd5.pth' (21.1 MB)"),
        (
            ["rewards.far.name=remote", 'rewards.far.options.url="http://127.0.0.1:9"'],
            "Get it: astrolabe serve-rewards",
        ),
        (["logging.backends=['wandb']"], "wandb"),
        (["model.options.path=nowhere"], "there is no 'nowhere/transformer.safetensors'"),
    ],
)
def test_one_thing_that_is_missing_is_one_line(overrides, line):
    text = missing(overrides)
    assert line in text
    assert "\n" not in text


def test_a_server_that_answers_is_not_missing():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        run = load(TINY, ["rewards.far.name=remote", f'rewards.far.options.url="{url}"'])
        assert check(run) == []


def test_a_misspelt_option_is_named_beside_what_is_missing_for_it(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    text = missing(["model.name=self-forcing", "model.options.chekpoint=model.pt"])
    assert "there is no option 'chekpoint'" in text
    assert "did you mean 'checkpoint'?" in text


def test_weights_that_are_here_are_not_missing(tmp_path):
    for part in ("text_encoder", "tokenizer", "vae"):
        (tmp_path / "wan" / part).mkdir(parents=True)
    (tmp_path / "model.pt").write_bytes(b"")
    given = [
        "model.name=self-forcing",
        "model.options.checkpoint=model.pt",
        "model.options.components=wan",
    ]
    assert check(load(TINY, given)) == []
    (tmp_path / "wan" / "vae").rmdir()
    assert "it lacks vae" in missing(given)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "'file/run': '" in missing([], out=Path("file/run"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux")
def test_a_folder_in_which_no_file_can_be_made_is_named_whatever_its_permissions():
    assert "'/proc' is not writable" in missing([], out=Path("/proc/no/run"))


def test_a_writable_folder_is_left_as_it_was():
    check(load(TINY, []), Path("made/later"))
    assert not list(Path().iterdir())


def test_every_reward_with_weights_says_where_they_are():
    needy = {name for name in names("rewards") if "`" in find("rewards", name, "").weights_from}
    assert {"hpsv3", "videoalign_ta", "clip", "raft_dynamics"} <= needy
    for name in needy:
        found = part_lacks("rewards", name, {}, f"rewards.{name}")
        sources = find("rewards", name, "").weights_from
        assert found, name
        assert all(one.fetch and one.settings for one in found)
        assert all(one.hub in sources for one in found if one.hub), name


@pytest.mark.parametrize("name", [name for name in names("models") if name != "tiny"])
def test_every_family_says_where_its_weights_are(name):
    given = {"checkpoint": "a/b/c.pt"} if name.startswith("wan-") else {}
    found = part_lacks("models", name, given, "model")
    assert {one.settings[0][0] for one in found} >= {
        "model.options.checkpoint",
        "model.options.components",
    }


def test_a_part_of_another_package_says_itself_what_it_needs(monkeypatch):
    wanted = {"what": "atlas", "source": "atlas.bin", "option": "atlas", "why": "it is not here"}
    needs = types.ModuleType("mine.needs")
    needs.lacks = lambda target, options: [wanted] if target == "mine.rewards:Map" else []
    package = types.ModuleType("mine")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "mine", package)
    monkeypatch.setitem(sys.modules, "mine.needs", needs)
    assert "atlas 'atlas.bin': it is not here" in missing(["rewards.map.name=mine.rewards:Map"])
    assert check(load(TINY, ["rewards.map.name=mine.rewards:Other"])) == []


def test_what_several_settings_want_is_said_once():
    text = missing([], ["self_forcing_multi"])
    assert text.count("KlingTeam/VideoReward'") == 1


def test_libraries_of_one_command_are_one_line(monkeypatch):
    import astrolabe_rewards.needs

    monkeypatch.setattr(astrolabe_rewards.needs, "find_spec", lambda name: None)
    text = missing(["rewards.vlm_judge.options.model=m", "rewards.hpsv2.weight=1"])
    (judge,) = [line for line in text.splitlines() if "httpx, PIL" in line]
    assert "Do: pip install 'httpx>=" in judge
    assert "'open_clip'" in text


class _Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one open, one gated and no other repository."""

    def do_GET(self):
        _, _, _, owner, name, *rest = self.path.partition("?")[0].split("/")
        status, headers, content = 404, {"X-Error-Code": "RepoNotFound"}, {"error": "no"}
        if owner == "open" or (owner == "gated" and not rest):
            files = [{"rfilename": "a.pt", "size": 3_000_000}, {"rfilename": "b.pt", "size": 5}]
            content = {"id": f"{owner}/{name}", "siblings": files, "gated": owner == "gated"}
            status, headers = 200, {}
        elif owner == "gated":
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def test_the_hub_tells_sizes_licences_and_absence():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = (
            "from astrolabe.preflight import check\nfrom astrolabe.load import load\n"
            "def run(source):\n"
            "    try:\n"
            "        print(check(load(['tiny'], [f'lora.start={source}'])))\n"
            "    except ValueError as error:\n"
            "        print(error)\n"
            "for name in ('open/r/a.pt', 'open/r/c.pt', 'gated/r/a.pt', 'gone/r/a.pt'):\n"
            "    run(name)\n"
        )
        url = f"http://127.0.0.1:{server.server_port}"
        done = alone(code, HF_ENDPOINT=url, HF_HUB_OFFLINE="0")
        server.shutdown()
    there, no_file, gated, gone = done.stdout.splitlines()
    assert there == "['open/r/a.pt (3.0 MB)']"
    assert "open/r has no c.pt" in no_file
    assert f"accept it at {url}/gated/r, then set HF_TOKEN" in gated
    assert "shows no gone/r to you" in gone


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logging.tracker_options.wandb.offline=true"], "not among logging.backends"),
        (["model.name=tinny"], "Did you mean 'tiny'"),
        (["rollout.prompts=tiny_trian"], "Did you mean 'tiny_train'"),
    ],
)
def test_what_is_wrong_is_refused_before_what_is_missing(overrides, message):
    with pytest.raises((ConfigError, LookupError), match=message):
        check(load(TINY, [*overrides, "lora.start=/no/where"]))
