"""How far a run is: a live line on a terminal, and elsewhere a printed line at every tenth."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Live
from rich.table import Column

from twofold.terminal import visible


class Progress:
    """Lines by title, each shown from its first update on. ``unit`` is what is counted."""

    def __init__(self, unit: Literal["step", "problem", "case"], console: Console | None = None) -> None:
        self._unit, self._console = unit, console or Console()
        self._began: dict[str, tuple[float, int]] = {}
        self._last: dict[str, int] = {}
        self._lines: dict[str, TaskID] = {}
        # only the text gives way where the terminal is narrow
        text = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._live = Live(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)), BarColumn(10), MofNCompleteColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False, table_column=text),
            console=self._console, disable=not self._console.is_terminal, expand=True,
        )  # fmt: skip

    def __enter__(self) -> Progress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, title: str, done: int, total: int, text: str = "") -> None:
        """Show that ``done`` of ``total`` are done, with a text behind it."""
        if title not in self._lines:
            self._began[title], self._last[title] = (time.monotonic(), done), done
            self._lines[title] = self._live.add_task(title, total=total, completed=done, text=text)
            return
        self._live.update(self._lines[title], completed=done, text=text)
        if not self._console.is_terminal and (done == total or done * 10 // total > self._last[title] * 10 // total):
            self.say(f"{title}: {self._unit} {done}/{total}  {self._left(title, done, total)}{text}".rstrip())
        self._last[title] = done

    def _left(self, title: str, done: int, total: int) -> str:
        """Return the time left in words, by the mean so far; nothing at the end."""
        began, first = self._began[title]
        if not first < done < total:
            return ""
        seconds = (time.monotonic() - began) * (total - done) / (done - first)
        return f"{timedelta(seconds=round(seconds))} left  "

    def say(self, text: str) -> None:
        """Print a line above the live ones."""
        self._console.print(visible(text), highlight=False, soft_wrap=True, markup=False)  # a text may say [task]
