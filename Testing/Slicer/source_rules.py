"""Rules for the module's source: what works in the tests here, and would not work in Slicer, is refused.

A rule is a function from a syntax tree to the places that break it, as (line, text).
"""

import ast
import sys
from collections.abc import Callable, Iterator

Problems = Iterator[tuple[int, str]]
RULES: dict[str, Callable[[ast.AST], Problems]] = {}

QT_MODULES = ("qt", "ctk")
QT_CLASSES_OF_SLICER = ("qMRML", "qSlicer")
SLICER_PACKAGES = {"slicer", "qt", "ctk", "vtk", "numpy"}
OWN_PACKAGES = {"KnowledgeTransferSlicer", "KnowledgeTransferLib"}
OF_THE_CHILD_ONLY = {"torch", "monai", "nibabel", "SimpleITK", "scipy", "safetensors", "lightning_fabric"}
LIGHT_PARTS_OF_THE_LIBRARY = ("KnowledgeTransferLib.records",)
GONE = {"imp", "distutils", "pkg_resources"}
OTHER_QT = {"PySide6", "PySide2", "PyQt5", "PyQt6", "PythonQt"}
PROPERTIES = {
    "checked", "checkable", "collapsed", "columnCount", "count", "currentIndex", "currentPath", "currentText",
    "enabled", "maximum", "minimum", "objectName", "plainText", "rowCount", "text", "title", "toolTip", "value",
    "visible",
}  # fmt: skip
WRITES = {"update", "setdefault", "pop", "popitem", "clear", "__setitem__"}
HARMLESS_CALLS = {"Path", "re.compile", "frozenset", "logging.getLogger", "namedtuple", "TypeVar", "timedelta"}


def rule(function):
    RULES[function.__name__] = function
    return function


def problems(source: str) -> list[str]:
    """What a source file does wrong: "line: rule: what"."""
    tree = ast.parse(source)
    return [f"{line}: {name}: {text}" for name, check in RULES.items() for line, text in check(tree)]


def dotted(node: ast.AST) -> str:
    """ "qt.QTimer" for the expression qt.QTimer; empty for what is no chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    head = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{head}.{node.attr}" if head else ""


def _is_qt(name: str) -> bool:
    head, _, rest = name.partition(".")
    return head in QT_MODULES or head == "slicer" and rest.startswith(QT_CLASSES_OF_SLICER)


def widget_of(node: ast.AST) -> str:
    """ "okButton" for self.ui.okButton and ui.okButton; empty for all else."""
    name = dotted(node)
    parts = name.split(".")
    return parts[-1] if len(parts) > 1 and parts[-2] == "ui" else ""


def qt_names(source: str) -> set[str]:
    """All names in the modules qt and ctk: "qt.QProcess.Running"."""
    names = {dotted(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return {name for name in names if name.partition(".")[0] in QT_MODULES}


def widget_attributes(source: str) -> set[tuple[str, str]]:
    """(widget, attribute) for each `ui.widget.attribute`."""
    found = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return {(widget_of(node.value), node.attr) for node in found if widget_of(node.value)}


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of all that is imported by name; `from . import x` is not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "__import__"):
            yield from ((node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant))


# ---- PythonQt


@rule
def keywords_for_qt(tree: ast.AST) -> Problems:
    """PythonQt takes no keyword arguments, neither in constructors nor in methods."""
    for call in _calls(tree):
        name, method = dotted(call.func), call.func
        of_widget = isinstance(method, ast.Attribute) and widget_of(method.value)
        if call.keywords and (_is_qt(name) or of_widget):
            yield call.lineno, f"{ast.unparse(call.func)}({call.keywords[0].arg}=...)"


@rule
def signals_made_in_python(tree: ast.AST) -> Problems:
    for node in ast.walk(tree):
        if dotted(node) in ("qt.Signal", "qt.Slot", "qt.Property"):
            yield node.lineno, dotted(node)


@rule
def isinstance_of_qt(tree: ast.AST) -> Problems:
    """The classes of PythonQt's wrappers are not those that one expects."""
    for call in _calls(tree):
        if dotted(call.func) in ("isinstance", "issubclass") and len(call.args) == 2:
            classes = call.args[1].elts if isinstance(call.args[1], ast.Tuple) else [call.args[1]]
            yield from ((call.lineno, ast.unparse(call)) for c in classes if _is_qt(dotted(c)))


