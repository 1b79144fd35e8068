"""Terminal: what a person sees of a step's events."""

import io

import pytest
from rich.console import Console

from KnowledgeTransferLib.steps.distil import distil
from KnowledgeTransferLib.terminal import TerminalListener, _duration

HOSTILE = "[red]case[/red] [bold [/] \\[x]"


@pytest.fixture
def terminal() -> TerminalListener:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=160)
    listener = TerminalListener(console)
    yield listener
    listener.bars.stop()


@pytest.fixture
def a_plain_terminal() -> TerminalListener:
    listener = TerminalListener(Console(file=io.StringIO(), width=160))
    yield listener
    listener.bars.stop()


def shown(terminal: TerminalListener) -> str:
    return terminal.console.file.getvalue()


def progress(done: int, text: str = "", left: float = 5.0) -> dict:
    return {"event": "progress", "name": "train", "done": done, "total": 10, "time_left_s": left, "text": text}


def test_a_stage_is_a_bar_with_time_left(terminal):
    terminal({"event": "stage", "name": "train", "total": 10, "done": 0})
    terminal(progress(4, "epoch 2 of 5", 75.0))
    terminal.bars.refresh()
    for word in ("training", "4/10", "1 min 15 s left", "epoch 2 of 5"):
        assert word in shown(terminal)


def test_a_bar_that_is_full_names_no_time_left(terminal):
    terminal({"event": "stage", "name": "train", "total": 10, "done": 9})
    terminal(progress(10, left=0.0))
    terminal.bars.refresh()
    last = shown(terminal).rsplit("10/10", 1)[1]
    assert "left" not in last


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"event": "problem", "case": HOSTILE, "text": f"{HOSTILE} is empty"},
            f"{HOSTILE} left out: {HOSTILE} is empty",
        ),
        ({"event": "error", "text": f"{HOSTILE}: no such file"}, f"error  {HOSTILE}: no such file"),
        ({"event": "message", "text": HOSTILE}, HOSTILE),
        ({"event": "warning", "text": HOSTILE}, f"note  {HOSTILE}"),
        ({"event": "cancelled", "text": HOSTILE}, f"stopped  {HOSTILE}"),
        ({"event": "done", "step": "distil", "student": HOSTILE, "time": "now"}, f"distil done  student {HOSTILE}"),
    ],
)
def test_hostile_names_are_shown_as_they_are(a_plain_terminal, event, words):
    a_plain_terminal(event)
    assert shown(a_plain_terminal).strip() == words


def test_hostile_names_are_shown_as_they_are_in_a_bar(a_plain_terminal):
    a_plain_terminal({"event": "stage", "name": "train", "total": 10, "done": 0})
    a_plain_terminal(progress(1, HOSTILE))
    a_plain_terminal.bars.stop()
    assert HOSTILE in shown(a_plain_terminal)


def test_hostile_names_of_stages_are_shown_as_they_are(a_plain_terminal):
    a_plain_terminal({"event": "stage", "name": "[/]x", "total": 1, "done": 0})
    a_plain_terminal.bars.stop()
    assert "[/]x" in shown(a_plain_terminal)


def test_problems_and_errors_are_red(terminal):
    terminal({"event": "problem", "case": "A_001", "text": "is empty"})
    terminal({"event": "error", "text": "no cases"})
    assert "\x1b[31mA_001\x1b[0m" in shown(terminal)
    assert "\x1b[31merror\x1b[0m" in shown(terminal)


def test_an_error_ends_the_bars(terminal):
    terminal({"event": "stage", "name": "look", "total": 10, "done": 0})
    assert terminal.bars.live.is_started
    terminal({"event": "error", "text": "x"})
    assert not terminal.bars.live.is_started


def test_events_that_nobody_shows_do_no_harm(a_plain_terminal):
    a_plain_terminal({"event": "start", "run": "x"})
    a_plain_terminal({"event": "event of a later version"})
    assert shown(a_plain_terminal) == ""


def test_a_whole_training_is_shown(an_annotated_run, a_plain_terminal):
    distil(an_annotated_run, epochs=2, listener=a_plain_terminal)
    text = shown(a_plain_terminal)
    for word in (
        "looking at cases",
        "preparing",
        "training",
        "epoch 2: loss",
        "Dice 0.",
        "distil done",
        "spacing_mm =",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (90061, "25 h 1 min")],
)
def test_durations_are_told_in_the_unit_that_matters(seconds, words):
    assert _duration(seconds) == words


def test_a_step_ends_with_a_list_of_what_was_left_out(a_plain_terminal):
    a_plain_terminal({"event": "done", "step": "annotate", "problems": [{"case": "A_[7]", "message": "is empty"}]})
    assert "A_[7] left out: is empty" in shown(a_plain_terminal)


def test_a_description_is_readable_and_holds_its_card(a_plain_terminal):
    structures = [{"name": "liver", "color": [1, 2, 3]}, {"name": HOSTILE, "color": [1, 2, 3]}]
    event = {"step": "describe", "event": "done", "path": f"/a/{HOSTILE}", "kind": "student", "structures": structures}
    a_plain_terminal({**event, "hint": f"hint {HOSTILE}", "card": "# Student `tiny`\n\nSegments [liver]."})
    for words in (f"/a/{HOSTILE}: student; segments liver, {HOSTILE}", f"hint {HOSTILE}", "Segments [liver]."):
        assert words in shown(a_plain_terminal)


def test_a_comparison_is_a_table_with_gaps_for_what_cannot_be_measured(a_plain_terminal):
    rows = [
        {"name": "liver", "dice": 0.91234567, "hd95_mm": 2.5, "volume_ml": 1500.0, "reference_ml": 1510.0},
        {"name": HOSTILE, "dice": None, "hd95_mm": None, "volume_ml": None, "reference_ml": 3.0},
    ]
    a_plain_terminal({"step": "compare", "event": "done", "structures": rows})
    for words in ("structure", "HD95 (mm)", "0.9123", "1510", HOSTILE):
        assert words in shown(a_plain_terminal)
    assert "None" not in shown(a_plain_terminal)


def test_tasks_are_told_with_how_to_name_them(a_plain_terminal):
    tasks = {"path": "totalsegmentator:", "kind": "totalsegmentator", "tasks": ["total", "total:fast"]}
    a_plain_terminal({"event": "done", "step": "describe", **tasks})
    assert "totalsegmentator:TASK, where TASK is one of total, total:fast" in shown(a_plain_terminal)


def test_a_template_is_told(a_plain_terminal):
    event = {"event": "done", "step": "describe", "path": "net.onnx", "kind": "onnx", "template": "teacher.json"}
    a_plain_terminal(event)
    assert "teacher.json: fill it in" in shown(a_plain_terminal)
