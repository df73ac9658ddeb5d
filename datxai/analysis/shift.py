"""Detects scans that differ from those a network was trained on, and says by which measure.

A measure is a distance from the training cases in some feature of the scan. Each has a limit, and a scan beyond any
limit is marked. All limits follow from one number, set on cases that the distances were not fitted to, so that at most
a share `LEVEL` of scans like the training scans is marked. This is the split-conformal rule (Vovk et al. 2005,
Algorithmic Learning in a Random World; Lei et al. 2018, doi:10.1080/01621459.2017.1307116) applied to the largest of
all measures, with cross-fitting for the training cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from datxai.errors import InputError

LEVEL = 0.05  # largest share of scans like the training scans that is marked, on average over cohorts
MIN_CASES = 50  # training cases; with fewer, nothing is judged
FOLDS = 5
AXES = 10  # principal components of the uptake
WIDTH_QUANTILE = 0.9  # the distance of this quantile from the median is the width of a measure's usual range
MIN_WIDTH = 0.5
MIN_SPREAD = {"field of view": 0.01}  # for features that hardly vary
TEXTURE = ("noise", "sharpness")
SCAN_SPACE_PERIODS = "of the scan's own millimetres"  # of texture; earlier versions measured periods in MNI space
LEARNED = ("activations",)  # features that the network fitted to the training cases

Features = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Mahalanobis distance from the training cases' ``mean`` [d]: norm after the linear map ``whitening`` [m, d]."""

    mean: np.ndarray
    whitening: np.ndarray

    def measure(self, x: np.ndarray) -> np.ndarray:
        """Distances [n] of cases [n, d]."""
        return np.linalg.norm((x - self.mean) @ self.whitening.T, axis=1)


@dataclass(frozen=True, eq=False)
class Subspace:
    """The largest residual of a case after projection on ``axes`` [k, d] (orthonormal, through ``mean`` [d]), each
    feature divided by its ``spread`` [d] in the training cases."""

    mean: np.ndarray
    axes: np.ndarray
    spread: np.ndarray

    def measure(self, x: np.ndarray) -> np.ndarray:
        """Distances [n] of cases [n, d]."""
        centred = x - self.mean
        return np.abs((centred - centred @ self.axes.T @ self.axes) / self.spread).max(axis=1)


Measure = Ellipsoid | Subspace


def fit_ellipsoid(x: np.ndarray, smallest: float = 0.0) -> Ellipsoid:
    """Fit the ellipsoid of cases [n, d]. Features are divided by their standard deviation, or by ``smallest`` if that
    is larger; their covariance is shrunk (Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4). Features that never
    vary are left out."""
    from sklearn.covariance import ledoit_wolf

    mean, spread = x.mean(axis=0), np.maximum(x.std(axis=0), smallest)
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1e-30)
    if not varies.any():
        return Ellipsoid(mean, np.zeros((1, len(mean))))
    covariance, _ = ledoit_wolf((x - mean)[:, varies] / spread[varies], assume_centered=True)
    covariance += max(1e-9 * np.trace(covariance) / len(covariance), 1e-9) * np.eye(len(covariance))
    whitening = np.zeros((len(covariance), len(mean)))
    whitening[:, varies] = np.linalg.inv(np.linalg.cholesky(covariance)) / spread[varies]
    return Ellipsoid(mean, whitening)


def fit_activations(x: np.ndarray) -> Ellipsoid:
    """Fit the ellipsoid of a layer's units in cases [n, d]; no unit's spread is below a tenth of the largest."""
    return fit_ellipsoid(x, 0.1 * float(x.std(axis=0).max()))


