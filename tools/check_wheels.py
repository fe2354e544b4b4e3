"""Install each wheel alone in a fresh environment, as it is and with the extra of its README.

    uv run python tools/check_wheels.py [--resolution lowest] [--only astrolabe-eval] [--git]

A wheel must hold its licence, bring none of its siblings and none of the libraries it must do
without, offer every public name (or say what to install), and run the examples of its README, away
from this clone. What it was tried with is printed, its size and how long importing it takes.

``--resolution`` chooses the versions: those of the lock file (the default, which .ci/run tries),
the lowest that its pyproject.toml allows, or the newest there are. Either of the last two downloads
gigabytes the first time and takes some minutes: run them once a month and before a release.
``--git`` installs the last commit of this clone by such a URL as docs/install.md gives.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: What each package must do without, where its extra is not asked for, and with it.
WITHOUT = {
    "astrolabe-rollout": (("diffusers", "transformers", "peft"), ()),
    "astrolabe-rewards": (("torchrl", "diffusers", "cv2"), ("torchrl", "diffusers")),
    "astrolabe-objectives": (("diffusers", "transformers", "peft"), ()),
    "astrolabe-eval": (("torch", "tensordict", "torchrl"), ("torchrl", "diffusers")),
    "astrolabe": ((), ()),
}
#: The extras that the examples of a README need, with commas between them.
EXTRA = {
    "astrolabe-rollout": "wan",
    "astrolabe-rewards": "opencv,video",
    "astrolabe-objectives": "examples",
    "astrolabe-eval": "torch",
}
NAMES = """
import importlib, importlib.util, inspect, pkgutil, sys
module, *absent = sys.argv[1:]
found = [name for name in absent if importlib.util.find_spec(name)]
assert not found, f"{module} brings {found}"
package = importlib.import_module(module)
assert "site-packages" in package.__file__, package.__file__
assert package.__version__, "no version"
refused = set()
for name in getattr(package, "__all__", ()):
    try:
        assert not inspect.ismodule(getattr(package, name)), f"{name} is a module"
    except ModuleNotFoundError as error:
        assert "pip install" in str(error), f"{name}: {error}"
        refused.add(name)
loaded = {name.partition(".")[0] for name in sys.modules if name.startswith("astrolabe")}
assert module == "astrolabe" or loaded == {module}, f"{module} loads {loaded}"
print(len(getattr(package, "__all__", ())) - len(refused), len(refused))
"""
README = """
import doctest, sys
result = doctest.testfile(sys.argv[1], module_relative=False)
assert not result.failed, f"{result.failed} examples failed"
print(result.attempted)
"""
TIME = """
import contextlib, sys, time
begin = time.perf_counter()
package = __import__(sys.argv[1])
light = time.perf_counter()
for name in getattr(package, "__all__", ()):
    with contextlib.suppress(ModuleNotFoundError):
        getattr(package, name)
