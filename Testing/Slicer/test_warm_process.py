"""WarmProcess: what ends a request that is at work ends no other one; a stand-in for `serve` answers them."""

import os
import signal
import subprocess
import sys

import pytest

from KnowledgeTransferLib.records.run_directory import RunDirectory

pytestmark = [
    pytest.mark.own_warm_process,
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]
SERVE = """
import json, os, signal, sys, time
served = open(sys.argv[1] + "/served.jsonl", "a")

def tell(event, **fields):
    print(json.dumps({"event": event, "id": number, **fields}), file=served, flush=True)

def stop(*_):
    tell("served", status=130)
    os._exit(0)

for line in sys.stdin:
    request = json.loads(line)
    number, step = request["id"], request["arguments"][0]
    signal.signal(signal.SIGTERM, stop if step == "patient" else signal.SIG_IGN if step == "deaf" else signal.SIG_DFL)
    tell("start")
    if step != "quick":
        time.sleep(600)
    tell("done", pid=os.getpid())
    tell("served", status=0)
"""


@pytest.fixture
def library(a_scene, monkeypatch):
    from KnowledgeTransferSlicer import Jobs, WarmProcess
    from KnowledgeTransferSlicer.LibraryProcess import Library

    def start(arguments, log, stdin):
        return subprocess.Popen([sys.executable, "-c", SERVE, arguments[1]], stdin=stdin, start_new_session=True)

    monkeypatch.setattr(WarmProcess, "startChild", start)
    monkeypatch.setattr(Jobs, "GRACE_S", 0.2)
    monkeypatch.setattr(Jobs, "GRACE_OF_SIGNAL_S", 0.3)
    library = Library()
    yield library
    library.close()


@pytest.fixture
def ask(library, tmp_path, wait_until):
    """Asks for steps, each with a run directory, and waits until the first one is at work."""

    def ask(*steps):
        runs = [RunDirectory(tmp_path / f"{number} {step}").create() for number, step in enumerate(steps)]
        jobs = [library.ask(step, run, []) for step, run in zip(steps, runs, strict=True)]
        wait_until(lambda: jobs[0].began)
        return jobs

    return ask


@pytest.mark.parametrize("step", ["patient", "deaf"])
def test_requests_that_wait_go_on_when_the_one_at_work_is_stopped(library, ask, wait_until, step):
    first, second, third = ask(step, "quick", "quick")
    old = library.warm.process.pid
    first.cancel()
    wait_until(lambda: not library.jobs)
    assert [job.status for job in (first, second, third)] == [130, 0, 0], second.error
    assert second.result["pid"] == third.result["pid"] == library.warm.process.pid != old


def test_requests_that_wait_go_on_when_the_process_dies_of_the_one_at_work(library, ask, wait_until):
    first, second = ask("deaf", "quick")
    os.kill(library.warm.process.pid, signal.SIGKILL)
    wait_until(lambda: not library.jobs)
    assert first.status == -signal.SIGKILL and "ended unexpectedly" in first.error
    assert second.status == 0, second.error


def test_a_request_that_waits_and_is_cancelled_too_is_not_begun_anew(library, ask, wait_until):
    first, second = ask("patient", "quick")
    second.cancel()
    first.cancel()
    wait_until(lambda: not library.jobs)
    assert first.status == second.status == 130 and not second.began


def test_where_no_process_can_be_started_again_the_requests_end_with_a_message(library, ask, monkeypatch, wait_until):
    from KnowledgeTransferSlicer import WarmProcess

    first, second = ask("deaf", "quick")

    def fail(*_, **__):
        raise OSError("no such program")

    monkeypatch.setattr(WarmProcess, "startChild", fail)
    first.cancel()
    wait_until(lambda: not library.jobs)
    assert first.status == 130 and "ended unexpectedly" in second.error
