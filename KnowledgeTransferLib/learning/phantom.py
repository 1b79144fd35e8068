"""Phantom: a synthetic CT-like cohort of upper abdomens, made in seconds for the demo, sample data and tests.

Not anatomy, but its difficulties: organs of varying shape and place that touch each other and neighbours of the same
Hounsfield units (stomach, bowel, muscle, vessels), noise, contrast agent, and two sites that do not look alike.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..records.labels import Labels
from ..records.run_directory import write_json, write_text
from .volume import Volume, write_image

LABELS = Labels.from_names({1: "liver", 2: "spleen", 3: "left kidney", 4: "right kidney"})
KEEP = -1  # a part that changes the intensity, not the annotation
ALL_THE_WAY_MM = 1e4  # semi-axis of what runs through the whole scan


@dataclass(frozen=True)
class Part:
    """An ellipsoid: centre and semi-axes in mm (right, anterior, superior), HU without and added by contrast agent."""

    name: str  # parts of the same name move together
    center_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    hu: float
    enhancement_hu: float = 0.0
    label: int = 0
    turn_deg: float = 0.0  # about the superior axis
    tilt_deg: float = 0.0  # about the anterior axis


@dataclass(frozen=True)
class Site:
    """How a hospital scans: voxels, orientation, phase of the contrast agent (0..1), noise."""

    suffix: str
    size_voxels: tuple[int, int, int]
    field_of_view_mm: tuple[float, float, float]
    axes: tuple[int, int, int]  # direction of the voxel axes along right, anterior, superior
    contrast_phase: tuple[float, float]
    noise_hu: float
    noise_size_voxels: float
    bias_hu: float
    splits: tuple[str, str]


SITES = {
    "A": Site(".nii.gz", (64, 64, 40), (320, 320, 200), (1, 1, 1), (0.0, 0.6), 22, 0.4, 0, ("teacher", "test")),
    "B": Site(".nrrd", (72, 72, 34), (324, 324, 204), (-1, -1, 1), (0.4, 1.0), 27, 0.6, 12, ("transferal", "test")),
}

# Painted in this order. Those before `spine` fill the trunk, those after it lie in the abdominal cavity.
TRUNK = (
    Part("trunk", (0, 0, 0), (138, 100, ALL_THE_WAY_MM), -100),
    Part("muscle", (0, -4, 0), (120, 84, ALL_THE_WAY_MM), 55, 10),
)
CAVITY = Part("muscle", (0, 4, 0), (109, 70, ALL_THE_WAY_MM), -95)
ORGANS = (
    Part("left psoas", (-38, -50, -70), (17, 20, 70), 55, 10),
    Part("right psoas", (38, -50, -70), (17, 20, 70), 55, 10),
    Part("pancreas", (-8, 0, 0), (45, 11, 11), 40, 55, 0, 15, 15),
    Part("spleen", (-78, -22, 30), (24, 40, 42), 50, 72, 2, 25, 15),
    Part("liver", (54, 12, 22), (62, 58, 62), 57, 52, 1, -10),
    Part("liver", (-2, 36, 34), (54, 27, 27), 57, 52, 1, 15, -12),
    Part("hepatic vein", (48, 2, 34), (42, 5, 5), 45, 105, KEEP, 25),
    Part("portal vein", (36, 12, 14), (6, 6, 40), 45, 105, KEEP, 0, 30),
    Part("lesion", (62, 18, 18), (11, 11, 11), 15, 10, KEEP),
    Part("gallbladder", (34, 42, -18), (11, 17, 14), 8),
    Part("stomach", (-48, 22, 28), (33, 34, 40), 52, 40, 0, 20, -15),
    Part("stomach", (-48, 20, 28), (28, 29, 35), 28, 0, 0, 20, -15),
    Part("stomach", (-46, 42, 32), (17, 9, 22), -750),
    Part("left kidney", (-50, -36, -14), (27, 27, 55), 33, 125, 3, 30, -8),
    Part("left kidney", (-34, -31, -14), (11, 9, 18), -70),
    Part("right kidney", (52, -36, -28), (27, 27, 55), 33, 125, 4, -30, 8),
    Part("right kidney", (36, -31, -28), (11, 9, 18), -70),
    Part("aorta", (-12, -28, 0), (10, 10, ALL_THE_WAY_MM), 42, 135),
    Part("vena cava", (20, -24, 0), (12, 9, ALL_THE_WAY_MM), 40, 95),
)
HEART = Part("heart", (-14, 22, 108), (56, 40, 38), 45, 80)
SPINE = (
    Part("back muscle", (-30, -74, 0), (25, 16, ALL_THE_WAY_MM), 55, 10),
    Part("back muscle", (30, -74, 0), (25, 16, ALL_THE_WAY_MM), 55, 10),
    Part("spine", (0, -54, 0), (22, 18, ALL_THE_WAY_MM), 330),
    Part("spine", (0, -54, 0), (19, 15, ALL_THE_WAY_MM), 170),
    Part("spine", (0, -86, 0), (4, 16, ALL_THE_WAY_MM), 300),
    Part("spine", (0, -75, 0), (15, 9, ALL_THE_WAY_MM), 300),
    Part("spine", (0, -75, 0), (10, 7, ALL_THE_WAY_MM), 25),
)


def write_phantom(
    folder: Path | str,
    cases: int = 12,
    site: str = "A",
    seed: int = 0,
    size_voxels: tuple[int, int, int] | None = None,
    written: Callable[[str], object] = lambda id_: None,
) -> Path:
    """Write a cohort: `images/`, `labels/`, `cohort.csv`, `dataset.json`. The same seed gives the same bytes.

    Args:
        site: "A" (.nii.gz; splits teacher, test) or "B" (contrast agent, .nrrd; splits transferal, test).
        size_voxels: voxels along I, J, K; None: those of the site. The field of view stays the same.
        written: called with the id of each case when it is written.

    Returns:
        The folder.
    """
    folder, suffix = Path(folder), _site(site).suffix
    rows = [("id", "group", "split", "image", "label")]
    for number in range(cases):
        id_ = f"{site}_{number + 1:03d}"
        volume, annotation = phantom_case((seed, number), site, size_voxels)
        files = [f"images/{id_}{suffix}", f"labels/{id_}{suffix}"]
        write_image(folder / files[0], volume.array[0], volume.affine)
        write_image(folder / files[1], annotation, volume.affine)
        rows.append((id_, id_, split_of(number, cases, site), *files))
        written(id_)
    _write_lists(folder, rows, site)
    return folder


def phantom_case(
    seed: int | tuple[int, ...] = 0, site: str = "A", size_voxels: tuple[int, int, int] | None = None
) -> tuple[Volume, np.ndarray]:
    """One synthetic patient as a volume `(1, I, J, K)` int16 in HU and its annotation `(I, J, K)` uint8."""
    scanner = _site(site)
    rng = np.random.default_rng([*np.atleast_1d(seed), list(SITES).index(site)])
    affine = _affine(scanner, size_voxels or scanner.size_voxels)
    canvas = _Canvas(_patient_coordinates(affine, size_voxels or scanner.size_voxels, rng), affine, rng, scanner)
    _paint_patient(canvas, rng)
    image = _scanned(canvas.image, scanner, rng)
    return Volume(image[None], affine, f"{site}_phantom"), _without_islands(canvas.annotation)


def split_of(number: int, cases: int, site: str) -> str:
    """The last quarter of a cohort is for testing."""
    training, test = _site(site).splits
    return test if number >= cases - cases // 4 else training


class _Canvas:
    """What is painted so far: `image` in HU and `annotation`, both `(I, J, K)`, at patient coordinates in mm."""

    def __init__(self, points_mm: np.ndarray, affine: np.ndarray, rng: np.random.Generator, scanner: Site):
        self.points_mm = points_mm
        self.edge_mm = float(np.abs(np.diag(affine)[:3]).mean())  # a border blurs over a voxel: partial volume
        self.image = np.full(points_mm.shape[1:], -1000, np.float32)
        self.annotation = np.zeros(points_mm.shape[1:], np.uint8)
        self.phase = rng.uniform(*scanner.contrast_phase)
        self.rng = rng
        self.bumps = np.stack([_smooth_field(points_mm, 45, rng) for _ in range(4)])
        self.pose: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def distance_mm(self, part: Part, rough_mm: float = 0.0, mobile_mm: float = 0.0) -> np.ndarray:
        """Signed distance `(I, J, K)` to a part's surface, negative inside (close to it, exact enough)."""
        if part.name not in self.pose:
            self.pose[part.name] = self.rng.normal(0, 1, 3) * mobile_mm, 1 + self.rng.uniform(-1, 1, 3) * mobile_mm / 50
        shift_mm, scale = self.pose[part.name]
        offset = self.points_mm - (np.array(part.center_mm) + shift_mm).astype(np.float32)[:, None, None, None]
        offset = np.stack([_dot(axis, offset) for axis in _rotation(part.turn_deg, part.tilt_deg)])
        radii_mm = (np.array(part.radii_mm) * scale).astype(np.float32)[:, None, None, None]
        level = np.sqrt(((offset / radii_mm) ** 2).sum(0))
        slope = np.sqrt(((offset / radii_mm**2) ** 2).sum(0)) + 1e-6
        distance = level * (level - 1) / slope
        return distance + rough_mm * self._bumpy() if rough_mm else distance

    def _bumpy(self) -> np.ndarray:
        """A smooth random field of about unit variance, another one at each call."""
        weights = self.rng.normal(0, 1, len(self.bumps)).astype(np.float32)
        return _dot(weights / np.linalg.norm(weights), self.bumps)

    def paint(self, distance_mm: np.ndarray, hu: float, label: int) -> None:
        weight = np.clip(0.5 - distance_mm / self.edge_mm, 0, 1)
        self.image += weight * (hu - self.image)
        if label != KEEP:
            self.annotation[weight > 0.5] = label

    def paint_part(self, part: Part, within_mm: np.ndarray | None = None, rough_mm=0.0, mobile_mm=0.0) -> None:
        """Paint a part, not beyond `within_mm` (the signed distance to what holds it)."""
        distance = self.distance_mm(part, rough_mm, mobile_mm)
        distance = distance if within_mm is None else np.maximum(distance, within_mm)
        self.paint(distance, part.hu + self.phase * part.enhancement_hu, part.label)


