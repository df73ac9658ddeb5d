"""What a bundle holds, read with suspicion."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datxai.bundle.archive import (
    CARD,
    MEANS,
    MOST,
    NETWORK,
    REFERENCE,
    SETTINGS,
    SHIFT,
    WEIGHTS,
    WIDTHS,
    parse,
    read_members,
    unpack_numbers,
)
from datxai.bundle.settings import CHOSEN, GROUPS, OWN_FILES, find_code
from datxai.config import MISSING, Config, restore
from datxai.errors import InputError
from datxai.files import hash_content, read_arrays, replacing, require_file
from datxai.record import OF_COHORT, OF_ONE_SCAN, Record, check_record, flatten_all, say

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from datxai.analysis.shift import Shift


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle in memory, whole and as it was written.

    Attributes
    ----------
    folder : the file; so called since it takes the place of a run folder
    manifest : what its first member says
    content : member to its bytes, but for the manifest
    """

    folder: Path
    manifest: Mapping[str, Any]
    content: dict[str, bytes]

    @classmethod
    def open(cls, path: str | os.PathLike, only: Collection[str] = tuple(MOST)) -> Bundle:
        """Read a bundle, or ``only`` some of its members; the others are then not looked at.

        Raises `InputError` for what is none, damaged, cut off, too large, or of a newer format.
        """
        path = Path(path)
        require_file(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file, expected a bundle, as `datxai bundle` makes it.")
        try:
            with path.open("rb") as stream:
                return cls(path, *read_members(stream, path, only))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); is it yours to read?") from error

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return self.content[CARD].decode("utf-8", "replace")

    @property
    def explanation(self) -> str:
        """The name that the explanation had in its run."""
        return str(self.manifest.get("explanation"))

    @property
    def identity(self) -> str:
        """What identifies all that the bundle holds."""
        return str(self.manifest["sha256"])

    @property
    def anatomy(self) -> Path:
        """A file among those that the user's programs keep to save time: regions and template of this grid."""
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        kinds = [self.record.values["grid"], [self.manifest["members"].get(name) for name in OWN_FILES.values()]]
        return Path(caches, "datxai", f"anatomy-{hash_content(kinds)[:16]}.safetensors")

    @cached_property
    def record(self) -> Record:
        """The recorded settings that reading needs, checked against the schema."""
        record = check_record(parse(self.content[SETTINGS], self._place(SETTINGS)), self._place(SETTINGS))
        if missing := [name for name in (*GROUPS, "target") if name not in record.values]:
            raise InputError(f"{self._place(SETTINGS)}: says nothing of {', '.join(missing)}; make the bundle again.")
        if code := find_code(record.values):
            raise InputError(f"{self._place(SETTINGS)}: {code} is Python code, which no bundle names; do not trust it.")
        return record

    @cached_property
    def settings(self) -> Config:
        """The settings of the run, with the files of its own where they lie now."""
        settings = restore(self.record.values)
        known = flatten_all({name: asdict(getattr(settings, name)) for name in GROUPS if name != "data"})
        if missing := [name for name, value in known.items() if value == MISSING]:
            raise InputError(f"{self._place(SETTINGS)}: says nothing of {', '.join(missing)}; make the bundle again.")
        return self.localise(replace(settings, explanation=self.explanation))

    def localise(self, settings: Config) -> Config:
        """Settings that name members of the bundle, with the files that these have become; and of its explanation."""
        changed = {}
        for (group, key), name in OWN_FILES.items():
            if getattr(getattr(settings, group), key) == name:
                group_now = changed.get(group, getattr(settings, group))
                changed[group] = replace(group_now, **{key: str(self._files / name)})
        return replace(settings, **changed)

    def with_files_in(self, folder: Path) -> Record:
        """The record of a run that is to go on with the bundle's settings, of the files of its own those that
        `write_files` puts into a folder."""
        values = {name: dict(self.record.values[name]) for name in GROUPS if name != "data"}
        for (group, key), name in OWN_FILES.items():
            if values[group].get(key) == name:
                values[group][key] = str(folder / name)
        record = self.record.without("data")
        return replace(record, values={**record.values, **values})

    def write_files(self, folder: Path) -> None:
        """Write template and atlas of the run's own, if it has any, into a folder."""
        for name in OWN_FILES.values():
            if name in self.content:
                with replacing(folder / name) as path:
                    path.write_bytes(self.content[name])

    def require_same(self, now: Record, task: str, files: Path | None = None) -> None:
        """Refuse settings that shaped what the bundle holds, if they are others than it was made with. Where it is
        applied to a cohort, with its ``files`` in a folder, those of the cohort are its own."""
        old, new = (self.record if files is None else self.with_files_in(files)).settings(), now.settings()
        own = () if files is None else OF_COHORT
        for setting, value in old.items():
            if setting.partition(".")[0] in own:
                continue
            if setting in self.fixed and setting in new and new[setting] != value:
                raise InputError(
                    f"run={self.folder}: the bundle was made with {setting}={say(value)}, and `{task}` goes on with "
                    f"that, not with {setting}={say(new[setting])}; leave it out."
                )

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        """The settings that are not a reader's to choose."""
        own = [name for name in self.record.settings() if name.partition(".")[0] not in CHOSEN]
        return tuple(name for name in own if name not in OF_ONE_SCAN)

    def load_network(self, device: str) -> nn.Module:
        """The network, ready to predict; its packed weights are let go. Raises `InputError` if it is code."""
        from datxai.model import checkpoint

        with tempfile.TemporaryDirectory(prefix="datxai-", ignore_cleanup_errors=True) as place:
            self.write_network(Path(place))
            try:
                network, config = checkpoint.load(place, device)
            except InputError as error:  # the place is gone before anybody could look there
                raise InputError(str(error).replace(f"{place}{os.sep}", f"{self.folder}: ")) from error
        if config["network"].get("shape") != self.settings.grid.shape:
            raise InputError(f"{self._place(NETWORK)}: is of another grid than the settings; make the bundle again.")
        return network

    def write_network(self, folder: Path) -> None:
        """Write the network into a folder as a run has it, weights in float32; the packed ones are let go."""
        import safetensors.torch

        from datxai.model import checkpoint

        weights = unpack_numbers(self.content.pop(WEIGHTS), self._width, self._place(WEIGHTS))
        with replacing(folder / checkpoint.WEIGHTS) as path:
            weights.tofile(path)  # and mapped from there, as a run's are: the same numbers at the same places
            if self._width != WIDTHS["float32"]:
                try:
                    tensors = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
                except safetensors.SafetensorError as error:
                    raise InputError(f"{self._place(WEIGHTS)}: cannot be read as safetensors ({error}).") from error
                safetensors.torch.save_file(tensors, path)
        with replacing(folder / checkpoint.CONFIG) as path:
            path.write_bytes(self.content[NETWORK])

    @cached_property
    def reference(self) -> dict[str, Any]:
        """Calibration, ranges of normal cases, and what identifies the run: the content of ``reference.json``."""
        place, found = self._place(REFERENCE), parse(self.content[REFERENCE], self._place(REFERENCE))
        kinds = {"calibration": dict, "ranges": dict, "evaluated": dict, "method": str}
        wrong = next((name for name, kind in kinds.items() if not isinstance(found.get(name), kind)), None)
        if wrong is not None:
            raise InputError(f"{place}: {wrong} is {found.get(wrong)!r:.80}, which is none; make the bundle again.")
        temperature, half_width = (found["calibration"].get(name) for name in ("temperature", "half_width"))
        fits = all(type(number) in (int, float) for number in (temperature, half_width))
        if not (fits and temperature > 0 and 0 <= half_width <= 1 and "determined" in found["calibration"]):
            raise InputError(f"{place}: the calibration cannot be used; make the bundle again.")
        if not all(isinstance(found["evaluated"].get(name), str) for name in ("fingerprint", "finished")):
            raise InputError(f"{place}: does not say which run it is of; make the bundle again.")
        return found

    @cached_property
    def classifiers(self) -> Mapping[str, Any]:
        """Cutoff and tree of binding ratios, see `datxai.tested.Tested`; a bundle of an earlier version has none."""
        from datxai.bundle.checks import check_classifiers

        return self._check("classifiers", check_classifiers, {})

    @cached_property
    def tested(self) -> Mapping[str, Any] | None:
        """The run's test in numbers, see `datxai.tested.Tested.describe`; a bundle of an earlier version has none."""
        from datxai.bundle.checks import check_tested

        return self._check("tested", check_tested, None)

    def require_usable(self) -> None:
        """Refuse what it says of its run's test, if that cannot be (`InputError`)."""
        from datxai.bundle.checks import check_classifiers, check_tested

        self._check("classifiers", check_classifiers, {})
        self._check("tested", check_tested, None)

    def _check(self, name: str, check: Callable[[Any], Any], default: Any) -> Any:
        if (found := self.reference.get(name)) is None:
            return default
        try:
            return check(found)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._place(REFERENCE)}: {name} cannot be used; make the bundle again.") from error

    @cached_property
    def means(self) -> list[np.ndarray] | None:
        """Mean relevance maps of true negative and true positive test cases; None where there were too few of them."""
        import numpy as np
        import safetensors.numpy

        if MEANS not in self.content:
            return None
        shape = tuple(self.settings.grid.shape)
        try:
            found = safetensors.numpy.load(self.content[MEANS])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._place(MEANS)}: cannot be read as safetensors ({error}).") from error
        pair = [found[name] for name in ("TN", "TP") if name in found]
        fits = [mean.shape == shape and mean.dtype == np.float32 and np.isfinite(mean).all() for mean in pair]
        if len(pair) < 2 or not all(fits):
            raise InputError(f"{self._place(MEANS)}: expected two maps of the grid {shape}; make the bundle again.")
        return pair

    @cached_property
    def shift(self) -> Shift | None:
        """What tells whether a scan is like the training cases; None where the run did not look."""
        from datxai.analysis.shift import Shift

        if SHIFT not in self.content:
            return None
        try:
            return Shift.unpack(*read_arrays(self._files / SHIFT))
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self._place(SHIFT)}: does not hold what scans are held against; make the bundle again."
            ) from error

    @cached_property
    def _files(self) -> Path:
        """A private folder with the members that are read as files; it goes when the bundle does."""
        place = Path(tempfile.mkdtemp(prefix="datxai-"))
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        for name in (*OWN_FILES.values(), SHIFT):
            if name in self.content:
                (place / name).write_bytes(self.content[name])
        return place

    @property
    def _width(self) -> int:
        precision = self.manifest.get("precision")
        if precision not in WIDTHS:
            raise InputError(f"{self.folder}: precision is {precision!r:.80}, expected {' or '.join(WIDTHS)}.")
        return WIDTHS[precision]

    def _place(self, name: str) -> Path:
        return self.folder / name

