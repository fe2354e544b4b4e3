"""What a person sees of a run: a live table on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from astrolabe.screen import console as make_console
from astrolabe.screen import shown

PHASES = ("sample", "score", "update")
BARS = "▁▂▃▄▅▆▇█"


class View:
    """Plain lines: one for each step, and one for each thing that is said.

    Also the interface of what shows a run.

    Args:
        steps: Steps of the run.
        console: Where to write.
    """

    def __init__(self, steps: int, console: Console) -> None:
        self.steps = steps
        self.console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to end."""

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self.console.print(shown(text), highlight=False, markup=False, soft_wrap=True)

    def phase(self, name: str, share: float) -> None:
        """A phase has begun (0) or ``share`` of it is done; plain lines do not show it."""

    def step(self, number: int, metrics: dict[str, float]) -> None:
        """A step is finished."""
        seconds = sum(value for name, value in metrics.items() if name.startswith("time/"))
        rewards = "  ".join(
            f"{name.removeprefix('reward/')} {written(value)}{scored_share(name, metrics)}"
            for name, value in metrics.items()
            if name.startswith("reward/")
        )
        loss = metrics.get("loss/policy", math.nan)
        self.say(f"step {number}/{self.steps}  {seconds:.1f} s  {rewards}  loss {written(loss)}")


class Silent(View):
    """Shows nothing: of several processes one alone speaks."""

    def say(self, text: str) -> None:
        """Nothing to show."""

    def step(self, number: int, metrics: dict[str, float]) -> None:
        """Nothing to show."""


class LiveView(View):
    """A table that changes in place: phases with time, reward curves, losses, memory.

    Args:
        steps: Steps of the run.
        console: A terminal.
        title: Shown on top; the run folder.
    """

    def __init__(self, steps: int, console: Console, title: str) -> None:
        super().__init__(steps, console)
        self.title = title
        self._history: dict[str, list[float]] = {}
        self._last: dict[str, float] = {}
        self._number = 0
        self._phase, self._share, self._since = "", 0.0, time.monotonic()
        self._begun = time.monotonic()
        self._first: int | None = None
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state of the table on the screen."""
        self._phase = ""
        self._live.stop()

    def phase(self, name: str, share: float) -> None:
        """Show the phase that runs and how far it is."""
        if name != self._phase:
            self._phase, self._since = name, time.monotonic()
        self._share = share

    def step(self, number: int, metrics: dict[str, float]) -> None:
        """Show the metrics of a finished step."""
        if self._first is None:
            self._first = number - 1
        self._number, self._last, self._phase = number, metrics, ""
        for name, value in metrics.items():
            if name.startswith("reward/"):
                self._history.setdefault(name.removeprefix("reward/"), []).append(value)

    def render(self) -> RenderableType:
        """Return the whole picture; called by Rich some times a second."""
        parts: list[RenderableType] = [self._progress(), self._phases()]
        if self._history:
            parts += [Text(), self._rewards(), Text(), Text(self._numbers(), style="dim")]
        title = Text(shown(self.title))
        return Panel(Group(*parts), title=title, title_align="left", padding=(0, 1))

    def _progress(self) -> RenderableType:
        row = Table.grid(padding=(0, 2))
        left = ""
        done = self._number - (self._first or 0)
        if done:
            each = (time.monotonic() - self._begun) / done
            left = f"about {clock_time(each * (self.steps - self._number))} left"
        bar = ProgressBar(total=self.steps, completed=self._number, width=30)
        elapsed = clock_time(time.monotonic() - self._begun)
        row.add_row(f"step {self._number}/{self.steps}", bar, elapsed, left)
        return row

    def _phases(self) -> RenderableType:
        """Each phase with its seconds; the running one with a bar, if need be by its last time."""
        row = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = []
        for name in (*PHASES, *([self._phase] if self._phase not in (*PHASES, "") else [])):
            last = self._last.get(f"time/{name}_s")
            if name == self._phase:
                now = time.monotonic() - self._since
                share = self._share or (min(now / last, 0.99) if last else 0.0)
                cells.append(Text(f"{name} {now:.1f} s", style="bold cyan"))
                cells.append(ProgressBar(total=1.0, completed=share, width=10))
            else:
                cells.append(Text(f"{name} {last:.1f} s" if last else name, style="dim"))
        row.add_row(*cells)
        return row

    def _rewards(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for heading in ("reward", "first", "now", "change"):
            table.add_column(heading, justify="left" if heading == "reward" else "right")
        table.add_column("")
        for name, values in self._history.items():
            first = next((value for value in values if math.isfinite(value)), math.nan)
            change = values[-1] - first
            style = "green" if change > 0 else "red" if change < 0 else ""
            cells = written(first), written(values[-1]), Text(written(change, "+.3g"), style=style)
            share = scored_share(f"reward/{name}", self._last)
            table.add_row(Text(shown(f"{name}{share}")), *cells, sparkline(values, 40))
        return table

    def _numbers(self) -> str:
        shown = {
            "loss/policy": "loss",
            "loss/kl": "kl loss",
            "policy/gradient_norm": "gradient",
            "advantage/zero_std_fraction": "dull groups",
            "kl/selected_fraction": "held back",
            "memory/peak_gib": "peak GiB",
        }
        return "   ".join(
            f"{label} {written(self._last[name], '.3g')}"
            for name, label in shown.items()
            if name in self._last
        )


def make_view(steps: int, title: str, *, speaks: bool = True) -> View:
    """Return the view that fits where the output goes."""
    console = make_console()
    if not speaks:
        return Silent(steps, console)
    return LiveView(steps, console, title) if console.is_terminal else View(steps, console)


def scored_share(name: str, metrics: Mapping[str, float]) -> str:
    """Say of how many videos a mean reward is, where it is not of all.

    >>> scored_share("reward/hpsv3", {"valid_fraction/hpsv3": 0.75})
    ' (75% scored)'
    """
    fraction = name.replace("reward/", "valid_fraction/")
    total = metrics.get("advantage/valid_fraction", 1.0)
    share = metrics.get(fraction, 1.0) if name != "reward/total" else total
    return f" ({share:.0%} scored)" if share < 1 else ""


def written(value: float, form: str = ".4g") -> str:
    """A number as it is shown; ``n/a`` if there is none.

    >>> written(0.51234), written(math.nan)
    ('0.5123', 'n/a')
    """
    return f"{value:{form}}" if math.isfinite(value) else "n/a"


def sparkline(values: list[float], width: int) -> str:
    """Draw numbers as small bars, at most ``width`` of them, each the mean of its neighbours.

    Where all neighbours lack a number there is a gap.

    >>> sparkline([0.0, 1.0, 2.0, 3.0], width=4)
    '▁▃▆█'
    >>> sparkline([0.0, math.nan, 3.0], width=4)
    '▁ █'
    """
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)] if count else []
    parts = [
        [value for value in values[low:high] if math.isfinite(value)]
        for low, high in pairwise(edges)
    ]
    means = [sum(part) / len(part) if part else None for part in parts]
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    top = len(BARS) - 1
    return "".join(
        " " if mean is None else BARS[round((mean - low) / span * top) if span else 0]
        for mean in means
    )


def clock_time(seconds: float) -> str:
    """Write a duration for people.

    >>> clock_time(75)
    '1:15'
    >>> clock_time(3675)
    '1:01:15'
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how much of some work is done; give a function that counts what is.

    Args:
        what: A word for the work.
        total: Of its parts.
    """
    console = make_console(stderr=True)
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # else lines for a pipe would end up on the screen
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)
