"""Student: a network with its labels and preprocessing; saved as a bundle, opened from one, usable as a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from ..records import bundle
from ..records.labels import Labels
from ..records.run_directory import write_json, write_text, written_whole
from ..records.students import Design, design_named
from .backends import Runner, open_backend
from .components import largest_components
from .memory import check_probabilities_fit, fitting_voxels
from .model_card import model_card, monai_inference, monai_metadata
from .networks import build_network, drawn_from, lower_background, most_alive, parameters_of
from .predictor import class_maps, predict, whole_image_limit
from .preprocessing import Grid, Preprocessing, probabilities_in_volume, way_back
from .region import region_of_structures
from .resources import give_back_freed_memory
from .volume import Volume

MOST_LOWERED = 10.0  # far more than decision.py takes
LARGE_VOXELS = 1 << 24  # of a volume: from here on, memory is given back before the network runs
BESIDE_BYTES = 1 << 27  # of a pass; there are as many at the same time as cores


@dataclass(frozen=True)
class How:
    """How a student is run.

    backend: a key of BACKENDS, or auto.
    precision: f32; less exact and on many processors faster: bf16, or int8 from a file of `export`.
    mirror: average over mirror images too, along the axes along which the student was trained with mirrored images.
    largest_component: keep only the largest connected part of each structure.
    region_first: find the structures at a coarse resolution, then work only around them.
    most_bytes: of memory for this process; None: what is free.
    """

    backend: str = "auto"
    precision: str = "f32"
    mirror: bool = False
    largest_component: bool = False
    region_first: bool = False
    most_bytes: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A volume as a student sees it, and what an answer needs to be brought back; the volume itself is not kept."""

    image: torch.Tensor  # (C, i, j, k) float32
    grid: Grid
    affine: np.ndarray  # of the volume
    name: str


@dataclass
class Student:
    """A network that segments; satisfies Teacher, so that a student can teach the next one.

    `card` is what the model card tells: what taught it and how well (plain data, nothing of any patient). `lowered` is
    what was taken from the logit of the background, so that it draws with the best Dice (decision.py).
    """

    network: nn.Module
    design: Design
    labels: Labels
    preprocessing: Preprocessing
    card: dict = field(default_factory=dict)
    device: str = "cpu"
    name: str = "student"
    folder: Path | None = None  # the bundle it was read from
    how: How = How()
    footprint: float | None = None  # its values_per_voxel where the bundle tells it
    lowered: float = 0.0

    @property
    def parameters(self) -> int:
        return parameters_of(self.network)

    @property
    def drawn_from(self) -> float:
        """The probability from which a structure is drawn, out of its own and the background's together."""
        return drawn_from(self.lowered)

    @property
    def limit_voxels(self) -> int:
        """Larger prepared images go through in windows where the network has a norm over the image."""
        return whole_image_limit(self.values_per_voxel)

    @cached_property
    def values_per_voxel(self) -> float:
        """Values that the network holds at once for each voxel of an image.

        Finding it out makes torch load a part of its compiler: a second and 80 MiB, which who only segments is spared.
        """
        return self.footprint or most_alive(self.network, self.preprocessing.channels)

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Along which the student was trained with mirrored images."""
        return tuple(self.card.get("settings", {}).get("mirror_axes") or ())

    @cached_property
    def runner(self) -> Runner:
        """What runs the network."""
        return open_backend(self, self.how.backend, self.how.precision)

    def run_as(self, how: How) -> Student:
        """Change how it is run.

        Raises:
            ValueError: mirror images are asked for, but it was trained without; or only a region, but its network
                looks at the whole image.
        """
        if how.region_first and self.network.margin is None:
            design = f"its design {self.design.name} looks at the whole image"
            raise ValueError(f"{self.name}: {design}, so that no region stands alone; leave out --region-first")
        if how.mirror and not self.mirror_axes:
            raise ValueError(
                f"{self.name}: was trained without mirror images, and would not know them; leave out --mirror"
            )
        if (how.backend, how.precision) != (self.how.backend, self.how.precision):
            self.__dict__.pop("runner", None)
        self.how = how
        return self

    def prepare(self, volume: Volume) -> Prepared:
        """Bring a volume to the student's grid; errors as `Preprocessing.prepare`."""
        return Prepared(*self.preprocessing.prepare(volume), volume.affine, volume.name)

    def opens_beside(self) -> bool:
        """Whether small images may go through beside each other; opens what two threads must not open at a time."""
        return self.runner.beside is not None and self.values_per_voxel > 0

    def goes_beside(self, prepared: Prepared) -> bool:
        """Whether an image is so small that it goes through on one core.

        Several of them side by side are faster than one after another on all cores, which would have to wait for each
        other and for what reads and writes. Alone it goes on one core too, so that results repeat.
        """
        if self.how.most_bytes:  # then one goes after another, with all cores
            return False
        voxels = max(math.prod(prepared.image.shape[1:]), math.prod(prepared.grid.shape))
        bytes_of_pass = 4 * voxels * (self.values_per_voxel + self.labels.channels)
        return bytes_of_pass <= BESIDE_BYTES and self.runner.beside is not None

    def predict(self, volume: Volume, prepared: Prepared | None = None) -> np.ndarray:
        """Class probabilities `(C, I, J, K)` float32 in the geometry of the volume, background first.

        They are what it learnt; `segment` draws a structure where `lowered` makes it the most probable class.
        """
        prepared = prepared or self.prepare(volume)
        check_probabilities_fit(volume, self.labels.channels, self.how.most_bytes)
        return probabilities_in_volume(predict(*self._call(prepared), self.lowered), prepared.grid)

    def segment(self, volume: Volume) -> np.ndarray:
        """Label map `(I, J, K)` uint8 in the geometry of the volume."""
        return self.decide(self.prepare(volume))

    def decide(self, prepared: Prepared) -> np.ndarray:
        """Label map `(I, J, K)` uint8 of a prepared volume; no class maps of its size exist on the way."""
        back = way_back(prepared.grid, tuple(prepared.image.shape[1:]), self.labels.values)
        call = self._call(prepared)
        box = region_of_structures(*call[:4]) if self.how.region_first else None
        for start, stop, maps in class_maps(*call, box):
            back.put(maps, start, stop, logits=True)
            del maps  # the next pass needs its memory
        return largest_components(back.decision) if self.how.largest_component else back.decision

    def _call(self, prepared: Prepared) -> tuple:
        """The arguments of the predictor."""
        if self.how.most_bytes:
            self.runner.release()  # what it keeps of the last image would count as taken
        if math.prod(prepared.grid.shape) >= LARGE_VOXELS or self.how.most_bytes:
            give_back_freed_memory()
        limit = fitting_voxels(self, prepared)
        mirror = self.mirror_axes if self.how.mirror else ()
        runner = self.runner.beside if self.goes_beside(prepared) else self.runner
        return runner, prepared.image, self.preprocessing.dimensions, limit, mirror


