"""Put faults into the code, one at a time, and see whether the tests notice.

Each entry of ``tools/faults.toml`` replaces a piece of one source file, a sign, a weight, a mask,
a detached tensor, by something a tired person might have written. The tests named with it must
then fail; a fault that they do not notice is a behaviour that nothing protects. No file changes:
every fault lives in a process of its own, which is forked once the heavy libraries are imported
and reads the faulty source in place of the right one. Tests that fork see the fault as well; those
that start programs (torchrun, the command line) see the right code, and are of no use here.

The tests are run once without any fault, and must pass, then with each fault up to the first that
fails: 3 to 30 seconds of a core for a fault, something like half an hour for all, and 2 GB for each
that runs at a time; a busy machine takes hours. What takes five times as long as without a fault,
and two minutes more, is stopped and counts as not noticed.

    uv run python tools/faults.py                        # all of them, on all cores
    uv run python tools/faults.py --only snapshots nft   # with one of these in file or name
"""

import argparse
import contextlib
import gc
import importlib
import importlib.machinery
import math
import os
import signal
import sys
import time
import tomllib
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")

#: Imported once, before the forks; the project's own modules must not be among them.
HEAVY = (
    "torch._dynamo", "torchrl.collectors", "torchrl.data", "torchrl.envs", "torchrl.objectives",
    "diffusers.loaders.peft", "diffusers.models.transformers.transformer_wan",
    "diffusers.models.autoencoders.autoencoder_kl_wan", "peft", "transformers", "cv2", "pytest",
    "hypothesis",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One replacement in one file."""

    name: str
    file: str
    """Relative to the repository."""
    old: str
    """What the file holds exactly once."""
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest, relative to the repository."""

    def source(self) -> str:
        """Return the file with the fault in it."""
        right = (ROOT / self.file).read_text(encoding="utf-8")
        if (found := right.count(self.old)) != 1:
            raise SystemExit(
                f"fault {self.name!r}: {self.file} holds its text {found} times, not once."
            )
        return right.replace(self.old, self.new)


@dataclass(frozen=True)
class Job:
    """One run of pytest."""

    fault: Fault | None
    tests: tuple[str, ...]
    log: Path
    """Where its output goes."""
    limit: float = math.inf
    """Seconds after which it is stopped."""


#: A job, pytest's exit status or minus the signal that stopped it, and the seconds it took.
Outcome: TypeAlias = tuple[Job, int, float]


def read_faults(path: Path = LIST) -> list[Fault]:
    """Read the list; ``tests`` of a table are those of its faults that name none."""
    faults = []
    for area in tomllib.loads(path.read_text(encoding="utf-8"))["area"]:
        for entry in area["fault"]:
            tests = tuple(entry.get("tests", area["tests"]))
            faults.append(
                Fault(
                    entry["name"],
                    entry.get("file", area.get("file")),
                    entry["old"],
                    entry["new"],
                    tests,
                )
            )
    if len({fault.name for fault in faults}) != len(faults):
        raise SystemExit(f"{path.name}: two faults have one name.")
    return faults


def main() -> int:
    """Run the tests with each fault; the exit status is the number of faults not noticed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names or files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time")
    parser.add_argument(
        "--logs", type=Path, default=Path("runs/faults"), help="output of the tests"
    )
    options = parser.parse_args()
    faults = [x for x in read_faults() if any(o in x.name or o in x.file for o in options.only)]
    for fault in faults:
        compile(fault.source(), fault.file, "exec")
    os.chdir(ROOT)
    options.logs.mkdir(parents=True, exist_ok=True)
    for module in HEAVY:
        importlib.import_module(module)
    gc.freeze()  # else each fork goes through all of that when it collects
    suites = list(dict.fromkeys(fault.tests for fault in faults))
    right = [Job(None, tests, options.logs / f"right-{n}.log") for n, tests in enumerate(suites)]
    limits, broken = {}, []
    for job, code, seconds in run(right, options.jobs):
        limits[job.tests] = 120 + 5 * seconds
        broken += [str(job.log)] if code else []
    if broken:
        print(f"The tests fail without any fault: {', '.join(broken)}")
        return 1
    missed = []
    logs = {fault: options.logs / f"{fault.name.replace(' ', '-')}.log" for fault in faults}
    jobs = [Job(fault, fault.tests, logs[fault], limits[fault.tests]) for fault in faults]
    for job, code, seconds in run(jobs, options.jobs):
        assert job.fault is not None
        known = {0: "NOT NOTICED", 1: "noticed"}
        verdict = known.get(code, f"no verdict (exit {code}), see {job.log}")
        verdict = "TIMED OUT" if seconds > job.limit else verdict
        missed += [job.fault.name] if code != 1 else []
        print(f"{verdict:12} {seconds:4.0f} s  {job.fault.name}  ({job.fault.file})", flush=True)
    print(f"{len(faults) - len(missed)} of {len(faults)} faults noticed.")
    if missed:
        print(f"Not noticed: {', '.join(missed)}")
    return min(len(missed), 100)


def run(jobs: Sequence[Job], count: int) -> Iterator[Outcome]:
    """Run the tests of each job in a fork, so many at a time."""
    waiting, running = list(reversed(jobs)), dict[int, tuple[Job, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < count:
                job = waiting.pop()
                running[start(job)] = job, time.monotonic()
            child, status = os.waitpid(-1, os.WNOHANG)
            now = time.monotonic()
            if child:
                job, since = running.pop(child)
                yield job, os.waitstatus_to_exitcode(status), now - since
                continue
            stop(child for child, (job, since) in running.items() if now - since > job.limit)
            time.sleep(0.1)
    finally:
        stop(running)


def stop(children: Iterable[int]) -> None:
    """Stop forks of `start`, each with the programs that its tests have started."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def start(job: Job) -> int:
    """Run tests in a fork that reads the faulty source; return its process id."""
    if child := os.fork():
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        with job.log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if job.fault is not None:
            plant(ROOT / job.fault.file, job.fault.source().encode())
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        pytest = importlib.import_module("pytest")
        quiet = "ignore::pytest.PytestAssertRewriteWarning"  # of plug-ins that are imported already
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", quiet]
        status = int(pytest.main([*options, *job.tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def plant(path: Path, source: bytes) -> None:
    """Let every import of this process read ``source`` where the file is ``path``."""
    read = importlib.machinery.SourceFileLoader.get_data
    compiled = importlib.util.cache_from_source(str(path))

    def get_data(loader: importlib.machinery.SourceFileLoader, asked: str) -> bytes:
        if asked == compiled:
            raise OSError("the bytecode on disk is that of the right source")
        return source if Path(asked) == path else read(loader, asked)

    importlib.machinery.SourceFileLoader.get_data = get_data  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