def _fit_components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [d], the first principal axes [k, d] of cases [n, d], and the standard deviation [k] along each."""
    mean = x.mean(axis=0)
    _, sizes, axes = np.linalg.svd(x - mean, full_matrices=False)
    k = min(AXES, len(x) // 4)
    return mean, axes[:k], sizes[:k] / math.sqrt(len(x) - 1)


def fit_pattern(x: np.ndarray) -> Ellipsoid:
    """Fit the distance of cases [n, d] along their first principal components, in standard deviations."""
    mean, axes, spread = _fit_components(x)
    return Ellipsoid(mean, axes / np.maximum(spread, 1e-12)[:, None])


def fit_subspace(x: np.ndarray) -> Subspace:
    """Fit what the first principal components of cases [n, d] leave unexplained."""
    mean, axes, _ = _fit_components(x)
    residuals = (x - mean) - (x - mean) @ axes.T @ axes
    spread = np.sqrt((residuals**2).sum(axis=0) / (len(x) - 1 - len(axes)))
    return Subspace(mean, axes, np.maximum(spread, 1e-6 * spread.max() + 1e-12))


MEASURES: dict[str, tuple[str, Callable[[np.ndarray], Measure]]] = {  # name: feature, and how a measure is fitted to it
    "noise": ("noise", fit_ellipsoid),
    "sharpness": ("sharpness", fit_ellipsoid),
    "field of view": ("field of view", lambda x: fit_ellipsoid(x, MIN_SPREAD["field of view"])),
    "reference region": ("reference region", fit_ellipsoid),
    "binding ratios": ("binding ratios", fit_ellipsoid),
    "pattern of uptake": ("uptake", fit_pattern),
    "local uptake": ("uptake", fit_subspace),
    "activations": ("activations", fit_activations),
}


@dataclass(frozen=True, eq=False)
class Shift:
    """What scans are held against: for each measure its fit, its limit, and 101 quantiles over the held-out cases.

    ``note`` says what is not judged, and why. ``own`` says how often the run's test cases are marked, which enter
    neither fits nor limits: ``marked``, ``n``, ``rate``, and the Wilson 95 % interval ``ci95`` of the rate.
    """

    measures: Mapping[str, Measure]
    limits: Mapping[str, float]
    usual: Mapping[str, np.ndarray]
    note: str = ""
    own: Mapping = field(default_factory=dict)

    def measure(self, features: Features) -> dict[str, np.ndarray]:
        """Distances [n] of cases by measure; ``features`` are [n, d] each."""
        return {name: fit.measure(features[MEASURES[name][0]]) for name, fit in self.measures.items()}

    def judge(self, features: Features) -> dict | None:
        """Judge one scan with features [d] each; None if nothing can be judged.

        Returns
        -------
        dict with ``marked``; ``measures``, by name ``value`` (a distance, in standard deviations), ``limit``,
        ``percentile`` (how many of a hundred held-out cases have a smaller value) and ``marked``; and ``own``, how
        often the run's test cases are marked. A missing feature is not judged; `InputError` if the length of a feature
        differs from that of the training cases.
        """
        rows = {}
        for name, fit in self.with_features(features).measures.items():
            feature = features[MEASURES[name][0]]
            if feature.shape != fit.mean.shape:
                raise InputError(
                    f"similarity to the training scans: {name} has {len(feature)} values in the scan and "
                    f"{len(fit.mean)} in the run, which another version has made; run `datxai evaluate` again."
                )
            value = float(fit.measure(feature[None])[0])
            rows[name] = {
                "value": value,
                "limit": self.limits[name],
                "percentile": min(100, int(np.searchsorted(self.usual[name], value))),
                "marked": not value <= self.limits[name],  # NaN is marked
            }
        if not rows:
            return None
        return {"marked": any(row["marked"] for row in rows.values()), "measures": rows, "own": self.own}

    def tabulate(self, features: Features) -> list[dict]:
        """A row for each of n cases with features [n, d]: ``marked``, and the distance by each measure."""
        distances = self.measure(features)
        beyond = np.any([~(values <= self.limits[name]) for name, values in distances.items()], axis=0)
        return [
            {"marked": bool(marked), **{name: float(values[i]) for name, values in distances.items()}}
            for i, marked in enumerate(beyond)
        ]

    def summarise(self, tested: Sequence[Mapping]) -> dict:
        """The section ``shift`` of metrics.json: ``judged``, ``note``, ``level``, the content of ``own``, and by
        measure its limit, median and 95th percentile over held-out cases, and how many test cases (rows of `tabulate`)
        exceed the limit."""
        return {
            "judged": bool(self.measures),
            "note": self.note,
            "level": LEVEL,
            **self.own,
            "measures": {
                name: {
                    "limit": limit,
                    "median": float(self.usual[name][50]),
                    "p95": float(self.usual[name][95]),
                    "marked": sum(not row[name] <= limit for row in tested),
                }
                for name, limit in self.limits.items()
            },
        }

    def with_features(self, features: Features) -> Shift:
        """A copy with only the measures whose feature is given."""
        measures = {name: fit for name, fit in self.measures.items() if MEASURES[name][0] in features}
        return replace(self, measures=measures, limits={name: self.limits[name] for name in measures})

    def with_tested(self, tested: Sequence[Mapping]) -> Shift:
        """A copy whose ``own`` counts the marked ones of the run's test cases, rows of `tabulate`."""
        from datxai.analysis.classification import wilson_interval

        marked, n = sum(row["marked"] for row in tested), len(tested)
        rate = marked / n if n else None
        return replace(self, own={"marked": marked, "n": n, "rate": rate, "ci95": wilson_interval(marked, n)})

    def pack(self) -> tuple[dict[str, np.ndarray], dict]:
        """Arrays by name, and the rest as JSON-serialisable data; `unpack` is the inverse."""
        arrays = {
            f"{name}/{key}": np.ascontiguousarray(value, np.float32)
            for name, fit in self.measures.items()
            for key, value in {**vars(fit), "usual": self.usual[name]}.items()
        }
        return arrays, {
            "limits": dict(self.limits), "note": self.note, "own": dict(self.own), "periods": SCAN_SPACE_PERIODS,
        }  # fmt: skip

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], about: Mapping) -> Shift:
        """Restore what `pack` returned; `KeyError`, `TypeError` or `ValueError` if the data is something else. Measures
        of texture are dropped from data of earlier versions, which measured periods in MNI space."""
        measures, usual, limits = {}, {}, {name: float(limit) for name, limit in about["limits"].items()}
        if limits and about.get("periods") != SCAN_SPACE_PERIODS:
            limits = {name: limit for name, limit in limits.items() if name not in TEXTURE}
        for name in limits:
            MEASURES[name]  # KeyError if the measure is unknown
            keyed = ((key.partition("/"), value) for key, value in arrays.items())
            parameters = {key: np.asarray(value, float) for (measure, _, key), value in keyed if measure == name}
            usual[name] = parameters.pop("usual")
            fit = measures[name] = (Subspace if "axes" in parameters else Ellipsoid)(**parameters)
            fit.measure(fit.mean[None])  # ValueError if shapes are inconsistent
        return cls(measures, limits, usual, str(about["note"]), dict(about["own"]))