def _paint_patient(canvas: _Canvas, rng: np.random.Generator) -> None:
    for part in TRUNK:
        canvas.paint_part(part, mobile_mm=1.5)
    cavity_mm = canvas.distance_mm(CAVITY)
    canvas.paint(cavity_mm, CAVITY.hu, 0)
    _paint_ribs(canvas, cavity_mm)
    for part in (*_bowel(rng), *ORGANS):
        canvas.paint_part(part, cavity_mm, rough_mm=2.5, mobile_mm=5)
    canvas.paint(np.maximum(cavity_mm + 2, _lung_mm(canvas, rng)), -820, 0)
    canvas.paint_part(HEART, cavity_mm + 4, rough_mm=3, mobile_mm=5)
    for part in SPINE:
        canvas.paint_part(part)
    _paint_discs(canvas)
    _paint_table(canvas)


def _bowel(rng: np.random.Generator) -> list[Part]:
    """Loops in the lower abdomen; every third holds gas."""
    parts = []
    for number in range(int(rng.integers(9, 14))):
        center = rng.uniform((-85, -5, -105), (85, 62, -22))
        radii = rng.uniform(11, 22, 3)
        parts.append(Part(f"bowel {number}", tuple(center), tuple(radii), rng.uniform(25, 50), 25))
        if number % 3 == 0:
            gas = center + (0, radii[1] * 0.3, 0)
            parts.append(Part(f"bowel {number}", tuple(gas), tuple(radii * 0.55), -600))
    return parts


