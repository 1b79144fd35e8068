"""Terminal: a step's events as a person reads them, with progress bars and time left."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

VERBS = {
    "annotate": "annotating",
    "segment": "segmenting",
    "train": "training",
    "fingerprint": "looking at cases",
    "prepare": "preparing",
}

QUIET = ("time", "step", "event", "files", "problems")  # not shown in a step's last line


class TerminalListener:
    """Shows events with rich; called with each event."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        columns = (
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bars = Progress(*columns, TextColumn("{task.fields[text]}", markup=False), console=self.console)
        self.bar = None

    def __call__(self, event: dict) -> None:
        show = getattr(self, f"_{event['event']}", None)
        if show:
            show(event)

    def _stage(self, event: dict) -> None:
        self.bars.start()
        name = VERBS.get(event["name"], event["name"])
        self.bar = self.bars.add_task(name, total=event["total"], completed=event["done"], left="", text="")

    def _progress(self, event: dict) -> None:
        left = f"{_duration(event['time_left_s'])} left" if event["done"] < event["total"] else ""
        self.bars.update(self.bar, completed=event["done"], left=left, text=event["text"])

    def _metrics(self, event: dict) -> None:
        if event.get("validation_dice") is not None:
            self.bars.console.print(
                f"  epoch {event['epoch']}: loss {event['loss']:.4f}, Dice {event['validation_dice']:.4f}"
            )

    def _message(self, event: dict) -> None:
        self.bars.console.print(f"  {escape(event['text'])}")

    def _warning(self, event: dict) -> None:
        self.bars.console.print(f"[yellow]note[/]  {escape(event['text'])}")

    def _problem(self, event: dict) -> None:
        self.bars.console.print(f"[red]{escape(event['case'])}[/] left out: {escape(event['text'])}")

    def _done(self, event: dict) -> None:
        self.bars.stop()
        facts = ", ".join(f"{k} {v}" for k, v in event.items() if k not in QUIET)
        self.console.print(f"[green]{event['step']} done[/]  {escape(facts)}")
        for problem in event.get("problems", []):
            self.console.print(f"  [red]{escape(problem['case'])}[/] left out: {escape(problem['message'])}")

    def _cancelled(self, event: dict) -> None:
        self.bars.stop()
        self.console.print(f"[yellow]stopped[/]  {escape(event['text'])}")

    def _error(self, event: dict) -> None:
        self.bars.stop()
        self.console.print(f"[red]error[/]  {escape(event['text'])}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