def fit_shift(training: Features, held_out: Features, people: Sequence[str] | None = None, note: str = "") -> Shift:
    """Fit the measures of these features to training cases, and set their limits.

    Parameters
    ----------
    training, held_out : name to [n, d]; held out are the validation cases, which may be empty
    people : whose scan each training case is; scans of one person are held out together
    note : kept as `Shift.note`

    Each training case is measured by fits to the other folds. The network adapted the features in `LEARNED` to the
    training cases; where the held-out cases have a larger median, the distances of the training cases are multiplied by
    the ratio. Measures are standardised by their median and their `WIDTH_QUANTILE`, and the common limit is the
    conformal quantile of the largest.
    """
    n = len(next(iter(training.values())))
    folds = _draw_folds(np.arange(n) if people is None else np.asarray(people))
    fits: dict[str, Measure] = {}
    distances = {}
    for name, (feature, fit) in MEASURES.items():
        if feature not in training:
            continue
        x = training[feature]
        fits[name] = fit(x)
        cross_fitted, new = np.zeros(n), fits[name].measure(held_out[feature])
        for fold in np.unique(folds):
            cross_fitted[folds == fold] = fit(x[folds != fold]).measure(x[folds == fold])
        if feature in LEARNED and len(new):
            cross_fitted *= max(1.0, float(np.median(new) / max(np.median(cross_fitted), 1e-12)))
        distances[name] = np.concatenate([cross_fitted, new])
    middle = {name: float(np.median(values)) for name, values in distances.items()}
    upper = {name: float(np.quantile(values, WIDTH_QUANTILE)) for name, values in distances.items()}
    width = {name: max(upper[name] - middle[name], MIN_WIDTH) for name in distances}
    largest = np.max([(values - middle[name]) / width[name] for name, values in distances.items()], axis=0)
    limit = conformal_limit(largest)
    return Shift(
        fits,
        {name: middle[name] + limit * width[name] for name in fits},
        {name: np.quantile(values, np.linspace(0, 1, 101)) for name, values in distances.items()},
        note,
    )


def conformal_limit(scores: np.ndarray, level: float = LEVEL) -> float:
    """The score that a new case, exchangeable with those of ``scores`` [n], exceeds with probability ``level`` at most;
    infinite if there are too few scores."""
    rank = math.ceil((len(scores) + 1) * (1 - level))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def _draw_folds(people: np.ndarray) -> np.ndarray:
    """Fold number of each case; all cases of a person are in the same fold."""
    names, person = np.unique(people, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    return (order % FOLDS)[person]
