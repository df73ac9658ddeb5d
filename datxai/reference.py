"""The reference of a finished run, or a bundle of one, with which new scans are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datxai.analysis.shift import Shift
from datxai.bundle import Bundle
from datxai.config import Config
from datxai.errors import InputError
from datxai.explainer import describe_method
from datxai.files import hash_content
from datxai.findings import Findings
from datxai.run import Run

if TYPE_CHECKING:
    from datxai.analysis.normal_range import NormalRange


@dataclass(frozen=True, eq=False)
class Reference:
    """The results of a run with which a new scan is compared.

    Attributes
    ----------
    means : mean relevance maps (X, Y, Z) of the true negative and true positive test cases; None if one group has no
        case, or if these maps were made by another method and must not be compared
    calibration : the ``temperature`` of the run's validation cases, whether it is ``determined``, and the
        ``half_width`` of the uncertain range around 0.5
    ranges : normal range of each measure by age and sex, from the run's normal cases
    normals : age, sex and measures of these cases, for plots; empty if not available
    evaluated : the manifest's entry of the stage `evaluate`
    identity : of the run up to that stage, see `Run.identity`
    shift : the measures that compare a scan with the training cases; None for a run of a version without them
    alike : whether the run's own maps were made by the same method as new ones
    """

    means: Sequence[np.ndarray] | None
    calibration: Mapping
    ranges: Mapping[str, NormalRange]
    evaluated: Mapping
    identity: str | None = None
    normals: Sequence[Mapping] = ()
    shift: Shift | None = None
    alike: bool = False

    @classmethod
    def of(cls, settings: Config, run: Run) -> Reference:
        """The reference of a run, for maps made by the method of these settings."""
        findings = Findings(run)
        explained = run.entry("explain", "case")
        alike = run.fingerprint("explain", describe_method(settings), explained["inputs"]) == explained["fingerprint"]
        pair = [findings.mean_of(f"{group}_relevance") for group in ("TN", "TP")] if alike else []
        means = [mean for mean in pair if mean is not None]
        return cls(
            means=means if len(means) == 2 else None,
            calibration={**findings.metrics["calibration"], "half_width": findings.half_width},
            ranges=findings.ranges,
            evaluated=run.entry("evaluate", "case"),
            identity=run.identity("evaluate", "case"),
            normals=findings.normals,
            shift=findings.shift,
            alike=alike,
        )

    @classmethod
    def of_bundle(cls, settings: Config, bundle: Bundle) -> Reference:
        """The reference of a bundle's run, for maps made by the method of these settings."""
        from datxai.analysis.normal_range import NormalRange

        recorded = bundle.reference
        try:
            ranges = {str(name): NormalRange.unpack(data) for name, data in recorded["ranges"].items()}
            for range_ in ranges.values():
                for age, sex in ((None, None), (60.0, "F")):
                    expected = range_.expect(age, sex)
                    if expected is not None and not np.isfinite(expected.limits).all():
                        raise ValueError("a range without limits")
        except (KeyError, TypeError, AttributeError, ArithmeticError, ValueError, IndexError) as error:
            raise InputError(f"{bundle.folder}: its normal ranges cannot be used; make the bundle again.") from error
        alike = hash_content(describe_method(settings)) == recorded["method"]
        return cls(
            means=bundle.means if alike else None,
            calibration=recorded["calibration"],
            ranges=ranges,
            evaluated=recorded["evaluated"],
            identity=bundle.identity,
            shift=bundle.shift,
            alike=alike,
        )
