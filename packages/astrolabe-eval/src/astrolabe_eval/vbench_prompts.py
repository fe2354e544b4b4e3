"""VBench's prompts and LongLive's scripts as suites, with the file names that VBench looks for.

The prompts come with the ``vbench`` wheel, in ``VBench_full_info.json``; it is read as a file, the
wheel is never imported. Of its 946 entries two texts occur in two dimensions each. VBench finds
videos by their text, so such a pair shares its videos: 944 different prompts are generated.
"""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from astrolabe_eval.errors import SuiteError
from astrolabe_eval.input_files import read_json
from astrolabe_eval.suites import Suite, name_seed
from astrolabe_eval.text_lines import read_lines

#: Videos of a prompt that VBench reads; it looks for no others.
SAMPLES: Final = 5
#: What the list calls the text of an entry.
PROMPT_KEY: Final = "prompt_en"
FULL_INFO: Final = "VBench_full_info.json"
#: What file systems allow, less what a hidden file has beside the name while it is written.
_LONGEST_NAME: Final = 255 - 20
_LENGTH = re.compile(r"\[\s*(\d+(?:\.\d+)?)\s*s\s*#?\s*\]\s*$")


@dataclass(frozen=True)
class VBenchPrompt:
    """One entry of VBench's list: what to show, and the dimensions judged on its videos."""

    text: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class VideoSuite:
    """A suite whose videos have fixed names.

    Attributes:
        suite: What the model reads; an augmented text if a list of them was given.
        file_names: ``{prompt}-{sample}.mp4`` with VBench's own short text, in the same order.
        dimensions: For each video the dimensions it is judged on.
    """

    suite: Suite
    file_names: tuple[str, ...]
    dimensions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ScriptScene:
    """A part of a script; ``seconds`` is None where the script gives no length."""

    prompt: str
    seconds: float | None


def find_full_info(place: str | Path | None = None) -> Path:
    """Find VBench's list of prompts.

    Args:
        place: The file, or the folder of an environment with ``vbench`` in it; None looks in the
            environment of this process.

    Raises:
        SuiteError: If there is none.
    """
    if place is None:
        spec = importlib.util.find_spec("vbench")
        folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
        candidates = [folder / FULL_INFO for folder in folders]
    else:
        place = Path(place)
        candidates = [place, place / FULL_INFO, place / "vbench" / FULL_INFO]
        candidates += sorted(place.glob(f"lib/python*/site-packages/vbench/{FULL_INFO}"))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    where = "this environment" if place is None else repr(str(place))
    raise SuiteError(
        f"There is no {FULL_INFO} in {where}. Name the file; it is in the wheel of vbench 0.1.5: "
        "uv venv /tmp/vb --python 3.11 && uv pip install --python /tmp/vb --no-deps vbench==0.1.5"
    )


def read_vbench_prompts(place: str | Path | None = None) -> tuple[VBenchPrompt, ...]:
    """Read VBench's list.

    Args:
        place: As in `find_full_info`.

    Returns:
        The entries in the order of the file; a text may occur twice.

    Raises:
        SuiteError: If the file is missing or not of VBench's form.
    """
    path = find_full_info(place)
    try:
        entries = read_json(path)
        prompts = tuple(_entry(entry, number) for number, entry in enumerate(entries, start=1))
    except (OSError, ValueError, TypeError) as error:
        raise SuiteError(
            f"{str(path)!r} is not VBench's list of prompts ({error!r}). Take the one of the wheel."
        ) from error
    if not prompts:
        raise SuiteError(f"{str(path)!r} has no prompts. Take the one of the wheel.")
    return prompts


