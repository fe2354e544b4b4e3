"""Log two steps, each as a run of its own that goes on with the first; run by test_trackers."""

import json
import sqlite3
import sys
from pathlib import Path

from astrolabe.run_folder import RunFolder
from astrolabe.trackers import known_runs, tracker_lacks
from astrolabe.tracking import Tracker

folder, names = Path(sys.argv[1]), ("tensorboard", "wandb", "mlflow", "trackio")
options = {"wandb": {"offline": True, "project": "mine"}, "trackio": {"project": "mine"}}
assert [tracker_lacks(name, options.get(name, {})) for name in names] == [[], [], [], []]
said, runs = [], []
for step in (1, 2):
    with Tracker(RunFolder(folder), names, options, said.append) as tracker:
        tracker.log(step, {"reward/total": step / 2, "loss/policy": float("nan")})
    runs.append(known_runs(folder))

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

events = EventAccumulator(str(folder / "logs" / folder.name)).Reload()
with sqlite3.connect(folder / "logs" / "mlflow.db") as database:
    query = "select run_uuid, step, value from metrics where key = 'reward/total' order by step"
    stored = database.execute(query).fetchall()
import trackio  # noqa: E402

(kept,) = list(trackio.Api().runs("mine"))
report = {
    "said": said,
    "runs": runs,
    "tensorboard": [[one.step, one.value] for one in events.Scalars("reward/total")],
    "mlflow": stored,
    "trackio": kept.name,
    "wandb_ids": sorted(path.stem for path in (folder / "logs").rglob("*.wandb")),
}
sys.stdout.write(json.dumps(report) + "\n")
