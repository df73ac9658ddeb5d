"""A model that is handed on: one file with what reading a scan needs, and nothing of anybody's scans.

The file is a plain zip archive that any zip program lists and unpacks: members stored in a fixed order without times,
``manifest.json`` first, which says the version of the format, and of every other member its size, CRC-32 and SHA-256.
All else of the archive follows from the manifest, so what is read is the very file that `write_bundle` makes of these
members, to the last bit, or it is refused. A bundle may come from a stranger: no member names a place, none is
compressed by the archive, none is executed, sizes are looked at before memory is taken. Its checksums tell damage, not
who made it.

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
    """The sentence on a command that needs the cases of a run."""
    what = "a stage" if task == ALL else f"`{task}`"
    return InputError(
        f"{path}: is a bundle, which holds network, settings and reference and no case, and {what} needs a run with "
        f"cases; give the run folder, read scans with the bundle (`datxai case`, `datxai serve`), or apply it to a "
        f"cohort, whose folder does: `datxai apply run={path} to=DIR data=...`."
    )
