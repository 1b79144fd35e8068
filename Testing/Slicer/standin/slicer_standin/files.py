"""Stand-in for qSlicerCoreIOManager: reads and writes nodes with the real storage nodes and module logics."""

import os
from pathlib import Path

import slicer
import vtk

WRITERS = {
    "vtkMRMLSegmentationNode": "SegmentationFile",
    "vtkMRMLVolumeNode": "VolumeFile",
    "vtkMRMLModelNode": "ModelFile",
    "vtkMRMLTableNode": "TableFile",
    "vtkMRMLTransformNode": "TransformFile",
    "vtkMRMLColorTableNode": "ColorTableFile",
}
READERS = {
    "SceneFile": (".mrml", ".mrb"),
    "SegmentationFile": (".seg.nrrd", ".seg.nhdr", ".seg.vtm"),
    "ModelFile": (".vtk", ".vtp", ".stl", ".obj", ".ply"),
    "TransformFile": (".h5", ".tfm", ".mat"),
    "TableFile": (".tsv", ".csv"),
    "ColorTableFile": (".ctbl",),
}
# slicer-core does not list the formats that ITK writes, though it writes them
VOLUME_FORMATS = [f"Volume ({e})" for e in (".nrrd", ".nhdr", ".nii.gz", ".nii", ".mha", ".mhd")]


class FileManager:
    """slicer.app.ioManager()."""

    def fileType(self, path) -> str:
        name = str(path).lower()
        return next((kind for kind, endings in READERS.items() if name.endswith(endings)), "VolumeFile")

    def fileWriterFileType(self, node) -> str:
        return next((kind for node_class, kind in WRITERS.items() if node.IsA(node_class)), "")

    def fileWriterExtensions(self, node) -> list[str]:
        types = _storage_for(node).GetSupportedWriteFileTypes()
        formats = [types.GetValue(index) for index in range(types.GetNumberOfValues())]
        return formats or (VOLUME_FORMATS if node.IsA("vtkMRMLVolumeNode") else [])

    def extractKnownExtension(self, path, node) -> str:
        extension_of = slicer.vtkDataFileFormatHelper.GetFileExtensionFromFormatString
        extensions = [extension_of(f) for f in self.fileWriterExtensions(node)]
        return max((e for e in extensions if e and str(path).endswith(e)), key=len, default="")

    # ---- reading

    def loadNodes(self, kind: str, properties: dict, loaded=None, messages=None) -> bool:
        path = properties["fileName"]
        if not os.path.isfile(path):
            if messages is not None:
                messages.AddMessage(vtk.vtkCommand.ErrorEvent, f"there is no {path}")
            return False
        if kind == "SceneFile":
            return self._load_scene(path, properties)
        node = getattr(self, f"_load_{kind}")(path, properties, messages)
        if node is not None and loaded is not None:
            loaded.AddItem(node)
        return node is not None

    def _load_scene(self, path: str, properties: dict) -> bool:
        scene, clear = slicer.mrmlScene, bool(properties.get("clear", False))
        if path.endswith(".mrb"):
            return bool(scene.ReadFromMRB(path, clear))
        scene.SetURL(path)
        scene.SetRootDirectory(os.path.dirname(os.path.abspath(path)))
        return bool(scene.Connect() if clear else scene.Import())

    def _load_VolumeFile(self, path, properties, messages):
        flags = {"labelmap": 1, "center": 2, "singleFile": 4, "autoWindowLevel": 8, "discardOrientation": 16}
        asked = {"autoWindowLevel": True, **properties}
        options = sum(flag for name, flag in flags.items() if asked.get(name))
        name = properties.get("name") or stem(path)
        node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options, None)
        if node is not None and properties.get("show", True):
            _show(node)
        return node

    def _load_SegmentationFile(self, path, properties, messages):
        colors = slicer.mrmlScene.GetNodeByID(properties.get("colorNodeID") or "")
        opacities, name = properties.get("autoOpacities", True), properties.get("name") or ""
        logic = slicer.modules.segmentations.logic()
        return logic.LoadSegmentationFromFile(path, opacities, name, colors, messages)

    def _load_ModelFile(self, path, properties, messages):
        return slicer.modules.models.logic().AddModel(path)

    def _load_TableFile(self, path, properties, messages):
        return slicer.modules.tables.logic().AddTable(path)

    def _load_TransformFile(self, path, properties, messages):
        return slicer.modules.transforms.logic().AddTransform(path, slicer.mrmlScene)

    def _load_ColorTableFile(self, path, properties, messages):
        return slicer.modules.colors.logic().LoadColorFile(path, properties.get("name") or stem(path))

    # ---- writing

    def saveNodes(self, kind: str, properties: dict, messages=None) -> bool:
        path = str(properties["fileName"])
        if kind == "SceneFile":
            return self._save_scene(path)
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        return _write(node, node.GetStorageNode(), path, properties)

    def _save_scene(self, path: str) -> bool:
        scene = slicer.mrmlScene
        if path.endswith(".mrb"):
            return bool(scene.WriteToMRB(path))
        if path.endswith(".mrml"):
            scene.SetURL(path)
            scene.SetRootDirectory(os.path.dirname(os.path.abspath(path)))
            return bool(scene.Commit(path))
        os.makedirs(path, exist_ok=True)
        return bool(slicer.app.applicationLogic().SaveSceneToSlicerDataBundleDirectory(path, None))

    def exportNodes(self, node_ids, paths, properties, harden=False, messages=None) -> bool:
        nodes = [slicer.mrmlScene.GetNodeByID(node_id) for node_id in node_ids]
        return all([_export(node, str(p), properties, harden) for node, p in zip(nodes, paths, strict=True)])


def stem(path) -> str:
    """The file's name without .nii.gz, .seg.nrrd and the like."""
    name = Path(path).name
    double = next((e for e in (".nii.gz", ".seg.nrrd", ".seg.nhdr") if name.lower().endswith(e)), None)
    return name[: -len(double)] if double else Path(name).stem


def _storage_for(node):
    storage = node.CreateDefaultStorageNode()
    storage.UnRegister(None)  # the Python variable owns it
    return storage


def _write(node, storage, path: str, properties: dict) -> bool:
    storage.SetFileName(path)
    if "useCompression" in properties:
        storage.SetUseCompression(int(properties["useCompression"]))
    return bool(storage.WriteData(node))


def _export(node, path: str, properties: dict, harden: bool) -> bool:
    if not (harden and node.IsA("vtkMRMLTransformableNode") and node.GetParentTransformNode()):
        return _write(node, _storage_for(node), path, properties)
    copy = slicer.mrmlScene.AddNewNodeByClass(node.GetClassName())
    copy.Copy(node)
    copy.HardenTransform()
    written = _write(copy, _storage_for(copy), path, properties)
    slicer.mrmlScene.RemoveNode(copy)
    return written


def _show(node) -> None:
    selection = slicer.app.applicationLogic().GetSelectionNode()
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        selection.SetReferenceActiveLabelVolumeID(node.GetID())
    else:
        selection.SetReferenceActiveVolumeID(node.GetID())
    slicer.app.applicationLogic().PropagateVolumeSelection()
