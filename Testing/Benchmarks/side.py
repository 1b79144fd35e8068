"""Side: one side of a comparison in a process of its own.

`python side.py MODULE.FUNCTION DATA WORK ...` prints what the function returns as one line of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("KT_DATA", ROOT.parent / "shared" / "data")).resolve()


def side(name: str, work: Path, *arguments) -> dict:
    """Run `module.function(DATA, work, *arguments)` in a process of its own."""
    words = [name, str(DATA), str(work), *map(str, arguments)]
    print(f"- {name} {' '.join(words[3:])}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, __file__, *words], check=False, capture_output=True, encoding="utf-8", cwd=ROOT
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """Of this process alone; Linux lets a child begin with its parent's ru_maxrss."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1024


if __name__ == "__main__":
    name, data, work, *rest = sys.argv[1:]
    module, _, function = name.partition(".")
    with contextlib.redirect_stdout(io.StringIO()):
        result = getattr(importlib.import_module(module), function)(Path(data), Path(work), *rest)
    print(json.dumps(result))
