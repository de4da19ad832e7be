"""What long work shows: a live display on a terminal, plain lines elsewhere."""

import time
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from rub.pipeline.graph import Stage
from rub.store.artifacts import Store

STEP_SECONDS = 30  # between two lines about the steps of one stage, where there is no live display
KNOWN_SHARE = 0.01  # of all cost: before that share is done, a time left would be a guess


class Display:
    """Shows stages done, the running stage's steps and rate, and the time left.

    Time left is the remaining cost of each kind of stage times the seconds per cost seen so far for that kind.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._live: Progress | None = None
        self._overall = self._current = TaskID(0)
        self._left: dict[str, Stage] = {}
        self._spent: dict[str, float] = defaultdict(float)
        self._cost: dict[str, float] = defaultdict(float)
        self._began = self._stage_began = self._step_said = time.monotonic()
        self._label = ""
        self._total = self._done = 0
        self._awaited = ""
        self._elsewhere = 0.0

    def __enter__(self) -> "Display":
        if self.console.is_terminal and not self.quiet:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=8),
                TextColumn("{task.fields[note]}", markup=False),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._overall = self._live.add_task("stages", note="")
            self._current = self._live.add_task("", note="", visible=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, line: str) -> None:
        """Say a line before the work begins."""
        self._say(line)

    def start(self, stages: Sequence[Stage], store: Store) -> None:
        """Begin a run of these stages, of which some are already in the store."""
        cached = {stage.key for stage in stages if store.has(stage.kind, stage.key)}
        self._left = {stage.key: stage for stage in stages if stage.key not in cached}
        self._total, self._done = len(stages), 0
        partial = sum(key in self._left for key, _ in store.partials())
        more = f", {partial} from {'its' if partial == 1 else 'their'} checkpoint" if partial else ""
        self._say(f"{len(stages)} stages, {len(cached)} in the store, {len(self._left)} to run{more}")
        if self._live is not None:
            self._live.update(self._overall, total=len(stages))

    def began(self, stage: Stage) -> None:
        """Note that a stage starts now."""
        self._stage_began = self._step_said = time.monotonic()
        self._label = stage.label
        if self._live is not None:
            self._live.reset(self._current, description=stage.label[:30], visible=True, note="")

    def waiting(self, stage: Stage, holder: str) -> None:
        """Note that all that is left is being computed by others, and who has this stage; said once for each stage."""
        if self._awaited != stage.key:
            self._awaited = stage.key
            self._say(f"waiting for {holder}: {stage.label}")

    def step(self, done: int, total: int, note: str = "") -> None:
        """Show the steps of the running stage, with its rate; without a live display, in a line now and then."""
        if self._live is None and time.monotonic() - self._step_said >= STEP_SECONDS:
            self._step_said = time.monotonic()
            self._say(f"{self._label}: {done:,} of {total:,} {note}".rstrip())
        if self._live is not None:
            rate = done / max(time.monotonic() - self._stage_began, 1e-9)
            self._live.update(self._current, completed=done, total=total, note=f"{rate:.1f} steps/s {note}"[:24])

    def ended(self, stage: Stage, status: str, reason: str) -> None:
        """Note how a stage ended, and say so where there is no live display."""
        self._done += 1
        if self._left.pop(stage.key, None) is not None and status == "cached":
            self._elsewhere += stage.cost
            if self._live is None:
                self._say(f"[{self._done}/{self._total}] {stage.label} (by another process)")
        if status == "done":
            seconds = time.monotonic() - self._stage_began
            self._spent[stage.kind] += seconds
            self._cost[stage.kind] += stage.cost
            if self._live is None:
                left = self.seconds_left()
                more = f", about {clock(left)} left" if left else ""
                self._say(f"[{self._done}/{self._total}] {stage.label} ({seconds:.1f} s{more})")
        elif status == "failed":
            self._say(f"[{self._done}/{self._total}] FAILED {reason}")
        if self._live is not None:
            left = self.seconds_left()
            more = f"{clock(left)} left" if left else ""
            self._live.update(self._overall, completed=self._done, note=f"{self._done}/{self._total} {more}")

    def seconds_left(self) -> float:
        """Estimated time left, from the seconds per cost of each kind of stage so far.

        What other processes did meanwhile shortens it; 0 while too little has been done to tell.
        """
        here, left = sum(self._cost.values()), sum(stage.cost for stage in self._left.values())
        if here < KNOWN_SHARE * (here + self._elsewhere + left):
            return 0.0
        overall = sum(self._spent.values()) / max(here, 1e-9)
        return (here / max(here + self._elsewhere, 1e-9)) * sum(
            stage.cost * (self._spent[stage.kind] / self._cost[stage.kind] if self._cost[stage.kind] else overall)
            for stage in self._left.values()
        )

    def elapsed(self) -> float:
        """Seconds since the display was made."""
        return time.monotonic() - self._began

    def _say(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Duration as ``42 s``, ``3 min 10 s`` or ``2 h 05 min``.

    Example:
        >>> clock(190)
        '3 min 10 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
