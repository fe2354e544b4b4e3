"""Install each package's wheel alone in a fresh environment, and run its README there.

    uv run python tools/check_isolation.py [--git] [PACKAGE ...]

For every package: the wheel brings none of its siblings and none of the libraries it must do
without, loads nothing but itself of this project, and the example in its README runs. With
``--git`` the last commit of this clone is installed instead, by such a URL as docs/install.md
gives.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: What each package must do without.
WITHOUT = {
    "astrolabe-rollout": (),
    "astrolabe-rewards": ("torchrl", "diffusers", "transformers"),
    "astrolabe-objectives": ("diffusers", "transformers"),
    "astrolabe-eval": ("torchrl", "diffusers", "transformers"),
}

PROBE = """
import doctest, importlib.util, pathlib, sys
module, readme, *forbidden = sys.argv[1:]
installed = [name for name in forbidden if importlib.util.find_spec(name)]
assert not installed, f"{module} brings {installed}"
__import__(module)
result = doctest.testfile(readme, module_relative=False)
assert result.attempted, f"{readme} has no example"
assert not result.failed, f"{readme}: {result.failed} examples failed"
loaded = {name.partition(".")[0] for name in sys.modules if name.startswith("astrolabe")}
assert loaded == {module}, f"{module} loads {loaded}"
print(f"{module}: {result.attempted} lines of its README run, alone")
"""


def run(*command: str | Path, **environment: str) -> None:
    """Run a command and stop at its failure."""
    subprocess.run([str(part) for part in command], check=True, env=os.environ | environment)


def check(package: str, wanted: str | Path, folder: Path) -> None:
    """Install one package alone, from a wheel or a URL, and run its README."""
    module = package.replace("-", "_")
    python = folder / package / "bin" / "python"
    run("uv", "venv", "--quiet", "--python", sys.executable, folder / package)
    # The versions of the lock file, so that the check tests this package and not today's releases.
    pins = folder / f"{package}.txt"
    export = ["uv", "export", "--quiet", "--locked", "--no-dev", "--no-hashes"]
    export += ["--no-emit-workspace", "--package", package]
    with pins.open("w") as file:
        subprocess.run(export, check=True, stdout=file, cwd=ROOT)
    run("uv", "pip", "install", "--quiet", "--python", python, wanted, "--constraint", pins)
    siblings = [name.replace("-", "_") for name in (*WITHOUT, "astrolabe") if name != package]
    readme = ROOT / "packages" / package / "README.md"
    run(python, "-c", PROBE, module, readme, *siblings, *WITHOUT[package], PYTHONPATH="")


def build(folder: Path) -> dict[str, Path]:
    """Build the wheel of every package."""
    run("uv", "build", "--quiet", "--all-packages", "--wheel", "--out-dir", folder, ROOT)
    return {name: next(folder.glob(f"{name.replace('-', '_')}-*.whl")) for name in WITHOUT}


def main() -> None:
    """Check the packages named on the command line, or all."""
    names = [word for word in sys.argv[1:] if word != "--git"] or list(WITHOUT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "--git" in sys.argv[1:]:
            url = f"git+file://{ROOT}#subdirectory=packages/"
            wanted: dict[str, str | Path] = {package: f"{url}{package}" for package in names}
        else:
            wanted = {**build(folder / "wheels")}
        for package in names:
            check(package, wanted[package], folder)


if __name__ == "__main__":
    main()