def _paint_ribs(canvas: _Canvas, cavity_mm: np.ndarray) -> None:
    """Slanted bright rings around the cavity, above the flanks."""
    _, anterior, superior = canvas.points_mm
    along = np.abs((superior - 0.9 * anterior) % 34 - 17) - 6
    canvas.paint(np.maximum.reduce([np.abs(cavity_mm - 5) - 4, along, -10 + 0.5 * anterior - superior]), 320, 0)


def _lung_mm(canvas: _Canvas, rng: np.random.Generator) -> np.ndarray:
    """Signed distance to the lungs: all above two domes, the diaphragm."""
    right, anterior, superior = canvas.points_mm
    height = rng.normal(86, 5) + np.where(right > 0, 5, -3) + 5 * _smooth_field(canvas.points_mm, 60, rng)
    dome = height - ((np.abs(right) - 50) ** 2 + (anterior - 10) ** 2) / 130
    return dome - superior


def _paint_discs(canvas: _Canvas) -> None:
    """Discs between the vertebrae."""
    body = canvas.distance_mm(SPINE[2])
    canvas.paint(np.maximum(body, np.abs(canvas.points_mm[2] % 34 - 17) - 4), 85, KEEP)


def _paint_table(canvas: _Canvas) -> None:
    right, anterior, _ = canvas.points_mm
    plate = np.maximum(np.abs(anterior + 122 - right**2 / 900) - 4, np.abs(right) - 130)
    canvas.paint(plate, -150, KEEP)


