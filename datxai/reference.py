"""What a finished run, or a bundle of one, holds a new scan against."""

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
    """What a run holds a new scan against.

    Attributes
    ----------
    means : mean relevance maps (X, Y, Z) of the true negative and true positive test cases; None if one has no case, or
        if these maps were made another way, which a map must not be held against
    calibration : the ``temperature`` of the run's validation cases, whether it is ``determined``, and ``half_width`` of
        what is called uncertain about 0.5
    ranges : what the run's normal cases let expect of each measure, by age and sex
    normals : age, sex and measures of these cases, to be drawn; empty where they are not at hand
    evaluated : the manifest's entry of the stage `evaluate`
    identity : of all that the run holds up to there, see `Run.identity`
    shift : what tells whether a scan is like the training cases; None for a run of a version that did not look
    alike : whether the run's own maps were made the same way as those to come
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
        """What the run found, for maps made by the method of these settings."""
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
        """What the run of a bundle found, for maps made by the method of these settings."""
        from datxai.analysis.normal_range import NormalRange

        held = bundle.reference
        try:
            ranges = {str(name): NormalRange.unpack(data) for name, data in held["ranges"].items()}
            for one in ranges.values():
                for age, sex in ((None, None), (60.0, "F")):
                    expected = one.expect(age, sex)
                    if expected is not None and not np.isfinite(expected.limits).all():
                        raise ValueError("a range without limits")
        except (KeyError, TypeError, AttributeError, ArithmeticError, ValueError, IndexError) as error:
            raise InputError(f"{bundle.folder}: its normal ranges cannot be used; make the bundle again.") from error
        alike = hash_content(describe_method(settings)) == held["method"]
        return cls(
            means=bundle.means if alike else None,
            calibration=held["calibration"],
            ranges=ranges,
            evaluated=held["evaluated"],
            identity=bundle.identity,
            shift=bundle.shift,
            alike=alike,
        )
