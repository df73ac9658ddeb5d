"""The stages, one module each, which is a `Stage`.

A stage reads what it needs from the run folder and hands plain data from room to room. Every finished case is kept
with a fingerprint beside it, so that work goes on where it was killed and nothing is made twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from datxai.config import Config
    from datxai.run import Run


class Stage(Protocol):
    """What a module of this package has."""

    def depends(self, settings: Config) -> dict:
        """The settings that shape the output; a change of them is a reason to make it anew."""
        ...

    def outputs(self, run: Run) -> list[Path]:
        """The files and folders that it leaves."""
        ...

    def make(self, settings: Config, run: Run) -> None:
        """Make the output, as far as it is not there yet."""
        ...


@runtime_checkable
class Sharded(Stage, Protocol):
    """A stage that can be made in parts, each on a machine of its own."""

    def make_part(self, settings: Config, run: Run, part: slice) -> None:
        """Make the files of some cases; `make` finds them done."""
        ...


@runtime_checkable
class FromOutside(Stage, Protocol):
    """A stage that may be the first, and then starts from files that no stage has made."""

    def inputs(self, settings: Config, run: Run) -> dict[str, str]:
        """Hashes of these files, by what they are."""
        ...


if TYPE_CHECKING:  # every module keeps to it
    from datxai.stages import evaluate, explain, external, preprocess, report, simulate, split, train

    _stages: list[Stage] = [simulate, preprocess, split, train, explain, evaluate, report, external]
    _sharded: list[Sharded] = [preprocess, explain]
    _from_outside: list[FromOutside] = [preprocess]
