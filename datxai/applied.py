"""The run that is applied to another cohort: a run folder, or a bundle of one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datxai.bundle import MOST, NETWORK, SETTINGS, WEIGHTS, Bundle
from datxai.config import DEFAULT, Config
from datxai.files import replacing, write_table
from datxai.findings import Findings
from datxai.model import checkpoint
from datxai.reference import Reference
from datxai.run import Run
from datxai.tested import CUTOFF, TREE, Tested

HISTORY = "history.tsv"
WITHOUT_WEIGHTS = tuple(name for name in MOST if name != WEIGHTS)


@dataclass(frozen=True, eq=False)
class Applied:
    """The run, or the bundle of one, that judges the scans of another cohort.

    Attributes
    ----------
    name : of the folder or the file
    reference : what new scans are compared with
    classifiers : of binding ratios, see `datxai.tested.Tested`; a bundle of an earlier version has none
    identity : what identifies it, without paths
    source : the run's findings, or the bundle
    """

    name: str
    reference: Reference
    classifiers: Mapping
    identity: Mapping
    source: Findings | Bundle

    @classmethod
    def open(cls, settings: Config) -> Applied:
        """The run named as ``applied`` by the settings, for maps made by their method.

        Its maps are those of the explanation of the same name, if that run has one.
        """
        assert settings.applied is not None
        name = Path(settings.applied).resolve().name
        if Path(settings.applied).is_file():
            bundle = Bundle.open(settings.applied, WITHOUT_WEIGHTS)
            reference = Reference.of_bundle(settings, bundle)
            identity = {**{key: reference.evaluated[key] for key in ("fingerprint", "finished")}, **identify(settings)}
            return cls(name, reference, bundle.classifiers, identity, bundle)
        run = Run(settings.applied)
        run = Run(settings.applied, settings.explanation if settings.explanation in run.explanations else DEFAULT)
        findings, entry = Findings(run), run.entry("evaluate", "external")
        identity = {key: entry.get(key) for key in ("fingerprint", "output_hash", "finished")}
        classifiers = {name: findings.metrics["classifiers"][name] for name in (CUTOFF, TREE)}
        return cls(name, Reference.of(settings, run), classifiers, identity, findings)

    @property
    def findings(self) -> Findings | None:
        """The findings of a run; None for a bundle, which has no cases."""
        return self.source if isinstance(self.source, Findings) else None

    def describe_test(self, columns: Sequence[str]) -> Mapping | None:
        """Its own test, see `datxai.tested.Tested.describe`; None for a bundle of a version without one. The groups of
        a bundle are those chosen when it was made, whatever the ``columns``."""
        if isinstance(self.source, Bundle):
            return self.source.tested
        return Tested(self.source, self.reference.calibration, self.classifiers).describe(columns)


def identify(settings: Config) -> dict:
    """What identifies the content of the run to be applied. Raises `InputError` if it is unfinished or damaged."""
    assert settings.applied is not None
    if Path(settings.applied).is_file():
        return {"sha256": Bundle.open(settings.applied, ()).identity}
    entry = Run(settings.applied).entry("evaluate", "apply")
    return {name: entry.get(name) for name in ("fingerprint", "output_hash")}


def require_applicable(settings: Config) -> None:
    """Raise `InputError` for a run that cannot be applied, or any unusable part of a bundle, before any work begins."""
    assert settings.applied is not None
    if not Path(settings.applied).is_file():
        identify(settings)
        return
    bundle = Bundle.open(settings.applied)
    Reference.of_bundle(settings, bundle)
    bundle.require_usable()
    bundle.load_network("cpu")


def take_network(settings: Config, folder: Path) -> None:
    """Copy the network of the run to be applied into ``folder``, with its training history, which is empty for a
    bundle."""
    assert settings.applied is not None
    folder.mkdir(exist_ok=True)
    if Path(settings.applied).is_file():
        Bundle.open(settings.applied, (SETTINGS, NETWORK, WEIGHTS)).write_network(folder)
        write_table(folder / HISTORY, [], ["epoch"])
        return
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, HISTORY):
        with replacing(folder / name) as temporary:
            shutil.copyfile(Run(settings.applied).model / name, temporary)
