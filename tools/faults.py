"""Put faults into the code, one at a time, and see whether the tests notice.

Each entry of ``tools/faults.toml`` replaces a piece of one source file, a sign, a weight, a mask,
a detached tensor, by something a tired person might have written. The tests named with it must
then fail; a fault that they do not notice is a behaviour that nothing protects. No file changes:
every fault lives in a process of its own, which is forked once the heavy libraries are imported
and reads the faulty source in place of the right one. Tests that start other processes therefore
see the right code, and are of no use here.

    uv run python tools/faults.py                     # all of them, on all cores
    uv run python tools/faults.py --only snapshots    # those whose file or name has this in it
"""

import argparse
import importlib
import importlib.machinery
import os
import sys
import tomllib
import traceback
from collections.abc import Iterator, Sequence
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


#: A fault or None, arguments of pytest, and where its output goes.
Job: TypeAlias = tuple[Fault | None, tuple[str, ...], Path]


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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="part of a name or file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time")
    parser.add_argument(
        "--logs", type=Path, default=Path("runs/faults"), help="output of the tests"
    )
    options = parser.parse_args()
    faults = [x for x in read_faults() if options.only in x.name or options.only in x.file]
    for fault in faults:
        compile(fault.source(), fault.file, "exec")
    os.chdir(ROOT)
    options.logs.mkdir(parents=True, exist_ok=True)
    for module in HEAVY:
        importlib.import_module(module)
    suites = list(dict.fromkeys(fault.tests for fault in faults))
    right = [(None, tests, options.logs / f"right-{n}.log") for n, tests in enumerate(suites)]
    if broken := [log for _, code, log in run(right, options.jobs) if code]:
        print(f"The tests fail without any fault: {', '.join(map(str, broken))}")
        return 1
    jobs = [(f, f.tests, options.logs / f"{f.name.replace(' ', '-')}.log") for f in faults]
    missed = 0
    for fault, code, log in run(jobs, options.jobs):
        assert fault is not None
        verdict = {0: "NOT NOTICED", 1: "noticed"}.get(code, f"no verdict (exit {code}), see {log}")
        missed += code != 1
        print(f"{verdict:12} {fault.name}  ({fault.file})", flush=True)
    print(f"{len(faults) - missed} of {len(faults)} faults noticed.")
    return min(missed, 100)


def run(jobs: Sequence[Job], count: int) -> Iterator[tuple[Fault | None, int, Path]]:
    """Run the tests of each job in a fork, so many at a time; give pytest's exit status of each."""
    waiting, running = list(reversed(jobs)), dict[int, Job]()
    while waiting or running:
        while waiting and len(running) < count:
            job = waiting.pop()
            running[start(*job)] = job
        child, status = os.wait()
        fault, _, log = running.pop(child)
        yield fault, os.waitstatus_to_exitcode(status), log


def start(fault: Fault | None, tests: Sequence[str], log: Path) -> int:
    """Run tests in a fork that reads the faulty source; return its process id."""
    if child := os.fork():
        return child
    status = 70
    try:
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if fault is not None:
            plant(ROOT / fault.file, fault.source().encode())
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        pytest = importlib.import_module("pytest")
        quiet = "ignore::pytest.PytestAssertRewriteWarning"  # of plug-ins that are imported already
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", quiet]
        status = int(pytest.main([*options, *tests]))
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