@rule
def another_qt(tree: ast.AST) -> Problems:
    yield from ((line, name) for line, name in _imports(tree) if name.partition(".")[0] in OTHER_QT)


@rule
def exec_without_underscore(tree: ast.AST) -> Problems:
    for call in _calls(tree):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "exec":
            yield call.lineno, f"{ast.unparse(call.func)}(), where PythonQt knows exec_()"


@rule
def properties_called(tree: ast.AST) -> Problems:
    """`ui.okButton.text` is the text, and a text cannot be called."""
    for call in _calls(tree):
        method = call.func
        if isinstance(method, ast.Attribute) and method.attr in PROPERTIES and widget_of(method.value):
            yield call.lineno, ast.unparse(call)


# ---- Slicer's process


@rule
def imports_of_the_child(tree: ast.AST) -> Problems:
    """Slicer's process reads records only; networks and images belong to the child process."""
    for line, name in _imports(tree):
        package = name.partition(".")[0]
        heavy = package == "KnowledgeTransferLib" and not name.startswith(LIGHT_PARTS_OF_THE_LIBRARY)
        if package in OF_THE_CHILD_ONLY or heavy:
            yield line, name


@rule
def third_party_at_file_scope(tree: ast.AST) -> Problems:
    known = SLICER_PACKAGES | OWN_PACKAGES | set(sys.stdlib_module_names) - GONE
    for statement in tree.body:
        if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield from ((line, n) for line, n in _imports(statement) if n.partition(".")[0] not in known)


@rule
def modules_that_are_gone(tree: ast.AST) -> Problems:
    yield from ((line, name) for line, name in _imports(tree) if name.partition(".")[0] in GONE)


@rule
def writes_to_the_environment(tree: ast.AST) -> Problems:
    """The child gets an environment of its own; Slicer's is left as it is."""
    for node in ast.walk(tree):
        written = isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del))
        if written and dotted(node.value) == "os.environ":
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            owner, _, method = dotted(node.func).rpartition(".")
            if owner == "os.environ" and method in WRITES or dotted(node.func) in ("os.putenv", "os.unsetenv"):
                yield node.lineno, ast.unparse(node)


@rule
def commands_by_a_shell(tree: ast.AST) -> Problems:
    """Paths with spaces and quotes must reach the child as they are."""
    for call in _calls(tree):
        shell = any(
            k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in call.keywords
        )
        if shell or dotted(call.func) in ("os.system", "os.popen", "subprocess.getoutput"):
            yield call.lineno, ast.unparse(call)


@rule
def messages_without_translation(tree: ast.AST) -> Problems:
    """A person reads what an error says; "{case}: has no annotation" is translated before its names are put in."""
    for node in ast.walk(tree):
        said = node.exc.args[:1] if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else []
        if said and isinstance(said[0], (ast.Constant, ast.JoinedStr)):
            yield node.lineno, ast.unparse(said[0])


@rule
def work_at_file_scope(tree: ast.AST) -> Problems:
    """Slicer imports every module when it starts: only definitions, imports and constants may stand there."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for statement in tree.body:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        constant = isinstance(statement, (ast.Assign, ast.AnnAssign)) and _is_harmless(statement)
        finds_library = isinstance(statement, ast.If) and "find_spec" in ast.unparse(statement.test)
        if not (isinstance(statement, definitions) or docstring or constant or finds_library):
            yield statement.lineno, ast.unparse(statement).splitlines()[0]


def _is_harmless(statement: ast.stmt) -> bool:
    return all(dotted(call.func) in HARMLESS_CALLS for call in _calls(statement))