def new_network(design: Design, preprocessing: Preprocessing, labels: Labels, seed: int) -> nn.Module:
    """A network with fresh weights; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return build_network(design, preprocessing.dimensions, preprocessing.channels, labels.channels)


def save_student(student: Student, folder: Path) -> None:
    """Write the bundle whole or not at all."""
    with written_whole(folder) as temporary:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in student.network.state_dict().items()}
        (temporary / "models").mkdir(parents=True)
        (temporary / bundle.WEIGHTS).write_bytes(safetensors.torch.save(weights))
        ours = {
            "format_version": bundle.FORMAT,
            "student": student.design.name,
            "labels": student.labels.to_json(),
            "preprocessing": student.preprocessing.to_json(),
            "parameters": student.parameters,
            "values_per_voxel": student.values_per_voxel,
            "background_lowered_by": student.lowered,
            "card": student.card,
        }
        write_json(temporary / bundle.METADATA, {**monai_metadata(student), bundle.OURS: ours})
        write_json(temporary / bundle.INFERENCE, monai_inference(student))
        write_text(temporary / bundle.MODEL_CARD, model_card(student))
        bundle.write_checksums(temporary)


def load_student(folder: Path, device: str = "cpu") -> Student:
    """Open a bundle. Its network is built from our own table; nothing that the bundle says is executed.

    Args:
        folder: a bundle, or a run directory with a student.

    Raises:
        FileNotFoundError, ValueError: no bundle, damaged, changed, or made by a newer version.
    """
    name, folder = Path(folder).name, bundle.bundle_in(folder)
    ours = bundle.read_metadata(folder)[bundle.OURS]
    try:
        design = design_named(ours["student"])
        labels = Labels.from_json(ours["labels"])
        preprocessing = Preprocessing.from_json(ours["preprocessing"])
        network = build_network(design, preprocessing.dimensions, preprocessing.channels, labels.channels)
        network.load_state_dict(safetensors.torch.load_file(folder / bundle.WEIGHTS))
        footprint, lowered = (float(ours.get(name, 0)) for name in ("values_per_voxel", "background_lowered_by"))
        if not abs(lowered) <= MOST_LOWERED:
            raise ValueError(f"background_lowered_by is {lowered}; allowed is -{MOST_LOWERED:g} to {MOST_LOWERED:g}")
    except (KeyError, TypeError, AttributeError, RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder}: the bundle's metadata and weights do not fit together ({error})") from error
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    student = Student(network.eval(), design, labels, preprocessing, ours.get("card", {}), device, name, folder)
    student.footprint = footprint if footprint > 0 else None
    student.lowered = lowered
    return student


def as_it_learnt(student: Student) -> Student:
    """The student, without what was done to its decision: for trainings that start from it or run beside it."""
    lower_background(student.network, -student.lowered)
    student.lowered = 0.0
    return student
