import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from astrolabe import session
from astrolabe.errors import ConfigError
from astrolabe.load import load
from astrolabe.run_folder import RunFolder
from astrolabe.tracking import Tracker
from astrolabe.watch import watch
from astrolabe.watch_app import make_app
from astrolabe.watch_data import describe, find_runs, read_samples, summarise
from astrolabe_eval import write_mp4


def make_run(path, steps=0):
    folder = RunFolder.claim(path)
    folder.begin(load(["tiny"], ["rewards.flow_mq.weight=0"]))
    log(folder, 1, steps)
    return folder


def log(folder, first, last, offset=0.0):
    with Tracker(folder) as tracker:
        for step in range(first, last + 1):
            tracker.log(step, {"reward/total": step + offset, "time/sample_s": 2.0})


def write_samples(folder, step=2, count=2):
    place = folder.samples / f"step-{step:06d}"
    for index in range(count):
        frames = np.full((8, 3, 48, 48), 20 * index, dtype=np.uint8)
        write_mp4(place / f"{index}.mp4", frames, 8.0, min_side=192)
    return place


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run", steps=3)


@pytest.fixture
def client(folder):
    return TestClient(make_app(folder.path), base_url="http://localhost")


# --- folders ---


def test_the_folder_of_a_run_is_one_run(folder):
    assert find_runs(folder.path) == {"run": folder.path.resolve()}


def test_runs_are_found_in_folders_and_a_model_is_none(tmp_path):
    make_run(tmp_path / "b")
    make_run(tmp_path / "more" / "a")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text('{"train"')
    (tmp_path / ".hidden").symlink_to(tmp_path / "b")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert list(find_runs(tmp_path)) == ["b", "more/a"]


def test_an_empty_folder_has_no_run_yet(tmp_path):
    assert find_runs(tmp_path) == {}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no folder .*missing'\. Give the folder that"):
        find_runs(tmp_path / "missing")
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match=r"is no run folder and holds none\. Give the folder"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "cannot be read"), ("[" * 10**5, "cannot be read"), ("[]", "holds no settings")],
)
def test_settings_that_cannot_be_read_are_refused(folder, content, problem):
    folder.config.write_text(content)
    with pytest.raises(ConfigError, match=problem):
        find_runs(folder.path)


def test_settings_of_another_version_are_shown_as_far_as_they_go(folder):
    folder.config.write_text('{"train": {"steps": "x"}, "model": {}, "rewards": 3, "rollout": []}')
    assert summarise(folder.path)["planned"] is None
    assert dict(describe(folder.path)["settings"])["model"] == "?"


def test_a_run_is_described(folder):
    write_samples(folder, step=2)
    (folder.samples / "step-000004").mkdir()
    folder.skipped.mkdir()
    (folder.skipped / "step-000003-0.safetensors").write_bytes(b"")
    about = describe(folder.path)
    assert dict(about["settings"])["rewards"] == "1.0 sharpness_vq + 1.0 tiny_ta"
    assert about["held_out"] == ["reward/flow_mq"]
    assert about["samples"] == [2]
    assert about["skipped"] == ["step-000003-0.safetensors"]
    assert not about["report"]


def test_a_run_that_has_not_begun_is_at_step_0(tmp_path):
    folder = make_run(tmp_path / "run")
    assert summarise(folder.path) == {"step": 0, "planned": 20, "total": None, "age": None}


def test_the_summary_has_the_last_whole_line(folder):
    with folder.metrics.open("a") as file:
        file.write('{"step": 4')
    summary = summarise(folder.path)
    assert (summary["step"], summary["total"]) == (3, 3.0)
    assert 0 <= summary["age"] < 60


def test_samples_are_described_by_their_index(folder):
    place = write_samples(folder, count=11)
    video = {"file": "1.mp4", "prompt": "a cat", "reward": 1.5, "rank": 1, "of": 4}
    video["scores"] = {"flow_mq": 0.5, "odd": "x"}
    (place / "index.json").write_text(json.dumps({"step": 2, "videos": [video, 3, {"file": []}]}))
    plain, known, *_, last = read_samples(folder.path, 2)
    assert (known["path"], last["path"]) == (
        "samples/step-000002/1.mp4",
        "samples/step-000002/10.mp4",
    )
    assert (known["prompt"], known["rank"], known["of"]) == ("a cat", 1, 4)
    assert known["scores"] == {"flow_mq": 0.5, "odd": None}
    assert (plain["prompt"], plain["reward"], plain["scores"]) == (None, None, {})


