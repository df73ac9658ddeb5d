"""Spectral relevance analysis: which decision strategies a set of relevance maps shows.

Lapuschkin et al. 2019 (doi:10.1038/s41467-019-08987-4): maps are downsampled, similar maps are joined in a graph, and
the spectrum of its Laplacian tells how many groups there are. A group that relies on something without meaning is a
Clever Hans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_MAPS = 8  # with fewer, groups mean little
MAX_CLUSTERS = 8
BASE_AFFINITY = 0.01  # of a map to all others together (1 to each neighbour), so that the graph is connected
SURROGATES = 199  # sets of maps of a single group, whose gaps the gap is compared with
LEVEL = 0.05  # of significance


@dataclass(frozen=True, eq=False)
class Strategies:
    """The groups of a set of n maps, the largest first.

    Attributes
    ----------
    clusters : int [n], the number of each map's group, from 0
    eigenvalues : [m], the smallest of the graph's normalised Laplacian, from 0 up to 2
    gap : the largest between consecutive eigenvalues, not before the second: it determines the number of groups
    p : probability of so large a gap among maps of a single group; above `LEVEL` all maps are one group
    embedding : [n, 2], the first two principal components of the maps
    prototypes : list of int, for each group the map with the smallest mean distance to its other maps
    """

    clusters: np.ndarray
    eigenvalues: np.ndarray
    gap: float
    p: float
    embedding: np.ndarray
    prototypes: list[int]

    @property
    def n(self) -> int:
        """How many groups there are."""
        return len(self.prototypes)


def shrink(relevance: np.ndarray, spacing: Sequence[float] | np.ndarray, cell_mm: float) -> np.ndarray:
    """Average a map (X, Y, Z) over cells of ``cell_mm`` and divide it by its L2 norm, float64; zeros stay zeros.

    Maps are thus compared by the position and sign of their relevance, not by its amount.
    """
    edges = [max(1, min(n, round(cell_mm / mm))) for n, mm in zip(relevance.shape, spacing)]
    padded = np.pad(relevance.astype(float), [(0, -n % edge) for n, edge in zip(relevance.shape, edges)])
    parts = [size for n, edge in zip(padded.shape, edges) for size in (n // edge, edge)]
    small = padded.reshape(parts).mean(axis=(1, 3, 5))
    return small / (np.linalg.norm(small) or 1.0)


def find_strategies(maps: np.ndarray, max_clusters: int = MAX_CLUSTERS, seed: int = 0) -> Strategies:
    """Group maps [n, ...] of `shrink` by spectral clustering; the number of groups comes from the eigengap.

    Each map is joined to its sqrt(n) nearest (Euclidean distance; the graph is symmetrised by the mean of both
    directions, as in scikit-learn's `SpectralClustering`). Eigenvalues are those of the symmetric normalised Laplacian
    (von Luxburg 2007, doi:10.1007/s11222-007-9033-z); there are k groups, 2 to ``max_clusters``, if the gap after the
    k-th is largest. Small sets have gaps by chance: there is more than one group only if the gap is larger than the one
    after the first eigenvalue, and larger than those of maps drawn from a normal distribution with the covariance of
    these. A group smaller than sqrt(n) is not detected. Needs `MIN_MAPS` maps.
    """
    from sklearn.cluster import SpectralClustering
    from sklearn.metrics import pairwise_distances

    flat = np.reshape(maps, (len(maps), -1))
    assert len(flat) >= MIN_MAPS and np.isfinite(flat).all(), flat.shape
    affinity = _join(flat)
    eigenvalues, k, gap = _find_gap(affinity, max_clusters)
    axes, lengths, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    rng = np.random.default_rng(seed)
    surrogates = (rng.normal(size=(len(flat), len(lengths))) * lengths for _ in range(SURROGATES))
    p = (1 + sum(_find_gap(_join(data), max_clusters)[2] >= gap for data in surrogates)) / (1 + SURROGATES)
    clusters = np.zeros(len(flat), int)
    if p <= LEVEL and gap > eigenvalues[1]:  # the gap after the first, which is 0
        clustering = SpectralClustering(k, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
        clusters = np.asarray(clustering.fit(affinity).labels_)
        clusters = np.argsort(np.argsort(-np.bincount(clusters), kind="stable"))[clusters]
    distances = pairwise_distances(flat)
    prototypes = []
    for number in range(clusters.max() + 1):
        members = np.flatnonzero(clusters == number)
        prototypes.append(int(members[distances[np.ix_(members, members)].mean(axis=1).argmin()]))
    return Strategies(clusters, eigenvalues, gap, p, (axes * lengths)[:, :2], prototypes)


def _join(flat: np.ndarray) -> np.ndarray:
    """Affinity matrix [n, n] of flattened maps."""
    from sklearn.neighbors import kneighbors_graph

    nearest = kneighbors_graph(flat, round(np.sqrt(len(flat))), include_self=True).toarray()
    return 0.5 * (nearest + nearest.T) + BASE_AFFINITY / len(flat)


def _find_gap(affinity: np.ndarray, max_clusters: int) -> tuple[np.ndarray, int, float]:
    """The smallest eigenvalues of the Laplacian, the number k > 1 of those before the largest gap, and this gap."""
    from scipy.sparse.csgraph import laplacian

    n_gaps = min(max_clusters, len(affinity) - 1)
    eigenvalues = np.linalg.eigvalsh(laplacian(affinity, normed=True)).clip(0, 2)[: n_gaps + 1]
    gaps = np.diff(eigenvalues)[1:]
    return eigenvalues, int(gaps.argmax()) + 2, float(gaps.max())
