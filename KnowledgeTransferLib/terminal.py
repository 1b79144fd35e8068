"""Terminal: a step's events as a person reads them, with progress bars and time left."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .records.progress import STAGES

QUIET = ("time", "step", "event", "files", "problems", "exports")  # not shown in a step's last line


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
        name = STAGES.get(event["name"], event["name"])
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
        tell = {"describe": self._description, "compare": self._comparison}.get(event["step"], self._facts)
        tell(event)

    def _description(self, event: dict) -> None:
        if "template" in event:
            return self.console.print(f"{escape(event['template'])}: fill it in")
        if "tasks" in event:
            return self.console.print(f"{escape(event['path'])}TASK, where TASK is one of {', '.join(event['tasks'])}")
        names = ", ".join(structure["name"] for structure in event["structures"])
        self.console.print(f"{escape(event['path'])}: {event['kind']}; segments {escape(names)}")
        for text in filter(None, (event["hint"], event["card"])):
            self.console.print(escape(text))

    def _comparison(self, event: dict) -> None:
        table = Table("structure", "Dice", "HD95 (mm)", "volume (ml)", "reference (ml)")
        for row in event["structures"]:
            figures = [row[name] for name in ("dice", "hd95_mm", "volume_ml", "reference_ml")]
            table.add_row(escape(row["name"]), *("" if figure is None else f"{figure:.4g}" for figure in figures))
        self.console.print(table)

    def _facts(self, event: dict) -> None:
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