@pytest.mark.parametrize("index", ["{", "[]", '{"videos": 7}', '{"videos": null}'])
def test_videos_with_a_damaged_index_are_shown_without_it(folder, index):
    (write_samples(folder) / "index.json").write_text(index)
    assert [video["prompt"] for video in read_samples(folder.path, 2)] == [None, None]


# --- the server ---


def test_the_page_and_its_parts_are_served_without_inline_code(client):
    for name in ("/", "/watch.js", "/curves.js", "/watch.css"):
        answer = client.get(name)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    page = client.get("/").text
    assert "style=" not in page
    assert " on" + "click" not in page


def test_metrics_are_asked_for_by_offset(client, folder):
    first = client.get("/api/metrics", params={"run": "run"}).json()
    assert first["steps"] == [1, 2, 3]
    log(folder, 4, 4)
    query = {"run": "run", "offset": first["offset"], "mark": first["mark"]}
    assert client.get("/api/metrics", params=query).json()["steps"] == [4]


@pytest.mark.parametrize("offset", ["-1", "x", "9" * 30, "1e3"])
def test_an_offset_that_is_none_begins_anew(client, offset):
    answer = client.get("/api/metrics", params={"run": "run", "offset": offset})
    assert answer.json()["steps"] == [1, 2, 3]


def test_a_part_of_a_video_can_be_asked_for(client, folder):
    data = (write_samples(folder) / "0.mp4").read_bytes()
    query = {"run": "run", "path": "samples/step-000002/0.mp4"}
    answer = client.get("/api/file", params=query, headers={"range": "bytes=4-11"})
    assert (answer.status_code, answer.content) == (206, data[4:12])
    assert answer.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "config.json",
        "checkpoints/step-000001/state.json",
        "samples/step-000002/index.json",
        "samples/step-000002/missing.mp4",
        "samples/step-000002/.0.mp4",
        "samples/step-000002/link.mp4",
        "samples/step-000002/pipe.mp4",
        "samples/step-000002/../../../secret.mp4",
        "samples/step-000002/..%2f..%2f..%2fsecret.mp4",
        "../secret.mp4",
        "report.html",
        "report.html/../config.json",
        "samples/step-000002/0.mp4\0",
    ],
)
def test_no_other_file_is_given_out(client, folder, path):
    place = write_samples(folder)
    secret = folder.path.parent / "secret.mp4"
    secret.write_text("secret")
    (place / "link.mp4").symlink_to(secret)
    folder.report.symlink_to(secret)
    os.mkfifo(place / "pipe.mp4")
    answer = client.get("/api/file", params={"run": "run", "path": path})
    assert answer.status_code == 404
    assert "secret" not in answer.text.replace("secret.mp4", "")
    absolute = client.get("/api/file", params={"run": "run", "path": str(secret)})
    assert absolute.status_code == 404


def test_metrics_that_are_a_link_out_of_the_folder_are_not_read(client, folder):
    elsewhere = folder.path.parent / "elsewhere.jsonl"
    folder.metrics.rename(elsewhere)
    folder.metrics.symlink_to(elsewhere)
    assert client.get("/api/metrics", params={"run": "run"}).json()["steps"] == []
    assert client.get("/api/runs").json()[0]["step"] == 0


def test_settings_that_are_a_link_out_of_the_folder_are_not_read(client, folder):
    elsewhere = folder.path.parent / "elsewhere.json"
    folder.config.rename(elsewhere)
    folder.config.symlink_to(elsewhere)
    answer = client.get("/api/run", params={"run": "run"})
    assert answer.status_code == 404
    assert "no file of this folder" in answer.json()["error"]


def test_a_report_runs_its_script_apart_from_this_server(client, folder):
    folder.report.write_text("<h1>Report</h1>")
    answer = client.get("/api/file", params={"run": "run", "path": "report.html"})
    assert "sandbox allow-scripts" in answer.headers["content-security-policy"]
    assert "connect-src" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("run", ["", "..", "other", "run/../run", "\0"])
