"""The content of a bundle, validated as it is read."""

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
    """A bundle in memory, intact as written.

    Attributes
    ----------
    folder : the file; the name is that of the attribute of a `Run`, which a bundle replaces
    manifest : the first member
    content : bytes of each other member, by its name
    """

    folder: Path
    manifest: Mapping[str, Any]
    content: dict[str, bytes]

    @classmethod
    def open(cls, path: str | os.PathLike, only: Collection[str] = tuple(MOST)) -> Bundle:
        """Read a bundle, or ``only`` some of its members; the others are then not checked.

        Raises `InputError` if the file is not a bundle, damaged, truncated, too large, or of a newer format.
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
        """The name of the explanation in its run."""
        return str(self.manifest.get("explanation"))

    @property
    def identity(self) -> str:
        """A hash of the whole content."""
        return str(self.manifest["sha256"])

    @property
    def anatomy(self) -> Path:
        """A file in the user's cache for the regions and template of this grid."""
        cache_folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        content = [self.record.values["grid"], [self.manifest["members"].get(name) for name in OWN_FILES.values()]]
        return Path(cache_folder, "datxai", f"anatomy-{hash_content(content)[:16]}.safetensors")

    @cached_property
    def record(self) -> Record:
        """The recorded settings needed to read scans, checked against the schema."""
        path = self._path_of(SETTINGS)
        record = check_record(parse(self.content[SETTINGS], path), path)
        if missing := [name for name in (*GROUPS, "target") if name not in record.values]:
            raise InputError(f"{path}: says nothing of {', '.join(missing)}; make the bundle again.")
        if code := find_code(record.values):
            raise InputError(f"{path}: {code} is Python code, which no bundle names; do not trust it.")
        return record

    @cached_property
    def settings(self) -> Config:
        """The settings of the run, with the present paths of its own files."""
        settings = restore(self.record.values)
        by_name = flatten_all({name: asdict(getattr(settings, name)) for name in GROUPS if name != "data"})
        if missing := [name for name, value in by_name.items() if value == MISSING]:
            raise InputError(f"{self._path_of(SETTINGS)}: says nothing of {', '.join(missing)}; make the bundle again.")
        return self.localise(replace(settings, explanation=self.explanation))

    def localise(self, settings: Config) -> Config:
        """Settings with the names of the bundle's members replaced by the paths of their files."""
        changed = {}
        for (group, key), name in OWN_FILES.items():
            if getattr(getattr(settings, group), key) == name:
                before = changed.get(group, getattr(settings, group))
                changed[group] = replace(before, **{key: str(self._files / name)})
        return replace(settings, **changed)

    def with_files_in(self, folder: Path) -> Record:
        """The record of a run that continues with the bundle's settings, with its own files in the folder to which
        `write_files` wrote them."""
        values = {name: dict(self.record.values[name]) for name in GROUPS if name != "data"}
        for (group, key), name in OWN_FILES.items():
            if values[group].get(key) == name:
                values[group][key] = str(folder / name)
        record = self.record.without("data")
        return replace(record, values={**record.values, **values})

    def write_files(self, folder: Path) -> None:
        """Write the run's own template and atlas, if any, into a folder."""
        for name in OWN_FILES.values():
            if name in self.content:
                with replacing(folder / name) as path:
                    path.write_bytes(self.content[name])

    def require_same(self, now: Record, task: str, files: Path | None = None) -> None:
        """Raise `InputError` if a setting that shaped the bundle's content differs from the one it was made with.

        If the bundle is applied to a cohort, with its ``files`` in a folder, settings of the cohort may differ."""
        old, new = (self.record if files is None else self.with_files_in(files)).settings(), now.settings()
        exempt = () if files is None else OF_COHORT
        for setting, value in old.items():
            if setting.partition(".")[0] in exempt:
                continue
            if setting in self.fixed and setting in new and new[setting] != value:
                raise InputError(
                    f"run={self.folder}: the bundle was made with {setting}={say(value)}, and `{task}` goes on with "
                    f"that, not with {setting}={say(new[setting])}; leave it out."
                )

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        """The settings that a reader cannot change."""
        names = [name for name in self.record.settings() if name.partition(".")[0] not in CHOSEN]
        return tuple(name for name in names if name not in OF_ONE_SCAN)

    def load_network(self, device: str) -> nn.Module:
        """The network, ready to predict; its packed weights are released. Raises `InputError` if it is code."""
        from datxai.model import checkpoint

        with tempfile.TemporaryDirectory(prefix="datxai-", ignore_cleanup_errors=True) as folder:
            self.write_network(Path(folder))
            try:
                network, config = checkpoint.load(folder, device)
            except InputError as error:  # the temporary folder is gone when the message is read
                raise InputError(str(error).replace(f"{folder}{os.sep}", f"{self.folder}: ")) from error
        if config["network"].get("shape") != self.settings.grid.shape:
            raise InputError(f"{self._path_of(NETWORK)}: is of another grid than the settings; make the bundle again.")
        return network

    def write_network(self, folder: Path) -> None:
        """Write the network into a folder as in a run, weights in float32; the packed ones are released."""
        import safetensors.torch

        from datxai.model import checkpoint

        weights = unpack_numbers(self.content.pop(WEIGHTS), self._width, self._path_of(WEIGHTS))
        with replacing(folder / checkpoint.WEIGHTS) as path:
            weights.tofile(path)  # and memory-mapped from there, like those of a run
            if self._width != WIDTHS["float32"]:
                try:
                    tensors = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
                except safetensors.SafetensorError as error:
                    raise InputError(f"{self._path_of(WEIGHTS)}: cannot be read as safetensors ({error}).") from error
                safetensors.torch.save_file(tensors, path)
        with replacing(folder / checkpoint.CONFIG) as path:
            path.write_bytes(self.content[NETWORK])

    @cached_property
    def reference(self) -> dict[str, Any]:
        """Calibration, normal ranges, and the identity of the run: the content of ``reference.json``."""
        path, reference = self._path_of(REFERENCE), parse(self.content[REFERENCE], self._path_of(REFERENCE))
        kinds = {"calibration": dict, "ranges": dict, "evaluated": dict, "method": str}
        invalid = next((name for name, kind in kinds.items() if not isinstance(reference.get(name), kind)), None)
        if invalid is not None:
            raise InputError(f"{path}: {invalid} is {reference.get(invalid)!r:.80}; make the bundle again.")
        temperature, half_width = (reference["calibration"].get(name) for name in ("temperature", "half_width"))
        is_valid = all(type(number) in (int, float) for number in (temperature, half_width))
        if not (is_valid and temperature > 0 and 0 <= half_width <= 1 and "determined" in reference["calibration"]):
            raise InputError(f"{path}: the calibration cannot be used; make the bundle again.")
        if not all(isinstance(reference["evaluated"].get(name), str) for name in ("fingerprint", "finished")):
            raise InputError(f"{path}: does not say which run it is of; make the bundle again.")
        return reference

    @cached_property
    def classifiers(self) -> Mapping[str, Any]:
        """Cutoff and tree of binding ratios, see `datxai.tested.Tested`; empty for a bundle of an earlier version."""
        from datxai.bundle.checks import check_classifiers

        return self._check("classifiers", check_classifiers, {})

    @cached_property
    def tested(self) -> Mapping[str, Any] | None:
        """Test statistics of the run, see `datxai.tested.Tested.describe`; None for a bundle of an earlier version."""
        from datxai.bundle.checks import check_tested

        return self._check("tested", check_tested, None)

    def require_usable(self) -> None:
        """Raise `InputError` if the test results of its run are invalid."""
        from datxai.bundle.checks import check_classifiers, check_tested

        self._check("classifiers", check_classifiers, {})
        self._check("tested", check_tested, None)

    def _check(self, name: str, check: Callable[[Any], Any], default: Any) -> Any:
        if (content := self.reference.get(name)) is None:
            return default
        try:
            return check(content)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._path_of(REFERENCE)}: {name} cannot be used; make the bundle again.") from error

    @cached_property
    def means(self) -> list[np.ndarray] | None:
        """Mean relevance maps of true negative and true positive test cases; None if there were too few of them."""
        import numpy as np
        import safetensors.numpy

        if MEANS not in self.content:
            return None
        shape = tuple(self.settings.grid.shape)
        try:
            arrays = safetensors.numpy.load(self.content[MEANS])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._path_of(MEANS)}: cannot be read as safetensors ({error}).") from error
        pair = [arrays[name] for name in ("TN", "TP") if name in arrays]
        are_valid = [mean.shape == shape and mean.dtype == np.float32 and np.isfinite(mean).all() for mean in pair]
        if len(pair) < 2 or not all(are_valid):
            raise InputError(f"{self._path_of(MEANS)}: expected two maps of the grid {shape}; make the bundle again.")
        return pair

    @cached_property
    def shift(self) -> Shift | None:
        """The measures that compare a scan with the training cases; None if the run did not compute them."""
        from datxai.analysis.shift import Shift

        if SHIFT not in self.content:
            return None
        try:
            return Shift.unpack(*read_arrays(self._files / SHIFT))
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self._path_of(SHIFT)}: does not hold the measures of the training cases; make the bundle again."
            ) from error

    @cached_property
    def _files(self) -> Path:
        """A private folder with the members that are read as files, removed together with the bundle."""
        folder = Path(tempfile.mkdtemp(prefix="datxai-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for name in (*OWN_FILES.values(), SHIFT):
            if name in self.content:
                (folder / name).write_bytes(self.content[name])
        return folder

    @property
    def _width(self) -> int:
        precision = self.manifest.get("precision")
        if precision not in WIDTHS:
            raise InputError(f"{self.folder}: precision is {precision!r:.80}, expected {' or '.join(WIDTHS)}.")
        return WIDTHS[precision]

    def _path_of(self, name: str) -> Path:
        return self.folder / name

