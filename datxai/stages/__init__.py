"""The stages of a run; each module implements `Stage`.

A stage reads its input from the run folder and passes plain data from one package to the next. Every finished case is
saved with its fingerprint, so that an interrupted stage resumes where it stopped and nothing is computed twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from datxai.config import Config
    from datxai.run import Run


class Stage(Protocol):
    """The interface of each module in this package."""

    def depends(self, settings: Config) -> dict:
        """The settings that the output depends on; if they change, it is made again."""
        ...

    def outputs(self, run: Run) -> list[Path]:
        """The files and folders that it writes."""
        ...

    def make(self, settings: Config, run: Run) -> None:
        """Make whatever part of the output does not exist yet."""
        ...


@runtime_checkable
class Sharded(Stage, Protocol):
    """A stage that can be split into parts, each made on a different machine."""

    def make_part(self, settings: Config, run: Run, part: slice) -> None:
        """Make the files of some cases, so that `make` can skip them."""
        ...


@runtime_checkable
class FromOutside(Stage, Protocol):
    """A stage that may come first and then reads files that no stage has made."""

    def inputs(self, settings: Config, run: Run) -> dict[str, str]:
        """Hashes of these files, by name."""
        ...


if TYPE_CHECKING:  # lets the type checker verify that every module follows its protocol
    from datxai.stages import evaluate, explain, external, preprocess, report, simulate, split, train

    _stages: list[Stage] = [simulate, preprocess, split, train, explain, evaluate, report, external]
    _sharded: list[Sharded] = [preprocess, explain]
    _from_outside: list[FromOutside] = [preprocess]