def test_an_unknown_run_is_not_found(client, run):
    for what in ("run", "metrics", "samples", "file"):
        answer = client.get(f"/api/{what}", params={"run": run})
        assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_a_foreign_name_of_this_machine_is_refused(folder):
    foreign = {"host": "evil.example"}
    assert TestClient(make_app(folder.path)).get("/", headers=foreign).status_code == 400
    shared = TestClient(make_app(folder.path, local=False))
    assert shared.get("/", headers=foreign).status_code == 200
    ours = TestClient(make_app(folder.path))
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert ours.get("/", headers={"host": host}).status_code == 200


def test_what_no_browser_sends_for_this_page_is_refused(client):
    for headers, status in (
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost"}, 200),
        ({"content-length": "7"}, 400),
        ({"transfer-encoding": "chunked"}, 411),
        ({"transfer-encoding": "chunked", "content-length": "7"}, 400),
    ):
        answer = client.get("/api/runs", headers=headers)
        assert answer.status_code == status
        assert "content-security-policy" in answer.headers
        assert (answer.headers.get("connection") == "close") == (status != 200)


def test_nothing_can_be_sent_and_nothing_is_written(client, folder):
    write_samples(folder)

    def state():
        return {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}

    before = state()
    for what in ("runs", "run", "metrics", "samples", "file"):
        query = {"run": "run", "step": 2, "path": "samples/step-000002/0.mp4"}
        assert client.get(f"/api/{what}", params=query).status_code == 200
        assert client.post(f"/api/{what}", params=query).status_code == 405
    assert state() == before


def test_half_a_character_in_a_prompt_does_not_break_the_answer(client, folder):
    index = {"videos": [{"file": "0.mp4", "prompt": "\ud800 <b>"}]}
    (write_samples(folder) / "index.json").write_text(json.dumps(index))
    answer = client.get("/api/samples", params={"run": "run", "step": 2})
    assert answer.json()[0]["prompt"] == "\ud800 <b>"


# --- the command ---


def test_a_port_that_is_taken_is_told(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"port {port}: .*already in use\. Give another --port"
        ):
            watch(folder.path, port=port, say=print)


def test_an_address_that_cannot_be_is_told(folder):
    with pytest.raises(ConfigError, match=r"cannot listen at no\.such\.host.*another --host"):
        watch(folder.path, host="no.such.host.invalid", say=print)
    for host in (".", "a" * 5000, "na\u2028me"):
        with pytest.raises(ConfigError, match=r"--host is .*no name of a machine"):
            watch(folder.path, host=host, say=print)
    with pytest.raises(ConfigError, match="there is no port 70000"):
        watch(folder.path, port=70000, say=print)


def test_an_address_that_others_reach_comes_with_a_warning(folder, monkeypatch):
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    told = []
    watch(folder.path, say=told.append)
    assert len(told) == 1
    watch(folder.path, host="0.0.0.0", say=told.append)
    assert told[-1].startswith("WARNING: whoever can reach 0.0.0.0 can see these runs")


def test_it_serves_until_ctrl_c_and_never_loads_torch(folder):
    code = (
        "import sys; from pathlib import Path; from astrolabe.watch import watch\n"
        "watch(Path(sys.argv[1]), say=lambda text: print(text, flush=True))\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split(" at ")[1].split()[0]
        deadline = time.monotonic() + 30
        with urllib.request.urlopen(f"{url}api/runs", timeout=30) as answer:
            assert json.load(answer)[0]["step"] == 3
        port = int(url.rpartition(":")[2].strip("/"))
        silent = socket.create_connection(("127.0.0.1", port))  # does not hold up the end
        process.send_signal(signal.SIGINT)
        assert process.wait(max(deadline - time.monotonic(), 1)) == 0
        silent.close()


def test_what_training_writes_can_be_watched(small_run, tmp_path):
    run = replace(small_run, evaluation=replace(small_run.evaluation, at_end=False))
    assert session.start(run, tmp_path / "run") == 0
    client = TestClient(make_app(tmp_path / "run"), base_url="http://localhost")
    assert client.get("/api/runs").json()[0]["step"] == 3
    piece = client.get("/api/metrics", params={"run": "run"}).json()
    assert (piece["steps"], piece["damaged"]) == ([1, 2, 3], 0)
    assert {"reward/total", "monitor/motion", "guard/alarm", "time/sample_s"} <= set(
        piece["values"]
    )
    videos = client.get("/api/samples", params={"run": "run", "step": 1}).json()
    query = {"run": "run", "path": videos[0]["path"]}
    assert client.get("/api/file", params=query).content[4:8] == b"ftyp"
