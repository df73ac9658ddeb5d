"""A bundle: a model to share, in one file with all that is needed to read a scan and nothing from anybody's scans.

The file is a plain zip archive that any zip program can list and unpack: members are stored in a fixed order without
timestamps, ``manifest.json`` first, with the version of the format and the size, CRC-32 and SHA-256 of every other
member. The rest of the archive follows from the manifest, so a file is either bit for bit the one that `write_bundle`
writes for these members, or it is refused. A bundle may come from a stranger: no member names a path, none is
compressed by the archive, none is executed, and sizes are checked before memory is allocated. Its checksums detect
damage; they do not authenticate its maker.

The weights are safetensors whose highest bytes, sign and exponent of each number, are deflated: `pack_numbers`.
"""

from pathlib import Path

from datxai.bundle.archive import (
    CARD,
    MANIFEST,
    MEANS,
    MOST,
    NETWORK,
    REFERENCE,
    SETTINGS,
    SHIFT,
    SUFFIX,
    WEIGHTS,
    WIDTHS,
    is_bundle,
    pack_numbers,
    require_place,
    unpack_numbers,
    write_bundle,
)
from datxai.bundle.content import Bundle
from datxai.bundle.settings import settings_to_hand_on
from datxai.config import ALL
from datxai.errors import InputError

__all__ = [
    "CARD", "MANIFEST", "MEANS", "MOST", "NETWORK", "REFERENCE", "SETTINGS", "SHIFT", "SUFFIX", "WEIGHTS", "WIDTHS",
    "Bundle", "is_bundle", "pack_numbers", "require_place", "say_what_it_holds", "settings_to_hand_on",
    "unpack_numbers", "write_bundle",
]  # fmt: skip


def say_what_it_holds(path: Path, task: str) -> InputError:
    """The error for a command that needs the cases of a run."""
    what = "a stage" if task == ALL else f"`{task}`"
    return InputError(
        f"{path}: is a bundle, which holds network, settings and reference and no case, and {what} needs a run with "
        f"cases; give the run folder, read scans with the bundle (`datxai case`, `datxai serve`), or apply it to a "
        f"cohort, whose folder does: `datxai apply run={path} to=DIR data=...`."
    )
