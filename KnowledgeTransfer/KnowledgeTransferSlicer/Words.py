"""Words: what the library says, in the words of the panel: it speaks of options of the command line, and of files."""

import re
from pathlib import Path

PANEL_WORDS = {
    "add --restart to begin anew": "check Begin anew (under Advanced)",
    "begin anew with --restart": "check Begin anew (under Advanced)",
    "Leave these options out to go on": "Press Continue (Runs in the working folder) to go on",
    "Leave the cohort out (--cohort PATH) to go on": "Press Continue (Runs in the working folder) to go on",
    "the same command goes on where it was": "begin it again",
    "use another run directory": "choose another run name",
    "name another run directory": "choose another run",
    "annotate one first, or name one (--cohort PATH)": "annotate one first, or choose an expert cohort",
    "or name them (--cohort PATH)": "or choose an expert cohort",
    "add --overwrite": "check Replace segmentations that are there",
    "give --trust once; it is remembered": "remove it, add it again and say yes; it is remembered",
    "(--cohort PATH)": "",
    "give the same command again": "begin it again",
    "name at least one (--teacher PATH)": "add at least one",
    "--restart learns them too": "check Begin anew (under Advanced) to learn them too",
    "try a lower --learning-rate, or 32-true": (
        "begin anew with another seed (under Advanced), or choose the processor (cpu) as Device"
    ),
    ", or a lower --learning-rate, may help": " may help",
    "(--from)": "(Start from, under Advanced)",
    "by `annotate --teacher`": "as teachers (tab Annotate)",
    "`segment` needs none": "Segment (third tab) needs none",
    " or give --labels": "",
    "give --device cpu": "choose the processor (cpu) as Device",
    "(pip install TotalSegmentator)": "(press TotalSegmentator…, which installs it after asking)",
    "(totalseg_set_license)": "of TotalSegmentator's makers",
    "with its own command `totalseg_download_weights -t TASK`": (
        "with Slicer's extension TotalSegmentator, by carrying out this task once in its module"
    ),
}
TEMPLATE = re.compile("`describe --template .*` writes")
SAID = ("text", "hint", "risk")  # parts of an event that a person reads


def inWordsOfThePanel(text):
    """A message of the library, with what the panel calls the options of the command line."""
    for option, control in PANEL_WORDS.items():
        text = text.replace(option, control)
    return TEMPLATE.sub("Look again (under Teachers) writes", text)


def eventInWordsOfThePanel(event, names=None):
    """An event whose texts a person reads; `names`: file that was written for the library -> its node's name."""
    said = {part: inWordsOfThePanel(_named(event[part], names)) for part in SAID if isinstance(event.get(part), str)}
    if event["event"] == "problem" and "text" in said:
        said["text"] = _withoutName(said["text"], str(event.get("case")), names)
    return {**event, **said}


def _named(text, names):
    for file, name in (names or {}).items():
        text = text.replace(file, name)
    return text


def _withoutName(text, case, names):
    """A problem is always shown behind its case."""
    own = [case, *(name for file, name in (names or {}).items() if Path(file).stem == case)]
    return next((text.removeprefix(f"{name}: ") for name in own if text.startswith(f"{name}: ")), text)
