"""Stand-in for ctkPathLineEdit, with CTK's rules for the history and the dialog."""

from PySide6.QtCore import Property, QSettings, Signal
from PySide6.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QToolButton, QWidget

from slicer_standin.pythonqt import stored_property as plain
from slicer_standin.ui_loader import register


@register
class ctkPathLineEdit(QWidget):
    """A path with its history, kept in the settings under settingKey (or the widget's name), and a button to browse."""

    Dirs, Files, Drives, NoSymLinks = 0x001, 0x002, 0x004, 0x008
    Readable, Writable, Executable, Hidden = 0x010, 0x020, 0x040, 0x100
    NoDot, NoDotDot, NoDotAndDotDot = 0x2000, 0x4000, 0x6000
    MAX_HISTORY = 5
    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._filters, self._key = self.Dirs | self.Files | self.Readable, ""
        self._combo, self._button = QComboBox(), QToolButton()
        self._combo.setEditable(True)
        self._combo.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self._button.setText("...")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self._combo, 1)
        layout.addWidget(self._button)
        self._valid = None
        self._combo.lineEdit().textChanged.connect(self._tell)
        self._button.clicked.connect(self.browse)

    def _tell(self, path):
        """As in CTK, an empty path is told as invalid input alone."""
        if self._valid != bool(path):
            self._valid = bool(path)
            self.validInputChanged.emit(self._valid)
        if path:
            self.currentPathChanged.emit(path)

    def setCurrentPath(self, path):
        self._combo.lineEdit().setText(path)

    def setFilters(self, filters):
        self._filters = int(filters)

    def setSettingKey(self, key):
        self._key = key
        self.retrieveHistory()

    currentPath = Property(str, lambda self: self._combo.lineEdit().text, setCurrentPath)
    filters = Property(int, lambda self: self._filters, setFilters)
    settingKey = Property(str, lambda self: self._key, setSettingKey)
    label = plain(str, "")
    nameFilters = plain("QStringList", [])
    showHistoryButton = plain(bool, True)
    showBrowseButton = Property(
        bool, lambda self: not self._button.isHidden(), lambda self, v: self._button.setVisible(v)
    )

    def comboBox(self):
        return self._combo

    def browse(self):
        """A directory is asked for only where files are not allowed, as in CTK."""
        if self._filters & self.Files:
            choose = QFileDialog.getSaveFileName if self._filters & self.Writable else QFileDialog.getOpenFileName
        else:
            choose = QFileDialog.getExistingDirectory
        path = choose(self, "Select", self.currentPath)
        if path:
            self.setCurrentPath(path)

    def _history_key(self):
        return "ctkPathLineEdit/" + (self._key or self.objectName)

    def retrieveHistory(self):
        """Without a path, the most recent one becomes the current path."""
        path = self.currentPath
        was_blocked = self.blockSignals(True)
        self._combo.clear()
        self._combo.addItems((QSettings().value(self._history_key()) or [])[: self.MAX_HISTORY])
        if path:
            self.setCurrentPath(path)
        self.blockSignals(was_blocked)
        if not path and self._combo.count:
            self.currentPathChanged.emit(self.currentPath)

    def addCurrentPathToHistory(self):
        path = self.currentPath
        if not path:
            return
        history = [path, *(p for p in QSettings().value(self._history_key()) or [] if p != path)]
        QSettings().setValue(self._history_key(), history)
        was_blocked = self.blockSignals(True)
        self._combo.clear()
        self._combo.addItems(history[: self.MAX_HISTORY])
        self.blockSignals(was_blocked)
