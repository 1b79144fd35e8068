"""LibraryProcess: runs the library as child processes. Events come in by files, so that a run can outlive Slicer."""

from pathlib import Path

import qt

from KnowledgeTransferLib.records.run_directory import RunDirectory

from .Jobs import AttachedJob, OwnJob
from .WarmProcess import WarmJob, WarmProcess

POLL_MS = 20


class Library:
    """Starts steps, keeps the warm process, and looks at all jobs from Slicer's event loop."""

    def __init__(self):
        self._jobs = []
        self.warm = None
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self.poll)

    @property
    def jobs(self):
        """Those that run."""
        return [job for job in self._jobs if job.running]

    def start(self, step, run, arguments):
        """A step in a process of its own."""
        return self._watch(OwnJob(step, run, [str(a) for a in arguments]))

    def attach(self, runDirectory):
        """Follow a step that another process started, or the job of this Slicer that works in that folder."""
        run = RunDirectory(runDirectory)
        return self.jobIn(run.path) or self._watch(AttachedJob(run))

    def ask(self, step, run, arguments):
        """A step in the warm process."""
        return self._watch(WarmJob(step, run, arguments, self._livingProcess))

    def _livingProcess(self):
        if self.warm is not None and self.warm.exitStatus() is not None:
            self._endWarmProcess()
        self.warm = self.warm or WarmProcess()
        return self.warm

    def _endWarmProcess(self):
        warm, self.warm = self.warm, None
        if warm is not None:
            warm.close()

    def jobIn(self, path):
        return next((job for job in self.jobs if job.run.path == Path(path).absolute()), None)

    def poll(self):
        for job in list(self._jobs):
            job.poll()
        self._jobs = self.jobs
        if not self._jobs:
            self._timer.stop()

    def close(self, stopRuns=False):
        """Slicer ends: the warm process ends with it, runs go on unless they are to be stopped too."""
        self._timer.stop()
        jobs, self._jobs = self.jobs, []
        ending = [job for job in jobs if stopRuns or not isinstance(job, OwnJob)]  # what goes on needs its folder
        for job in ending:
            if isinstance(job, OwnJob):
                job.cancel()
                job.stopProcesses(gently=True)
        self._endWarmProcess()
        for job in ending:
            job.removeTemporary()

    def _watch(self, job):
        self._jobs.append(job)
        if not self._timer.active:
            self._timer.start()
        return job
