"""Prompt suites: what to generate, with which noise, in which order.

Two models are compared sample by sample, so a suite fixes the order of the prompts and the seed of
each one. Seeds count up by position unless others are given; `name_seed` makes one that follows
from the prompt, whatever its place in the list.
"""

import hashlib
import operator
from dataclasses import dataclass
from pathlib import Path

from astrolabe_eval.errors import SuiteError
from astrolabe_eval.text_lines import read_lines

#: Seeds count up from here. Training seeds are usually small numbers; these stay clear of them.
FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Suite:
    """Prompts with one seed each.

    A prompt may occur several times; each occurrence has its own seed and counts as a sample.

    Args:
        name: Shown in reports.
        prompts: At least one, none blank.
        seeds: One per prompt, in [0, 2^63); by default ``1_000_000, 1_000_001, ...`` by position,
            so the first ``n`` samples are the same however long the suite is.

    Raises:
        SuiteError: If there is no prompt, a blank one, or not one valid seed for each.

    Example:
        >>> Suite("demo", ("a red circle", "a blue square")).seeds
        (1000000, 1000001)
    """

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise SuiteError(
                f"The prompts of suite {self.name!r} are one string, {self.prompts!r}. "
                "Give a tuple of strings."
            )
        prompts = tuple(self.prompts)
        seeds = tuple(map(self._seed, self.seeds)) or tuple(
            range(FIRST_SEED, FIRST_SEED + len(prompts))
        )
        # Lists are welcome too, but what is stored cannot change under a running comparison.
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "seeds", seeds)
        if not prompts:
            raise SuiteError(f"Suite {self.name!r} has no prompts. Give it at least one.")
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt.strip():
                raise SuiteError(
                    f"Prompt {index} of suite {self.name!r} is {prompt!r}. "
                    "Remove it or say what the video should show."
                )
        if len(seeds) != len(prompts):
            raise SuiteError(
                f"Suite {self.name!r} has {len(prompts)} prompts and {len(seeds)} seeds. "
                "Give one seed for each prompt, or none to have them numbered."
            )
        for index, seed in enumerate(seeds):
            if not 0 <= seed < 2**63:
                raise SuiteError(
                    f"Seed {index} of suite {self.name!r} is {seed}. Use 0 to 2**63 - 1."
                )

    def _seed(self, seed: object) -> int:
        """A seed of a list, an array or a tensor as a plain number."""
        try:
            return operator.index(seed)  # type: ignore[arg-type]  # what is no whole number raises
        except TypeError:
            raise SuiteError(
                f"A seed of suite {self.name!r} is {seed!r}. Use whole numbers."
            ) from None

    def __len__(self) -> int:
        return len(self.prompts)


def name_seed(prompt: str, index: int) -> int:
    """Seed of the noise of a video, by its name ``{prompt}-{index}`` alone.

    So it is the same in any batch, order, part of a suite and number of processes.

    Args:
        prompt: Its text; VBench's short one.
        index: Number of the sample of that prompt, from 0.

    Returns:
        In [0, 2^63).

    Example:
        >>> name_seed("a cat", 0) == name_seed("a cat", 1)
        False
    """
    digest = hashlib.blake2b(f"{prompt}-{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def load_suite(path: str | Path, *, name: str | None = None, limit: int | None = None) -> Suite:
    """Read a suite from a text file in UTF-8, one prompt on a line.

    Blank lines are skipped; lines that occur twice are two samples.

    Args:
        path: The file.
        name: Name of the suite; by default the file's name without its ending.
        limit: Keep only the first so many prompts, at least 1.

    Returns:
        The prompts in the order of the file, with the default seeds.

    Raises:
        SuiteError: If the file is missing, cannot be read, has no prompt, is not UTF-8, or is a
            table by its name.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise SuiteError(f"limit is {limit}: a suite needs at least 1 prompt.")
    prompts = tuple(line for line in read_lines(path) if line)[:limit]
    if not prompts:
        raise SuiteError(f"{str(path)!r} has no prompts. Write one on each line.")
    return Suite(name or path.stem, prompts)
