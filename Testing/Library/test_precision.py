"""Precision: bf16 and int8 say what they cost in Dice; int8 runs a file that was calibrated on real images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_backends import a_student, an_image, expected

from KnowledgeTransferLib.learning import exporters
from KnowledgeTransferLib.learning.backends import BACKENDS, PRECISIONS, open_backend
from KnowledgeTransferLib.learning.evidence import Evidence, evidence_of, volumes_of
from KnowledgeTransferLib.learning.exported_files import OPENVINO_INT8
from KnowledgeTransferLib.learning.networks import plain
from KnowledgeTransferLib.learning.openvino_graph import has_bf16
from KnowledgeTransferLib.learning.precision_cost import in_words, precision_cost
from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.quantisation import CONVOLUTIONS, in_levels, input_ranges, quantised
from KnowledgeTransferLib.learning.resources import emulates_bf16
from KnowledgeTransferLib.learning.student import load_student
from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_annotation
from KnowledgeTransferLib.options import parser
from KnowledgeTransferLib.records import bundle
from KnowledgeTransferLib.records.cohort import Case, Cohort, read_cohort
from KnowledgeTransferLib.records.labels import Labels

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def an_int8_run(a_teacher, tmp_path_factory) -> Path:
    """A run whose student was exported to OpenVINO in both ways; do not change it."""
    from KnowledgeTransferLib.steps.export import export

    folder = Path(shutil.copytree(a_teacher.parent, tmp_path_factory.mktemp("int8") / "run"))
    export(folder, ["openvino", "openvino-int8"])
    return folder


@pytest.fixture
def scan(a_foreign_cohort) -> Path:
    return sorted((a_foreign_cohort / "images").iterdir())[0]


def texts(outcome) -> str:
    return "\n".join(event["text"] for event in outcome.events if event["event"] == "message")


@pytest.mark.parametrize("values", [(-0.3, 2.0), (0.0, 5.0), (-4.0, 0.0), (-1.0, 1.0)])
def test_a_range_in_levels_holds_0_exactly_and_hardly_changes(values):
    low, high = in_levels(*values)
    step = (high - low) / 255
    assert low < high and abs(low / step - round(low / step)) < 1e-3
    assert abs(low - values[0]) <= step and abs(high - values[1]) <= step


def test_a_layer_whose_input_was_always_0_has_a_range_all_the_same():
    low, high = in_levels(0.0, 0.0)
    assert low == 0 < high < 1e-6


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_as_integers_are_within_half_a_step(axis):
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)).numpy()
    weight[:, 2] *= 100
    weight[0] = 0
    integers, scale = quantised(weight, axis)
    assert integers.dtype == np.int8 and scale.shape[axis] == weight.shape[axis] and scale.size == weight.shape[axis]
    assert (np.abs(integers * scale - weight) <= scale * 0.5001).all()


def test_ranges_are_those_of_the_inputs_over_all_batches():
    student = a_student()
    network, images = plain(student.network), [an_image(student), an_image(student) * 3]
    ranges = input_ranges(network, images)
    assert set(ranges) == {name for name, layer in network.named_modules() if isinstance(layer, CONVOLUTIONS)}
    first = next(name for name, layer in network.named_modules() if isinstance(layer, CONVOLUTIONS))
    assert ranges[first] == (images[1].min().item(), images[1].max().item())
    assert all(low <= 0 <= high for low, high in ranges.values())
    assert not any(layer._forward_pre_hooks for layer in network.modules())


@pytest.mark.parametrize(("design", "dimensions"), [("small", 2), ("small", 3), ("large", 2)])
def test_8_bit_integers_stay_close_to_the_network(design, dimensions):
    from KnowledgeTransferLib.learning.backends import OpenVino
    from KnowledgeTransferLib.learning.openvino_graph import import_openvino

    student = a_student(design, dimensions)
    image = an_image(student)
    model = OpenVino.model_of(student, input_ranges(plain(student.network), [image]))
    assert sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops()) > 5
    compiled = import_openvino().Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(compiled(image.numpy())[0])
    wanted = expected(student, image)
    assert 0 < (found - wanted).norm() < 0.15 * wanted.norm()


def test_int8_runs_the_exported_file_and_tells_what_it_costs(command, an_int8_run, scan, tmp_path):
    files = {precision: tmp_path / f"{precision}.nii.gz" for precision in ("f32", "bf16", "int8")}
    for precision, file in files.items():
        done = command("segment", an_int8_run, scan, file, "--precision", precision)
        assert done.status == 0
        start = next(event for event in done.events if event["event"] == "start")
        assert f"on cpu, {precision}" in start["backend"] and ", from model" in start["backend"]
        known = "Dice 0.9" if precision == "int8" or has_bf16() else "what it costs in Dice was not measured"
        assert texts(done).startswith(f"{precision}: {known}" if precision != "f32" else "")
    f32, _, int8 = (read_annotation(file) for file in files.values())
    assert 0 < (f32 != int8).mean() < 0.02


def test_the_card_and_the_report_tell_what_each_precision_costs(an_int8_run):
    student = load_student(an_int8_run)
    card = (student.folder / bundle.MODEL_CARD).read_text(encoding="utf-8")
    for precision in ("bf16", "int8") if has_bf16() else ("int8",):
        cost = student.card["precisions"][precision]
        assert cost["images"] == 2 == cost["experts"] and cost["source"] == "the run's own cohort"
        assert cost["dice_with_f32"] > 0.95 and abs(cost["dice_lost"]) < 0.05
        assert cost["seconds"] > 0 < cost["seconds_f32"]
        assert f"- {in_words(precision, cost)}" in card
    assert OPENVINO_INT8 in bundle.checked_files(student.folder)


def test_the_dice_lost_is_the_difference_of_the_two_dice_against_the_experts(an_int8_run, monkeypatch):
    student = load_student(an_int8_run)
    case = read_cohort(Path(read_run_cohort(an_int8_run)["source"])).cases[0]
    expert = read_annotation(case.label)
    worse = expert.copy()
    worse[expert == 1] = 0  # loses one of the structures
    monkeypatch.setattr(type(student), "segment", lambda self, _: expert if self.how.precision == "f32" else worse)
    cost = precision_cost(student, "int8", Evidence("here", (case,), student.labels))
    structures = len(student.labels.structures)
    assert cost["dice_lost"] == pytest.approx(1 / structures, abs=1e-4)
    assert cost["dice_with_f32"] == pytest.approx(1 - 1 / structures, abs=1e-4)
    assert f"Dice lost against the experts of 1: +{1 / structures:.4f}" in in_words("int8", cost)


def read_run_cohort(run: Path) -> dict:
    return json.loads((run / "cohort.json").read_text(encoding="utf-8"))


def test_experts_are_matched_by_the_names_of_the_structures(a_phantom_cohort):
    cohort = read_cohort(a_phantom_cohort)
    case = cohort.cases[0]
    volume, annotation = read_image(case.images, case.id), read_annotation(case.label)
    first = cohort.labels.structures[0]
    labels = Labels.from_names({9: first.name.upper(), 3: "something else"})
    found = evidence_of(cohort, "here").expert(case, volume, labels)
    np.testing.assert_array_equal(found, (annotation == first.value) * 9)
    assert evidence_of(cohort, "here").expert(case, volume, Labels.from_names({1: "heart"})) is None


def test_the_cases_that_calibrate_are_others_than_those_that_check(tmp_path):
    files = [tmp_path / f"{number}.nii" for number in range(40)]
    for file in files:
        file.touch()
    evidence = evidence_of(Cohort(tuple(Case(file.stem, (file,)) for file in files)), "here")
    checking, calibrating = ({case.id for case in cases} for cases in (evidence.checking, evidence.calibrating))
    assert len(checking) == len(calibrating) == 8 and not checking & calibrating
    assert evidence.cases[0].id == "0" and int(evidence.cases[-1].id) > 35
    one = Evidence("here", evidence.cases[:1])
    assert one.checking == one.calibrating == evidence.cases[:1]


def test_a_bad_scan_or_annotation_of_a_cohort_is_left_out(a_phantom_cohort, tmp_path):
    first, second, *_ = read_cohort(a_phantom_cohort).cases
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    bad = Case("bad", (tmp_path / "bad.nii.gz",))
    write_annotation(tmp_path / "thin.nii.gz", np.eye(8)[..., None], np.eye(4), Labels.from_names({1: "a"}))
    thin, seen = Case("thin", (tmp_path / "thin.nii.gz",)), Preprocessing(3, (1, 1, 1), (Normalisation("z-score"),))
    assert [case.id for case, _ in volumes_of([bad, thin, first, second], seen)] == [first.id, second.id]
    with pytest.raises(ValueError, match="bad.nii.gz"):
        list(volumes_of([bad], seen))
    labels = read_cohort(a_phantom_cohort).labels
    torn = Evidence("here", (Case("torn", first.images, tmp_path / "bad.nii.gz"),), labels)
    assert torn.expert(torn.cases[0], read_image(first.images), labels) is None


def test_int8_without_its_file_says_how_it_is_made(command, a_teacher, scan, tmp_path):
    done = command("segment", a_teacher, scan, tmp_path / "a.nii.gz", "--precision", "int8")
    assert done.status == 2
    assert "holds no models/model_int8.xml, which int8 needs; it is made from images" in done.messages
    assert "`export --to openvino-int8`" in done.messages


def test_bf16_that_was_not_measured_says_so(command, a_teacher, scan, tmp_path):
    done = command("segment", a_teacher, scan, tmp_path / "a.nii.gz", "--precision", "bf16")
    assert done.status == 0 and "bf16: what it costs in Dice was not measured for this student" in texts(done)


@pytest.mark.parametrize("backend", ["torch", "torchscript"])
def test_a_backend_that_does_not_know_int8_says_which_does(an_int8_run, backend):
    with pytest.raises(ValueError, match=f"{backend} runs in f32.* alone; int8 runs with openvino"):
        open_backend(load_student(an_int8_run), backend, "int8")


def test_int8_is_not_calibrated_on_random_images(command, a_teacher, tmp_path):
    folder = Path(shutil.copytree(a_teacher, tmp_path / "bare"))
    before = bundle.checked_files(folder)
    done = command("export", folder, "--to", "openvino-int8")
    assert done.status == 2 and "calibrated on real images, and none are there; name some (--check PATH)" in done.text
    assert bundle.checked_files(folder) == before


def test_an_int8_export_that_would_be_another_student_is_refused(command, an_int8_run, monkeypatch):
    before = bundle.checked_files(an_int8_run / "student")
    monkeypatch.setattr(exporters, "LEAST_DICE", 0.99999)
    done = command("export", an_int8_run, "--to", "openvino-int8")
    assert done.status == 2 and "at least 0.99999 is needed; nothing was exported" in done.messages
    assert bundle.checked_files(an_int8_run / "student") == before


def test_an_int8_export_of_a_student_that_finds_nothing_is_refused(an_int8_run, monkeypatch):
    student = load_student(an_int8_run)
    monkeypatch.setattr(type(student), "segment", lambda self, volume: np.zeros(volume.shape, np.uint8))
    evidence = evidence_of(Cohort.from_json(read_run_cohort(an_int8_run)), "here")
    with pytest.raises(ValueError, match="finds none of its structures on 2 image.s.; name others"):
        exporters._check_costs(student, "openvino-int8", {"int8": precision_cost(student, "int8", evidence)})


def test_options_and_documentation_name_every_export_backend_and_precision():
    steps = parser()._subparsers._group_actions[0].choices
    choices = {(step, action.dest): action.choices for step in ("export", "segment") for action in steps[step]._actions}
    assert set(choices["export", "to"]) == set(exporters.EXPORTERS)
    assert choices["segment", "backend"] == ("auto", *BACKENDS) and choices["segment", "precision"] == PRECISIONS
    text = (Path(__file__).parents[2] / "docs" / "segmenting.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in text for kind in exporters.EXPORTERS)
    assert all(f"`{name}`" in text for name in BACKENDS) and all(name in text for name in PRECISIONS)


@pytest.mark.parametrize(
    ("device", "processor", "slow"), [("cpu", "AVX2", 1), ("cpu", "AVX512", 0), ("cuda", "AVX2", 0)]
)
def test_a_processor_without_bfloat16_is_known(device, processor, slow, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: processor)
    assert emulates_bf16(device) == slow


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("there", [True, False])
def test_a_backend_says_where_the_processor_has_no_bf16(backend, there, monkeypatch):
    monkeypatch.setattr("KnowledgeTransferLib.learning.backends.emulates_bf16", lambda device: not there)
    monkeypatch.setattr("KnowledgeTransferLib.learning.backends.has_bf16", lambda: there)
    assert ("this processor has none" in open_backend(a_student(), backend, "bf16").about) != there
    assert "this processor" not in open_backend(a_student(), backend, "f32").about


def test_what_bf16_costs_is_not_measured_where_the_processor_has_none(
    a_teacher, a_foreign_cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(exporters, "has_bf16", lambda: False)
    folder = Path(shutil.copytree(a_teacher, tmp_path / "student"))
    found = exporters.write_export(
        load_student(folder), "openvino", folder, evidence_of(read_cohort(a_foreign_cohort), "")
    )
    assert found["precisions"] == {} == load_student(folder).card.get("precisions")
