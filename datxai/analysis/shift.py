"""Whether a scan is unlike all that a network was trained with, and by which measure.

Measures are distances from the training cases in features of a scan. Each has a limit, and a scan beyond any of them is
marked. The limits are set on cases that a distance was not fitted to, all by one number, so that of scans like the
training's no more than `LEVEL` are marked: the split-conformal rule (Vovk et al. 2005, Algorithmic Learning in a Random
World; Lei et al. 2018, doi:10.1080/01621459.2017.1307116) for the largest of all measures, with cross-fitting for the
training cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from datxai.errors import InputError

LEVEL = 0.05  # of scans like the training's that are marked, at most, on average over cohorts
MIN_CASES = 50  # of training; with fewer, nothing is judged
FOLDS = 5
AXES = 10  # principal components of the uptake
COMMON = 0.9  # the quantile whose distance from the median says how wide the usual range of a measure is
NARROWEST = 0.5  # and the least such distance
SMALLEST = {"field of view": 0.01}  # spread that counts, of features that hardly vary
TEXTURE = ("noise", "sharpness")
OWN_MM = "of the scan's own millimetres"  # the periods of texture; earlier versions took those of MNI space
LEARNED = ("activations",)  # features that were fitted to the training cases themselves

Features = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Distance from the training cases' ``mean`` [d], after a linear map ``whitening`` [m, d]: Mahalanobis' one."""

    mean: np.ndarray
    whitening: np.ndarray

    def measure(self, x: np.ndarray) -> np.ndarray:
        """Distances [n] of cases [n, d]."""
        return np.linalg.norm((x - self.mean) @ self.whitening.T, axis=1)


@dataclass(frozen=True, eq=False)
class Subspace:
    """The largest of what ``axes`` [k, d] (orthonormal, through ``mean`` [d]) leave of a case, each feature over its
    ``spread`` [d] in the training cases."""

    mean: np.ndarray
    axes: np.ndarray
    spread: np.ndarray

    def measure(self, x: np.ndarray) -> np.ndarray:
        """Distances [n] of cases [n, d]."""
        centred = x - self.mean
        return np.abs((centred - centred @ self.axes.T @ self.axes) / self.spread).max(axis=1)


Measure = Ellipsoid | Subspace


def fit_ellipsoid(x: np.ndarray, smallest: float = 0.0) -> Ellipsoid:
    """Of cases [n, d]: features over their standard deviation, of which those below ``smallest`` count as that, and the
    covariance of these shrunk (Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4). Features that never vary are
    left out."""
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
    """Of a layer's units in cases [n, d]: those that hardly ever fire count with a tenth of the largest spread."""
    return fit_ellipsoid(x, 0.1 * float(x.std(axis=0).max()))


