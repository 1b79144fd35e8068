"""slicer.i18n, written for the stand-in: texts stay as they are."""

import inspect
from pathlib import Path


def translate(context, text):
    """The text in the application's language."""
    import slicer

    return slicer.app.translate(context, text) if hasattr(slicer, "app") else text


def getContext(file):
    """The name under which a file's texts are looked up: Package.Module, or Module."""
    path = Path(file)
    in_package = (path.parent / "__init__.py").is_file()
    return f"{path.parent.name}.{path.stem}" if in_package else path.stem


def tr(text):
    """Translates in the context of the calling file; imported as `_`."""
    return translate(getContext(inspect.currentframe().f_back.f_code.co_filename), text)
