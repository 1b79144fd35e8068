"""Requirements: what the library needs in Slicer's Python; installed only when needed, after one clear question."""

import platform
import re
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import slicer
from slicer.i18n import tr as _

KEPT = ("numpy", "SimpleITK", "requests")  # of Slicer itself; pip must not replace them
TOTAL_SEGMENTATOR, NN_UNET = "TotalSegmentator>=2.18", "nnunetv2>=2.8"  # what only some teachers need
ONNX_RUNTIME, YAML = "onnxruntime", "pyyaml"
_busy = []  # what is being installed; meanwhile Slicer's event loop goes on now and then
LINE = re.compile(r"^([A-Za-z0-9_.-]+)\s*(?:>=\s*([0-9.]+))?")


class RequirementsError(RuntimeError):
    """Something that the library needs is not there; the message says what to do."""


def requirements():
    """Name and lowest version of each package, from the library's own list."""
    text = (Path(find_spec("KnowledgeTransferLib").origin).parent / "requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [LINE.match(line).groups() for line in lines if line]


def missing(also=()):
    """The requirements that are not met, such as ["torch>=2.8"]; nothing is imported to find out."""
    wanted = [*requirements(), *(LINE.match(package).groups() for package in also)]
    return [f"{name}>={lowest}" if lowest else name for name, lowest in wanted if not _isThere(name, lowest)]


def _isThere(name, lowest):
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return not lowest or _numbers(found) >= _numbers(lowest)


def _numbers(version):
    return [int(part) for part in re.match(r"[0-9.]*", version)[0].strip(".").split(".") if part]


def impossible():
    """Why the packages cannot be had on this computer; empty where they can."""
    if sys.platform == "darwin" and platform.machine() == "x86_64" and any("torch" in name for name in missing()):
        return _(
            "This Slicer is made for Macs with an Intel processor (also where an Apple processor runs it), and PyTorch "
            "has not been made for these since version 2.2. Runs can be looked at and reviewed here; to annotate, "
            "distil or segment, use a Slicer for Windows or Linux, or one made for Apple processors."
        )
    return ""


def explanation(packages):
    return _(
        "KnowledgeTransfer needs these Python packages, which are not installed yet:\n\n{packages}\n\n"
        "They are downloaded from pypi.org and pytorch.org (up to 3 GB for a GPU) and installed into Slicer's own "
        "Python. Nothing is sent anywhere. Install them now?"
    ).format(packages=", ".join(packages))


def ensure(ask=True, also=()):
    """Install what is missing, after asking.

    Args:
        also: packages beside the library's own list, such as TOTAL_SEGMENTATOR.

    Raises:
        RequirementsError: the user declined, PyTorch's extension is missing, or the installation did not work.
    """
    packages = missing(also)
    if not packages:
        return
    if _busy:
        raise RequirementsError(_("The packages are being installed; wait until that is done"))
    if impossible():
        raise RequirementsError(impossible())
    if ask and not slicer.util.confirmOkCancelDisplay(explanation(packages), _("Install Python packages")):
        raise RequirementsError(_("Not installed: {packages}").format(packages=", ".join(packages)))
    _busy.append(packages)
    try:
        _install(packages)
    except RequirementsError:
        raise
    except Exception as error:  # pip has many ways to fail: no network, a proxy, no room
        raise RequirementsError(_("The installation did not work: {error}").format(error=error)) from error
    finally:
        _busy.clear()
    left = missing(also)
    if left:
        raise RequirementsError(
            _("Could not be installed: {packages}. Restart Slicer and try again").format(packages=", ".join(left))
        )


def _install(packages):
    torch = next((package for package in packages if re.match(r"torch\b", package)), None)
    if torch:
        _installTorch(torch)
    others = [package for package in packages if package != torch]
    if others:
        _pipInstall(others)


def _installTorch(requirement):
    """Through the extension PyTorch, which knows the right build for this computer's GPU."""
    try:
        import PyTorchUtils
    except ImportError:
        raise RequirementsError(
            _("The extension PyTorch is missing; install it in the Extensions Manager and restart Slicer")
        ) from None
    version = requirement[len("torch") :]
    if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=version) is None:
        raise RequirementsError(_("PyTorch could not be installed; see the extension PyTorch (module PyTorch Util)"))


def _pipInstall(packages):
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(_pins()), encoding="utf-8")
        if find_spec("slicer.packaging"):  # Slicer 5.12
            from slicer.packaging import pip_ensure

            pip_ensure(packages, constraints=constraints, prompt_install=False, requester="KnowledgeTransfer")
        else:
            slicer.util.pip_install([*packages, "-c", str(constraints)])


def _pins():
    """What must stay as it is, as pip's constraints."""
    for name in (*KEPT, "torch", "torchvision"):  # the last two fit each other, and the graphics card
        try:
            yield f"{name}=={metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