print(light - begin, time.perf_counter() - begin)
"""


def run(*command: str | Path, **options: str | Path) -> str:
    """Run a command away from this clone; what it prints, or its failure."""
    # Where Python kept no bytecode, every process would compile torch anew.
    unwanted = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment["RL_LOGGING_LEVEL"] = "WARNING"  # or it would print into the examples
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(map(str, command[:4]))} ... failed.")
    return done.stdout


def required(wheels: dict[str, Path], package: str, extras: set[str]) -> Iterator[str]:
    """What a wheel and those of its siblings that it needs ask for, as requirements."""
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = wheel.namelist()
        licences = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert licences, f"{package} has no licence"
        assert wheel.read(licences[0]) == (ROOT / "LICENSE").read_bytes(), package
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE):
        wanted, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if extra and extra[1] not in extras:
            continue
        sibling = re.match(r"(astrolabe-\w+)(?:\[([\w,]+)\])?", wanted)
        if sibling:
            yield from required(wheels, sibling[1], set((sibling[2] or "").split(",")))
        else:
            yield wanted.strip()


def named(requirement: str) -> str:
    """The name of what a requirement asks for."""
    return re.split(r"[^\w.-]", requirement)[0].lower()


def chosen(resolution: str, package: str, needs: list[str], folder: Path) -> list[str]:
    """The arguments of ``uv pip install`` that choose the versions."""
    if resolution == "newest":
        return ["--resolution", "highest"]
    if resolution == "lowest":
        # What a wheel asks for counts as indirect, and gets its newest version, unless named.
        return ["--resolution", "lowest-direct", *needs]
    pins = folder / f"{package}.txt"
    export = ["uv", "export", "--quiet", "--locked", "--no-dev", "--no-hashes", "--all-extras"]
    pins.write_text(run(*export, "--no-emit-workspace", "--package", package, cwd=ROOT))
    return ["--constraint", str(pins)]


def check(package: str, wheels: dict[str, Path], options: argparse.Namespace, folder: Path) -> None:
    """Install one package alone, without and with its extra, and try what it offers."""
    module, place = package.replace("-", "_"), folder / package
    python = place / "bin" / "python"
    alone = package != "astrolabe"
    siblings = [name.replace("-", "_") for name in WITHOUT if alone and name != package]
    where = "packages" if alone else "apps"
    run("uv", "venv", "--quiet", "--python", sys.executable, place)
    extras = ["", *filter(None, [EXTRA.get(package)])]
    for extra, without in zip(extras, WITHOUT[package], strict=False):
        suffix = f"[{extra}]" if extra else ""
        url = f"{package}{suffix} @ git+file://{ROOT}#subdirectory={where}/{package}"
        wanted = url if options.git else f"{wheels[package]}{suffix}"
        needs = list(required(wheels, package, set(extra.split(","))))
        install = ["uv", "pip", "install", "--quiet", "--python", python]
        install += ["--find-links", wheels[package].parent, wanted]
        run(*install, *chosen(options.resolution, package, needs, folder), cwd=folder)
        names, refused = run(python, "-c", NAMES, module, *siblings, *without, cwd=folder).split()
        times = [run(python, "-c", TIME, module, cwd=folder).split() for _ in range(2)]
        light, whole = (min(map(float, column)) for column in zip(*times, strict=True))
        size = sum(file.stat().st_size for file in (place / "lib").rglob("*") if file.is_file())
        size -= sum(file.stat().st_size for file in place.rglob("__pycache__/*"))
        print(
            f"{package}{suffix}, {options.resolution}: {names} names"
            + (f", {refused} more say what to install" if refused != "0" else "")
            + f", had in {whole:.1f} s, the package alone in {light:.2f} s, {size / 2**20:.0f} MiB",
            flush=True,
        )
        if extra and refused != "0":
            raise SystemExit(f"{package}{suffix} lacks {refused} of its names.")
    if not alone:
        run(place / "bin" / "astrolabe", "recipes", cwd=folder)
    readme = folder / f"{package}.md"
    readme.write_bytes((ROOT / where / package / "README.md").read_bytes())
    lines = run(python, "-c", README, readme, cwd=folder).split()[-1]
    assert lines != "0" or not alone, f"{package}: its README has no example"
    frozen = run("uv", "pip", "freeze", "--quiet", "--python", python, cwd=folder).split()
    told = [line for line in frozen if line.partition("==")[0] in {*map(named, needs)}]
    print(f"    {lines} lines of its README run; {', '.join(told).replace('==', ' ')}", flush=True)


def main() -> None:
    """Check the packages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--resolution", choices=("locked", "lowest", "newest"), default="locked")
    parser.add_argument("--only", choices=WITHOUT, action="append", metavar="NAME")
    parser.add_argument("--git", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = ["uv", "build", "--quiet", "--all-packages", "--wheel"]
        run(*build, "--out-dir", folder / "wheels", ROOT)
        wheels = {
            package: next((folder / "wheels").glob(f"{package.replace('-', '_')}-*.whl"))
            for package in WITHOUT
        }
        for package in options.only or WITHOUT:
            check(package, wheels, options, folder)


if __name__ == "__main__":
    main()
