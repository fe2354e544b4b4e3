import json
import logging
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from astrolabe.config import Part
from astrolabe.crash import report
from astrolabe.masking import known_secrets, mask, mask_settings
from astrolabe.rank_log import log_to
from astrolabe.run_folder import RunFolder
from astrolabe.stacks import place_for
from astrolabe.world import ALONE, World

LOG = logging.getLogger("astrolabe.test")

#: By the place where it stands.
SECRETS = {
    "option": "opt-7c1f",
    "nested": "nest-91ab",
    "number": "55512309",
    "url": "url-pass-33",
    "query": "query-0a9d",
    "environment": "env-4410",
    "nccl": "nccl-8123",
    "log": "log-d00d",
    "bearer": "bear.er/77+x=",
    "message": "msg,semi;88",
    "cause": "cause-19",
    "repr": "it's-repr",
    "hub": "hf_AbCdEfGhIjKl",
}


@pytest.fixture
def broken(small_run, tmp_path, monkeypatch):
    """A run with a secret in each place, in a folder with metrics and logs of two ranks."""
    options = {
        "api_key": SECRETS["option"],
        "login": {"passwords": [SECRETS["nested"]], "token": int(SECRETS["number"])},
        "url": f"https://me:{SECRETS['url']}@host/x?a=1&access_token={SECRETS['query']}&b=2",
        "max_tokens": 4096,
        "path": str(Path.home() / "models"),
    }
    run = replace(small_run, model=Part("tiny", options))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.begin(run)
    rows = [{"step": step, "reward/total": step / 2, "a": None} for step in range(1, 31)]
    folder.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setenv("MY_TOKEN", SECRETS["environment"])
    monkeypatch.setenv("NCCL_PASSWORD", SECRETS["nccl"])
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("UNRELATED", "not to be told")
    for rank in (0, 1):
        with log_to(folder.path, World(rank, 2), known_secrets(options, os.environ)):
            for number in range(300):
                LOG.info(f"line {number}")
            LOG.info(json.dumps({"secret_key": SECRETS["log"], "n": 1}))
            LOG.info(f"Authorization: Bearer {SECRETS['bearer']} sent to {Path.home()}/here")
            LOG.info(
                f"went to {SECRETS['environment']} and {SECRETS['option']} and {SECRETS['hub']}"
            )
    return folder, run


@pytest.fixture
def error():
    try:
        try:
            raise KeyError(f"password={SECRETS['cause']}")
        except KeyError as cause:
            repr_of = {"auth_token": SECRETS["repr"]}
            raise ValueError(f"password = '{SECRETS['message']}' in {repr_of}") from cause
    except ValueError as raised:
        return raised


def contents(place):
    return {path.name: path.read_text() for path in place.iterdir()}


def test_a_report_holds_what_an_issue_needs(broken, error):
    folder, run = broken
    place = report(folder, run, error, World(1, 2))
    assert place.parent == folder.path / "crash"
    found = contents(place)
    assert sorted(found) == [
        "README.txt",
        "config.json",
        "log-tail-rank-0.txt",
        "log-tail-rank-1.txt",
        "metrics-tail.jsonl",
        "stacks-rank-1.txt",
        "versions.json",
    ]
    steps = [json.loads(line)["step"] for line in found["metrics-tail.jsonl"].splitlines()]
    assert steps == list(range(11, 31))
    assert len(found["log-tail-rank-0.txt"].splitlines()) == 200
    assert "INFO astrolabe.test: line 299" in found["log-tail-rank-1.txt"]
    assert json.loads(found["config.json"])["model"]["options"]["max_tokens"] == 4096
    assert json.loads(found["config.json"])["train"]["lr"] == run.train.lr
    assert "attach this folder" in found["README.txt"]


def test_the_traceback_has_the_chain_of_errors_and_all_threads(broken, error):
    text = contents(report(*broken, error, ALONE))["stacks-rank-0.txt"]
    assert text.index("KeyError") < text.index("direct cause") < text.index("ValueError")
    assert "Thread MainThread" in text


def test_no_secret_is_in_any_file_of_a_report(broken, error):
    found = contents(report(*broken, error, World(0, 2)))
    whole = "\n".join(found.values())
    left = {place for place, secret in SECRETS.items() if secret in whole}
    assert left == set()
    assert str(Path.home()) not in whole
    assert "not to be told" not in whole


