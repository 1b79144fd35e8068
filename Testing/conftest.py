"""Fixtures that the tests of the library and of the Slicer extension share: small cohorts, a teacher, a run."""

import os
import shutil
from pathlib import Path

import pytest

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # share the cores, also with the tests' children
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.fixture(autouse=True)
def _trust_of_its_own(tmp_path_factory, monkeypatch, request):
    """No test reads or writes the user's own list of trusted teachers, or another test's."""
    folder = tmp_path_factory.getbasetemp() / "config" / str(abs(hash(request.node.nodeid)))
    monkeypatch.setenv("KT_CONFIG", str(folder))


@pytest.fixture(scope="session")
def a_phantom_cohort(tmp_path_factory) -> Path:
    """Four small scans of site A with expert annotations, split into teacher and test; do not change it."""
    from KnowledgeTransferLib.learning.phantom import write_phantom

    return write_phantom(tmp_path_factory.mktemp("cohort") / "site A", cases=4, site="A", size_voxels=(32, 32, 20))


@pytest.fixture(scope="session")
def a_foreign_cohort(tmp_path_factory) -> Path:
    """Four small scans of site B, split into transferal and test; do not change it."""
    from KnowledgeTransferLib.learning.phantom import write_phantom

    return write_phantom(tmp_path_factory.mktemp("cohort") / "site B", cases=4, site="B", size_voxels=(36, 36, 18))


@pytest.fixture(scope="session")
def a_teacher(tmp_path_factory, a_phantom_cohort) -> Path:
    """A bundle that learnt from site A's expert annotations; do not change it."""
    from KnowledgeTransferLib.steps.distil import distil

    run = tmp_path_factory.mktemp("teacher")
    return Path(distil(run, a_phantom_cohort, annotations="expert", epochs=20)["student"])


@pytest.fixture(scope="session")
def the_annotated_run(tmp_path_factory, a_teacher, a_foreign_cohort) -> Path:
    """A run in which the teacher annotated site B; do not change it."""
    from KnowledgeTransferLib.steps.annotate import annotate

    run = tmp_path_factory.mktemp("annotated") / "run"
    annotate(run, a_foreign_cohort, {str(a_teacher): 1.0})
    return run


@pytest.fixture
def an_annotated_run(the_annotated_run, tmp_path) -> Path:
    """A copy of `the_annotated_run`, free to change."""
    return Path(shutil.copytree(the_annotated_run, tmp_path / "annotated run"))