def _fit_components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [d], the first principal axes [k, d] of cases [n, d], and the standard deviation [k] along each."""
    mean = x.mean(axis=0)
    _, sizes, axes = np.linalg.svd(x - mean, full_matrices=False)
    k = min(AXES, len(x) // 4)
    return mean, axes[:k], sizes[:k] / math.sqrt(len(x) - 1)


def fit_pattern(x: np.ndarray) -> Ellipsoid:
    """Of cases [n, d]: the distance along their first principal components, each over its standard deviation."""
    mean, axes, spread = _fit_components(x)
    return Ellipsoid(mean, axes / np.maximum(spread, 1e-12)[:, None])


def fit_subspace(x: np.ndarray) -> Subspace:
    """Of cases [n, d]: what their first principal components leave."""
    mean, axes, _ = _fit_components(x)
    left = (x - mean) - (x - mean) @ axes.T @ axes
    spread = np.sqrt((left**2).sum(axis=0) / (len(x) - 1 - len(axes)))
    return Subspace(mean, axes, np.maximum(spread, 1e-6 * spread.max() + 1e-12))


MEASURES: dict[str, tuple[str, Callable[[np.ndarray], Measure]]] = {  # name: feature, and what is fitted to it
    "noise": ("noise", fit_ellipsoid),
    "sharpness": ("sharpness", fit_ellipsoid),
    "field of view": ("field of view", lambda x: fit_ellipsoid(x, SMALLEST["field of view"])),
    "reference region": ("reference region", fit_ellipsoid),
    "binding ratios": ("binding ratios", fit_ellipsoid),
    "pattern of uptake": ("uptake", fit_pattern),
    "local uptake": ("uptake", fit_subspace),
    "activations": ("activations", fit_activations),
}


@dataclass(frozen=True, eq=False)
class Shift:
    """What scans are held against: of each measure, a fit, the limit beyond which a scan is marked, and 101 quantiles
    of what cases that were held out have.

    ``note`` says what is not judged, and why. ``own``: how often the run's test cases are marked, which are in no fit
    and in no limit: ``marked``, ``n``, ``rate``, and its 95 % interval of Wilson, ``ci95``.
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
        """What is said of one scan with features [d] each; None where nothing is judged.

        Returns
        -------
        dict with ``marked``; ``measures``, by name ``value`` (a distance, in standard deviations), ``limit``,
        ``percentile`` (how many of a hundred cases held out have a smaller value) and ``marked``; and ``own``, how
        often the run's test cases are. A feature that is missing is not judged; one of another length than that of the
        training cases is an `InputError`.
        """
        known = {name: fit for name, fit in self.measures.items() if MEASURES[name][0] in features}
        if not known:
            return None
        found = {}
        for name, fit in known.items():
            feature = features[MEASURES[name][0]]
            if feature.shape != fit.mean.shape:
                raise InputError(
                    f"likeness to the training scans: {name} is of {len(feature)} numbers in the scan and of "
                    f"{len(fit.mean)} in the run, which another version has made; run `datxai evaluate` anew."
                )
            value = float(fit.measure(feature[None])[0])
            found[name] = {
                "value": value,
                "limit": self.limits[name],
                "percentile": min(100, int(np.searchsorted(self.usual[name], value))),
                "marked": not value <= self.limits[name],  # NaN is like nothing
            }
        return {"marked": any(row["marked"] for row in found.values()), "measures": found, "own": self.own}

    def tabulate(self, features: Features) -> list[dict]:
        """A row for each of n cases with features [n, d]: ``marked``, and the distance by each measure."""
        found = self.measure(features)
        beyond = np.any([~(values <= self.limits[name]) for name, values in found.items()], axis=0)
        return [
            {"marked": bool(marked), **{name: float(values[number]) for name, values in found.items()}}
            for number, marked in enumerate(beyond)
        ]

    def summarise(self, tested: Sequence[Mapping]) -> dict:
        """The part of metrics.json on this: ``judged``, ``note``, what ``own`` holds, and by measure its limit, the
        median and 95th percentile of held-out cases, and how many of the test cases, rows of `tabulate`, are beyond."""
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
        """The same, of the measures alone whose feature there is."""
        known = {name: fit for name, fit in self.measures.items() if MEASURES[name][0] in features}
        return replace(self, measures=known, limits={name: self.limits[name] for name in known})

    def with_tested(self, tested: Sequence[Mapping]) -> Shift:
        """The same, with what it makes of the run's test cases, rows of `tabulate`."""
        from datxai.analysis.classification import wilson_interval

        marked, n = sum(row["marked"] for row in tested), len(tested)
        rate = marked / n if n else None
        return replace(self, own={"marked": marked, "n": n, "rate": rate, "ci95": wilson_interval(marked, n)})

    def pack(self) -> tuple[dict[str, np.ndarray], dict]:
        """As arrays by name, and what else there is as JSON takes it; `unpack` makes it whole again."""
        arrays = {
            f"{name}/{key}": np.ascontiguousarray(value, np.float32)
            for name, fit in self.measures.items()
            for key, value in {**vars(fit), "usual": self.usual[name]}.items()
        }
        return arrays, {"limits": dict(self.limits), "note": self.note, "own": dict(self.own), "periods": OWN_MM}

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], about: Mapping) -> Shift:
        """What `pack` made; `KeyError`, `TypeError` or `ValueError` if it is not that. What an earlier version made
        has no texture that a scan could be held against."""
        measures, usual, limits = {}, {}, {name: float(limit) for name, limit in about["limits"].items()}
        if limits and about.get("periods") != OWN_MM:
            limits = {name: limit for name, limit in limits.items() if name not in TEXTURE}
        for name in limits:
            MEASURES[name]
            own = {key.partition("/")[2]: value for key, value in arrays.items() if key.partition("/")[0] == name}
            own = {key: np.asarray(value, float) for key, value in own.items()}
            usual[name] = own.pop("usual")
            fit = measures[name] = (Subspace if "axes" in own else Ellipsoid)(**own)
            fit.measure(fit.mean[None])  # shapes that do not go together raise ValueError
        return cls(measures, limits, usual, str(about["note"]), dict(about["own"]))


def fit_shift(training: Features, held_out: Features, people: Sequence[str] | None = None, note: str = "") -> Shift:
    """Fit the measures of these features to training cases, and set their limits.

    Parameters
    ----------
    training, held_out : name to [n, d]; held out are the validation cases, of which there may be none
    people : whose scan each training case is; scans of one person are held out together
    note : what is to be said beside

    Each training case is measured by fits to the other folds. A feature of `LEARNED` is, in the training cases, what
    the network has made fit; where the median of the held-out cases is larger, the distances of the training cases are
    raised by the ratio. Measures are made alike by their median and their `COMMON` quantile, and the limit of all is
    the conformal quantile of the largest.
    """
    n = len(next(iter(training.values())))
    folds = _draw_folds(np.arange(n) if people is None else np.asarray(people))
    fits: dict[str, Measure] = {}
    distances = {}
    for name, (feature, fit) in MEASURES.items():
        if feature not in training:
            continue
        x, others = training[feature], held_out[feature]
        fits[name] = fit(x)
        own, theirs = np.zeros(n), fits[name].measure(others)
        for fold in np.unique(folds):
            own[folds == fold] = fit(x[folds != fold]).measure(x[folds == fold])
        if feature in LEARNED and len(theirs):
            own *= max(1.0, float(np.median(theirs) / max(np.median(own), 1e-12)))
        distances[name] = np.concatenate([own, theirs])
    middle = {name: float(np.median(values)) for name, values in distances.items()}
    width = {
        name: max(float(np.quantile(values, COMMON)) - middle[name], NARROWEST) for name, values in distances.items()
    }
    largest = np.max([(values - middle[name]) / width[name] for name, values in distances.items()], axis=0)
    limit = conformal_limit(largest)
    return Shift(
        fits,
        {name: middle[name] + limit * width[name] for name in fits},
        {name: np.quantile(values, np.linspace(0, 1, 101)) for name, values in distances.items()},
        note,
    )


def conformal_limit(scores: np.ndarray, level: float = LEVEL) -> float:
    """The score that one more case exceeds with a chance of ``level`` at most, if it is exchangeable with those that
    have ``scores`` [n]; infinite where these are too few to say."""
    rank = math.ceil((len(scores) + 1) * (1 - level))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def _draw_folds(people: np.ndarray) -> np.ndarray:
    """The number of the fold of each case, all cases of a person in one."""
    names, person = np.unique(people, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    return (order % FOLDS)[person]