def test_no_secret_is_in_the_settings_or_the_log_of_a_run(broken):
    folder, run = broken
    written = folder.config.read_text() + (folder.path / "logs" / "rank-000.jsonl").read_text()
    assert {place for place, secret in SECRETS.items() if secret in written} == set()
    assert str(Path.home()) in written  # paths stay what they are
    assert RunFolder.open(folder.path, known=run)[1] == run


def test_of_the_environment_only_what_says_how_processes_run_is_told(broken, error, monkeypatch):
    monkeypatch.setenv("GROUP_WORLD_SIZE", "6")
    found = json.loads(contents(report(*broken, error, World(0, 48)))["versions.json"])
    assert found["environment"]["NCCL_DEBUG"] == "WARN"
    assert found["environment"]["NCCL_PASSWORD"] == "***"
    assert "MY_TOKEN" not in found["environment"]
    assert "HOME" not in found["environment"]
    assert (found["processes"], found["hosts"]) == (48, 6)
    assert found["packages"]["torch"]
    assert platform.node() not in json.dumps({**found, "packages": None})


def test_a_folder_that_cannot_be_written_raises_nothing(broken, error):
    folder, run = broken
    (folder.path / "crash").write_text("in the way")
    assert report(folder, run, error, ALONE).parent.name == "crash"
    assert (folder.path / "crash").read_text() == "in the way"


def test_what_is_missing_is_left_out(small_run, tmp_path, error):
    place = report(RunFolder(tmp_path / "new"), small_run, error, ALONE)
    assert sorted(contents(place)) == [
        "README.txt",
        "config.json",
        "stacks-rank-0.txt",
        "versions.json",
    ]


def test_ranks_that_fail_together_write_into_one_folder_and_a_restart_into_another(tmp_path):
    first = place_for(tmp_path, 0)
    first.mkdir(parents=True)
    (first / "stacks-rank-0.txt").write_text("")
    assert place_for(tmp_path, 1) == first
    old = tmp_path / "crash" / "2020-01-01T00-00-00Z"
    first.rename(old)
    assert place_for(tmp_path, 1) != old
    assert place_for(tmp_path, 0) != old


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--hub-token abc --steps 3", "--hub-token *** --steps 3"),
        ("postgres://u:p%40ss@db:5432/x", "postgres://***@db:5432/x"),
        ("https://host/?n=1&token=abc&m=2#end", "https://host/?n=1&token=***&m=2#end"),
        ('{"apiKey": "a b", "n": 1}', '{"apiKey": ***, "n": 1}'),
        ("{'password': 'it''s'}", "{'password': ***"),
        ("curl -H 'Authorization: Bearer abc.def'", "curl -H 'Authorization: Bearer ***'"),
        ("AKIAABCDEFGHIJKLMNOP ghp_0123456789ab", "*** ***"),
        ("tokenizer: t5, keyframes: 3, monkey: yes", "tokenizer: t5, keyframes: 3, monkey: yes"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END", "***"),
    ],
)
def test_secrets_are_masked_in_any_text(text, expected):
    masked = mask(text, [])
    assert masked.startswith(expected)
    assert "abc" not in masked


def test_a_known_secret_is_masked_wherever_it_stands_and_a_short_one_is_not():
    known = known_secrets({"a": {"api_key": "sesame-open", "token": "ab"}}, {"X_SECRET": "sesame"})
    assert known == ["sesame-open", "sesame"]
    assert known_secrets({"PWD": "/a/folder", "OLDPWD": "/a/folder", "DB_PWD": "hunter2"}) == [
        "hunter2"
    ]
    assert mask("say sesame-open or sesame, abc", known) == "say *** or ***, abc"


def test_settings_stay_what_they_are_but_for_secrets():
    settings = {"lr": 1e-5, "on": True, "token": None, "keys": 3, "key": 3, "list": ["a", 1]}
    assert mask_settings(settings, []) == settings | {"key": "***"}


def test_a_long_line_is_masked_in_no_time():
    text = "a" * 200_000 + " " + "key" * 50_000
    assert len(mask(text, [])) > 0


def test_the_home_directory_is_shortened_and_no_other(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert Path.home() == Path("/home/me")
    assert mask("/home/me/a /home/me", []) == "~/a ~"
    assert mask("/home/meg/a", []) == "/home/meg/a"
    assert os.environ["HOME"] not in mask("in '/home/me'", [])