def vbench_suite(
    prompts: Sequence[VBenchPrompt],
    *,
    samples: int = SAMPLES,
    dimensions: Iterable[str] | None = None,
    augmented: str | Path | None = None,
    name: str = "vbench",
) -> VideoSuite:
    """Make the suite of VBench's short prompts.

    Args:
        prompts: From `read_vbench_prompts`, all of them.
        samples: Videos of each prompt; VBench reads the first five.
        dimensions: Only prompts of these; None: of all.
        augmented: A text file with one longer prompt on each line, for all ``prompts`` in order
            (``all_dimension_aug_wanx_seed42.txt`` of VBench's repository). The model reads these;
            file names and seeds stay those of the short prompts. Where a text occurs twice its
            first line counts.
        name: Of the suite.

    Returns:
        Each different text ``samples`` times, in order of first occurrence. The seed of a video
        follows from its file name alone (see `name_seed`).

    Raises:
        SuiteError: If there is nothing left, the augmented list has another length, or a text
            cannot be a file name.
    """
    if samples < 1:
        raise SuiteError(f"samples is {samples}. Use 1 or more.")
    shown = [prompt.text for prompt in prompts]
    if augmented is not None:
        shown = read_lines(augmented)
        while shown and not shown[-1]:
            shown.pop()
        if len(shown) != len(prompts):
            raise SuiteError(
                f"{str(augmented)!r} has {len(shown)} lines for {len(prompts)} prompts. It must "
                "have one for each, in the order of VBench's list."
            )
    wanted = None if dimensions is None else set(dimensions)
    texts: dict[str, str] = {}
    judged: dict[str, tuple[str, ...]] = {}
    for prompt, text in zip(prompts, shown, strict=True):
        if wanted is None or wanted.intersection(prompt.dimensions):
            texts.setdefault(prompt.text, text)
            judged[prompt.text] = judged.get(prompt.text, ()) + prompt.dimensions
    if not texts:
        raise SuiteError(
            f"No prompt belongs to {', '.join(sorted(wanted or ()))}. "
            f"There are: {', '.join(sorted({d for p in prompts for d in p.dimensions}))}."
        )
    videos = [(prompt, index) for prompt in texts for index in range(samples)]
    file_names = tuple(video_name(prompt, index) for prompt, index in videos)
    return VideoSuite(
        Suite(
            name,
            tuple(texts[prompt] for prompt, _ in videos),
            tuple(name_seed(prompt, index) for prompt, index in videos),
        ),
        file_names,
        tuple(judged[prompt] for prompt, _ in videos),
    )


def video_name(prompt: str, index: int) -> str:
    """Name of a video as VBench looks for it, ``{prompt}-{index}.mp4``.

    Raises:
        SuiteError: If it cannot be the name of a file: too long, or with a slash in it.
    """
    name = f"{prompt}-{index}.mp4"
    size = len(name.encode())
    if size > _LONGEST_NAME:
        raise SuiteError(
            f"{name[:40]!r}... is a file name of {size} bytes, but at most {_LONGEST_NAME} are "
            "possible. Number the videos instead, and give their prompts to run_vbench(prompts=)."
        )
    if "/" in name or "\0" in name:
        raise SuiteError(
            f"{prompt!r} has a character that no file name may have. "
            "Number the videos instead, and give their prompts to run_vbench(prompts=)."
        )
    return name


def parse_script(text: str) -> tuple[ScriptScene, ...]:
    """Split a script into its scenes: ``a cat wakes [10s] | it runs [10s]``.

    Args:
        text: Scenes parted by ``|``; ``[10s]`` or ``[10s#]`` at the end of one is its length.

    Raises:
        SuiteError: If a scene has no prompt.

    Example:
        >>> parse_script("a cat wakes [10s] | it runs")[0]
        ScriptScene(prompt='a cat wakes', seconds=10.0)
    """
    scenes = []
    for number, part in enumerate(text.split("|"), start=1):
        bracket = _LENGTH.search(part)
        prompt = (part[: bracket.start()] if bracket else part).strip()
        if not prompt:
            raise SuiteError(f"Scene {number} of the script {text[:60]!r} has no prompt.")
        scenes.append(ScriptScene(prompt, float(bracket[1]) if bracket else None))
    return tuple(scenes)


def script_suite(path: str | Path, *, samples: int = 1, name: str | None = None) -> Suite:
    """Read scripts of several scenes, one on a line, such as LongLive's interactive_benchmark.txt.

    Args:
        path: The file, in UTF-8.
        samples: Videos of each script.
        name: Of the suite; by default the file's name without its ending.

    Returns:
        Each prompt is a whole script, as the model parses it; `parse_script` gives its scenes.

    Raises:
        SuiteError: If the file cannot be read, a script occurs twice or has an empty scene.
    """
    scripts = [line for line in read_lines(path) if line]
    for number, script in enumerate(scripts, start=1):
        try:
            parse_script(script)
        except SuiteError as error:
            raise SuiteError(f"{str(path)!r}, script {number}: {error}") from None
    if len(set(scripts)) < len(scripts):
        twice = next(script for script in scripts if scripts.count(script) > 1)
        raise SuiteError(f"{str(path)!r} has the script {twice[:60]!r} twice. Remove one.")
    videos = [(script, index) for script in scripts for index in range(samples)]
    return Suite(
        name or Path(path).stem,
        tuple(script for script, _ in videos),
        tuple(name_seed(script, index) for script, index in videos),
    )


def _entry(entry: object, number: int) -> VBenchPrompt:
    """One entry of the list; a missing text must not become the word None."""
    text, judged = (
        (entry.get(PROMPT_KEY), entry.get("dimension")) if isinstance(entry, dict) else (None, None)
    )
    if (
        not isinstance(text, str)
        or not text.strip()
        or not isinstance(judged, list)
        or not all(isinstance(name, str) for name in judged)
    ):
        raise ValueError(f"entry {number} has no {PROMPT_KEY!r} and list of 'dimension'")
    return VBenchPrompt(text, tuple(judged))
