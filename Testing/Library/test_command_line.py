"""Command line: help at once, one word per step, exit statuses, JSON lines that any reader understands."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from KnowledgeTransferLib import __main__ as command_line
from KnowledgeTransferLib import __version__
from KnowledgeTransferLib.__main__ import main
from KnowledgeTransferLib.learning.volume import read_annotation, read_image
from KnowledgeTransferLib.options import GROUPS, parser
from KnowledgeTransferLib.records.cohort import read_cohort
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json
from KnowledgeTransferLib.records.settings import DistilSettings
from KnowledgeTransferLib.records.students import STUDENTS
from KnowledgeTransferLib.steps import annotate as annotate_step

REPOSITORY = Path(__file__).parents[2]
STEPS = (
    "annotate",
    "distil",
    "segment",
    "evaluate",
    "study",
    "export",
    "describe",
    "compare",
    "phantom",
    "serve",
    "demo",
)
HELP_OF_EACH_STEP = """
import sys
from KnowledgeTransferLib.__main__ import main
for step in sys.argv[1:]:
    try:
        main([step, "--help"])
    except SystemExit as stop:
        assert stop.code == 0, step
heavy = [n for n in ("torch", "monai", "numpy", "nibabel", "SimpleITK", "rich", "scipy") if n in sys.modules]
sys.stderr.write(f"loaded {heavy}")
"""


def test_help_of_every_step_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_EACH_STEP, *STEPS],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stderr == "loaded []"
    assert done.stdout.count("usage: knowledge-transfer") == len(STEPS)


def test_help_names_every_step_and_every_setting(command):
    text = command("--help").text
    assert all(step in text for step in STEPS)
    text = command("distil", "--help").text
    for option in ("--epochs", "--minutes", "--from", "--restart", "--precision", "--spacing-mm", "--seed", "--split"):
        assert option in text
    assert "{pseudo,expert,both}" in text


def test_help_tells_what_region_first_may_cost(command):
    assert "what the coarse look misses is lost" in " ".join(command("segment", "--help").text.split())


def test_help_of_distil_is_in_groups_and_tells_sizes_and_defaults(command):
    text = command("distil", "--help").text
    for title in GROUPS:
        assert f"\n{title}:\n" in text
    words = " ".join(text.split())
    assert "tiny under 60 000, small 0.25 million, medium 2 million, large 3 to 6 million" in words
    assert all(f"{name} " in words.split("parameters of ")[1] for name in STUDENTS)
    assert "instead of epochs (default: none)" in words and "passes over the training cases (default: chosen)" in words


def test_every_setting_that_a_group_names_exists():
    names = [name for group in GROUPS.values() for name in group]
    assert len(set(names)) == len(names)
    assert set(names) <= {field.name for field in fields(DistilSettings)}


def test_the_version_is_told(command):
    assert command("--version").text.strip() == __version__


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: STEP"),
        ("fly", "invalid choice: 'fly'"),
        ("distil", "the following arguments are required: RUN"),
        ("distil run --student huge", "invalid choice: 'huge' (choose from"),
        ("distil run --epochs many", "argument --epochs: invalid int value: 'many'"),
        ("distil run --device tpu", "invalid choice: 'tpu'"),
        ("segment bundle image", "the following arguments are required: OUTPUT"),
        ("evaluate run --method", "argument --method: expected one argument"),
    ],
)
def test_a_line_that_cannot_be_understood_ends_with_status_2_and_says_why(command, line, message):
    outcome = command(*line.split())
    assert outcome.status == 2
    assert message in outcome.text and "usage: knowledge-transfer" in outcome.text
    assert "Traceback" not in outcome.text


def test_options_become_settings_in_their_types(a_phantom_cohort, command, tmp_path):
    line = ["--annotations", "expert", "--epochs", 1, "--spacing-mm", 12, 12, 13.5, "--mirror-axes", "--no-soft"]
    outcome = command(
        "distil", tmp_path / "run", "--cohort", a_phantom_cohort, *line, "--split", "teacher", "--seed", 7
    )
    assert outcome.status == 0
    stored = read_json(RunDirectory(tmp_path / "run").settings)["distil"]
    assert (stored["spacing_mm"], stored["mirror_axes"], stored["soft"]) == ([12.0, 12.0, 13.5], [], False)
    assert (stored["seed"], stored["reasons"].get("mirror_axes")) == (7, None)
    assert {case["split"] for case in read_json(RunDirectory(tmp_path / "run").cohort)["cases"]} == {"teacher"}
    again = command("distil", tmp_path / "run", *line)
    assert again.status == 0 and "this training is finished" in again.text


def test_the_whole_job_from_the_shell(a_teacher, a_foreign_cohort, command, tmp_path):
    run = tmp_path / "my run"
    site_b = ["--cohort", a_foreign_cohort, "--split"]
    assert command("annotate", run, *site_b, "transferal", "--teacher", a_teacher).status == 0
    assert command("distil", run, "--epochs", 3).status == 0
    image = read_cohort(a_foreign_cohort, "test").cases[0].images[0]
    assert command("segment", run / "student", image, tmp_path / "out.seg.nrrd").status == 0
    assert read_annotation(tmp_path / "out.seg.nrrd", like=read_image(image)).shape == (36, 36, 18)
    methods = ["--method", f"student={run / 'student'}", "--method", f"teacher={a_teacher}"]
    assert command("evaluate", run, *site_b, "test", *methods).status == 0
    names = {path.name for path in run.iterdir()}
    assert names >= {"settings.json", "cohort.json", "student", "events.jsonl", "report.html", "evaluation.json"}
    assert not names & {"checkpoint.pt", "prepared", "log.txt"}


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a/b", "a/b", 1.0),
        ("a/b=2.5", "a/b", 2.5),
        ("C:\\x=y", "C:\\x=y", 1.0),
        ("x=y=0.5", "x=y", 0.5),
        (
            "totalsegmentator:total=left kidney:2,spleen:0",
            "totalsegmentator:total",
            {"left kidney": 2, "spleen": 0},
        ),
        ("C:\\x=y:z", "C:\\x=y:z", 1.0),
    ],
)
def test_a_teacher_is_a_path_with_or_without_a_weight(monkeypatch, command, tmp_path, text, path, weight):
    given = {}

    def annotate(run, cohort, teachers, **_):
        given.update(teachers)
        return {"problems": [], "cases": {}}

    monkeypatch.setattr(annotate_step, "annotate", annotate)
    assert command("annotate", tmp_path, "--teacher", text).status == 0
    assert given == {path: weight}


def test_a_weight_that_is_none_is_told_where_the_teacher_is_there(command, tmp_path):
    (tmp_path / "teacher").mkdir()
    refused = command("annotate", tmp_path / "run", "--teacher", f"{tmp_path / 'teacher'}=two")
    assert refused.status == 2 and "'two' is no weight; write PATH=2" in refused.messages


def test_synonyms_and_how_teachers_are_combined_reach_the_step(monkeypatch, command, tmp_path):
    given = {}
    monkeypatch.setattr(
        annotate_step, "annotate", lambda *_, **asked: given.update(asked) or {"problems": [], "cases": {}}
    )
    more = ("--synonym", "left kidney=kidney_left", "--synonym", "spleen=Milz", "--combine", "staple", "--fill-holes")
    assert command("annotate", tmp_path, "--teacher", "a", *more).status == 0
    assert given["synonyms"] == {"kidney_left": "left kidney", "Milz": "spleen"}
    assert given["combine"] == "staple" and given["fill_holes"] is True
    refused = command("annotate", tmp_path, "--teacher", "a", "--synonym", "spleen")
    assert refused.status == 2 and "write NAME=OTHER" in refused.messages


def test_an_error_is_one_event_and_its_traceback_lies_in_the_log(command, tmp_path):
    tmp_path.joinpath("run").mkdir()
    outcome = command("distil", tmp_path / "run", "--cohort", tmp_path / "nowhere")
    assert outcome.status == 2
    assert [event["event"] for event in outcome.events] == ["error"]
    assert outcome.events[0]["text"] == f"{tmp_path / 'nowhere'}: there is no such file or folder"
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_a_mistake_of_ours_is_told_without_a_traceback_too(monkeypatch, command, tmp_path):
    def broken(*_, **__):
        return {}["nothing"]

    monkeypatch.setattr(annotate_step, "annotate", broken)
    outcome = command("annotate", tmp_path)
    assert outcome.status == 2
    assert outcome.messages == ": unexpected KeyError: 'nothing'"
    assert "Traceback" not in outcome.text


def test_every_event_in_the_file_is_told_on_stdout_too(an_annotated_run, command):
    run = RunDirectory(an_annotated_run)
    already = len(run.events.read_text(encoding="utf-8").splitlines())
    outcome = command("distil", run.path, "--epochs", 2)
    in_file = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()[already:]]
    assert in_file == outcome.events
    assert {event["step"] for event in in_file} == {"distil"}
    assert (in_file[0]["event"], in_file[-1]["event"]) == ("start", "done")


def test_options_of_the_parser_are_the_fields_of_the_settings():
    options = vars(parser().parse_args(["distil", "run"]))
    assert set(command_line.STEPS) == set(STEPS) and set(command_line.WARM) <= set(command_line.SERVED) <= set(STEPS)
    assert {f.name for f in fields(DistilSettings)} - set(options) == {"start_sha256", "live_sha256", "reasons"}
    assert all(options[f.name] is None for f in fields(DistilSettings) if f.name in options)


def test_segmenting_with_a_run_directory_leaves_its_events_there(a_teacher, a_foreign_cohort, command, tmp_path):
    line = ["segment", a_teacher, a_foreign_cohort, tmp_path / "out", "--run", tmp_path / "run"]
    outcome = command(*line)
    run = RunDirectory(tmp_path / "run")
    assert outcome.status == 0
    assert [json.loads(text) for text in run.events.read_text(encoding="utf-8").splitlines()] == outcome.events
    again = command(*line)
    assert again.status == 0 and "4 of 4 are there already and are kept; add --overwrite" in again.text
    assert again.events[-1]["files"] == outcome.events[-1]["files"]
    assert len([event for event in command(*line, "--overwrite").events if event["event"] == "case"]) == 4


@pytest.mark.slow
def test_letters_of_any_language_reach_the_reader_whatever_the_locale(
    a_teacher, a_foreign_cohort, start_process, tmp_path
):
    images = tmp_path / "研究 Müller"
    images.mkdir()
    shutil.copy(read_cohort(a_foreign_cohort).cases[0].images[0], images / "scän 1.nrrd")
    process = start_process("segment", a_teacher, images, tmp_path / "äus", PYTHONIOENCODING="ascii")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    done = json.loads(output.splitlines()[-1])
    assert done["files"] == {"scän 1": str(tmp_path / "äus" / "scän 1.nrrd")}
    assert Path(done["files"]["scän 1"]).is_file()


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_stop_the_step(an_annotated_run, start_process):
    process = start_process("distil", an_annotated_run, "--epochs", "3")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=100) == 0
    assert (an_annotated_run / "student").is_dir()


def test_main_gives_the_status_and_does_not_exit(tmp_path):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert isinstance(main(["segment", str(tmp_path), str(tmp_path), str(tmp_path / "out")]), int)