def _patient_coordinates(affine: np.ndarray, size: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Coordinates `(3, I, J, K)` in mm of each voxel in the standard patient: another build, posture and bend."""
    voxels = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size), indexing="ij"))
    turned = np.stack([_dot(row, voxels) for row in affine[:3, :3].astype(np.float32)])
    points = turned + affine[:3, 3].astype(np.float32)[:, None, None, None]
    points += rng.normal(0, (4, 3, 8)).astype(np.float32)[:, None, None, None]
    bend = np.stack([_smooth_field(points, 130, rng) for _ in range(3)])
    build = rng.uniform(0.92, 1.08, 3).astype(np.float32)[:, None, None, None]
    return points / build + 5 * bend


def _dot(weights: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Weighted sum `(I, J, K)` of `fields (N, I, J, K)`, without BLAS: the same on any number of threads."""
    total = weights[0] * fields[0]
    for weight, field in zip(weights[1:], fields[1:], strict=True):
        total += weight * field
    return total


def _smooth_field(points_mm: np.ndarray, wavelength_mm: float, rng: np.random.Generator, waves: int = 5) -> np.ndarray:
    """A smooth random field `(I, J, K)` of unit variance: plane waves of random direction and phase."""
    directions = rng.normal(0, 1, (waves, 3))
    directions *= 2 * np.pi / wavelength_mm / np.linalg.norm(directions, axis=1, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, waves)
    field = np.zeros(points_mm.shape[1:], np.float32)
    for direction, phase in zip(directions.astype(np.float32), phases.astype(np.float32), strict=True):
        field += np.sin(_dot(direction, points_mm) + phase)
    return field * np.float32(np.sqrt(2 / waves))


def _without_islands(annotation: np.ndarray) -> np.ndarray:
    """Only the largest piece of each structure: nobody outlines crumbs."""
    cleaned = np.zeros_like(annotation)
    for value in LABELS.values[1:]:
        pieces, _ = ndimage.label(annotation == value)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        cleaned[pieces == sizes.argmax() if sizes.max() else pieces < 0] = value
    return cleaned


def _scanned(image: np.ndarray, scanner: Site, rng: np.random.Generator) -> np.ndarray:
    """Add what the scanner adds: texture of tissue, correlated noise, a slow bias; `(I, J, K)` int16."""
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), scanner.noise_size_voxels)
    texture = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), 1.2)
    tissue = np.clip((image + 1000) / 900, 0, 1)  # little noise in air
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, n, dtype=np.float32) for n in image.shape), indexing="ij"))
    bias = scanner.bias_hu * _smooth_field(grid, 1.5, rng, waves=3)
    noise = scanner.noise_hu * rng.uniform(0.8, 1.2) * noise / noise.std() + 8 * texture / texture.std() + bias
    return np.rint(np.clip(image + (0.2 + 0.8 * tissue) * noise, -1024, 3071)).astype(np.int16)


def _rotation(turn_deg: float, tilt_deg: float) -> np.ndarray:
    """Rotation `(3, 3)` from the patient's axes to those of a part."""
    (c, s), (d, t) = ((np.cos(a), np.sin(a)) for a in np.radians((turn_deg, tilt_deg)))
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    tilt = np.array([[d, 0, t], [0, 1, 0], [-t, 0, d]])
    return (tilt @ turn).astype(np.float32)


def _affine(scanner: Site, size_voxels: tuple[int, int, int]) -> np.ndarray:
    """Voxel -> RAS in mm, with the patient's standard origin in the middle of the scan."""
    size, axes = np.array(size_voxels), np.array(scanner.axes)
    step_mm = axes * np.array(scanner.field_of_view_mm) / size
    affine = np.diag([*step_mm, 1.0])
    affine[:3, 3] = -step_mm * (size - 1) / 2
    return affine


def _write_lists(folder: Path, rows: list[tuple[str, ...]], site: str) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(folder / "cohort.csv", table.getvalue())
    names = {"background": 0, **{s.name: s.value for s in LABELS.structures}}
    dataset = {"name": f"phantom, site {site}", "modality": "CT", "labels": names, "structures": LABELS.to_json()}
    write_json(folder / "dataset.json", dataset)


def _site(site: str) -> Site:
    if site not in SITES:
        raise ValueError(f"site {site!r} is not known; choose one of {', '.join(SITES)}")
    return SITES[site]
