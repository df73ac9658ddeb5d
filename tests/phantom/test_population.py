"""The population against the published proportions and tables."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from datxai.phantom.anatomy import PUTAMEN_PARTS
from datxai.phantom.camera import COLLIMATORS
from datxai.phantom.population import AGE_RANGE, BIOLOGY, SITES, STRATA, draw_population
from datxai.phantom.reads import READERS

PAPER = 1296
STANDARD_ERRORS = 3.0


@pytest.fixture(scope="module")
def population():
    return draw_population(PAPER, seed=1)


def lower_putamen(subject):
    return min(np.mean([subject.uptake[f"{part}_{side}"] for part in PUTAMEN_PARTS]) - 1 for side in ("left", "right"))


def test_labels_and_sexes_are_those_of_the_paper(population):
    counts = Counter((s.label, s.sex) for s in population)
    assert counts == {stratum: count for stratum, (count, _, _) in STRATA.items()}
    assert sum(counts.values()) == PAPER
    assert counts[0, "F"] + counts[0, "M"] == 676


@pytest.mark.parametrize("n", [7, 40, 144, 500])
def test_any_first_part_is_in_proportion(population, n):
    counts = Counter((s.label, s.sex) for s in population[:n])
    for stratum, (count, _, _) in STRATA.items():
        assert abs(counts[stratum] - n * count / PAPER) < 1


def test_a_subject_depends_on_seed_and_number_only(population):
    assert draw_population(30, seed=1) == population[:30]
    assert draw_population(5, seed=2) != population[:5]
    assert len({s.participant_id for s in population}) == PAPER


def test_ages_are_those_of_the_paper(population):
    for (label, sex), (_, mean, deviation) in STRATA.items():
        ages = np.array([s.age for s in population if (s.label, s.sex) == (label, sex)])
        error = deviation / np.sqrt(ages.size)
        assert ages.mean() == pytest.approx(mean, abs=STANDARD_ERRORS * error)
        assert ages.std() == pytest.approx(deviation, abs=STANDARD_ERRORS * error)
        assert ages.min() >= AGE_RANGE[0]
        assert ages.max() <= AGE_RANGE[1]


def test_readers_disagree_as_in_the_paper(population):
    """2.4 % of 1306 and kappa 0.952 +- 0.008 in the paper; three standard errors here."""
    final = np.array([[[r.read for r in s.reads if r.reader == who][-1] for s in population] for who in READERS])
    agreement = (final[0] == final[1]).mean()
    chance = sum((final[0] == k).mean() * (final[1] == k).mean() for k in (0, 1))
    assert 1 - agreement == pytest.approx(0.024, abs=0.013)
    assert (agreement - chance) / (1 - chance) == pytest.approx(0.952, abs=0.025)


def test_label_and_truth_differ_now_and_then(population):
    wrong = np.mean([s.label != s.diseased for s in population])
    assert 0.005 < wrong < 0.04


def test_binding_falls_with_age_and_is_higher_in_women(population):
    normal = [s for s in population if s.pattern == "normal"]
    x = np.array([[1, (s.age - 67) / 10, s.sex == "F"] for s in normal], float)
    _, decade, female = np.linalg.lstsq(x, np.log([lower_putamen(s) for s in normal]), rcond=None)[0]
    assert -0.104 < decade < -0.02
    assert 0.0 < female < 0.14


def test_the_caudate_varies_apart_from_the_putamen(population):
    normal = [s for s in population if s.pattern == "normal"]
    caudate = np.array([np.mean([s.uptake[f"caudate_{side}"] - 1 for side in ("left", "right")]) for s in normal])
    putamen = np.array(
        [np.mean([s.uptake[f"putamen_middle_{side}"] - 1 for side in ("left", "right")]) for s in normal]
    )
    # both sides' own variation in either region halves in the mean
    expected = np.hypot(BIOLOGY.caudate, BIOLOGY.region)
    error = expected / np.sqrt(2 * len(normal))
    assert np.log(caudate / putamen).std() == pytest.approx(expected, abs=STANDARD_ERRORS * error)
    assert np.log(caudate).std() > np.log(putamen).std() + STANDARD_ERRORS * error


def test_loss_runs_from_posterior_to_anterior_and_spares_the_caudate(population):
    def kept(subjects, region):
        return np.median([s.uptake[f"{region}_{s.side}"] - 1 for s in subjects])

    normal = [s for s in population if s.pattern == "normal"]
    disease = [s for s in population if s.pattern == "parkinson"]
    order = ("putamen_posterior", "putamen_middle", "putamen_anterior", "caudate")
    share = [kept(disease, region) / kept(normal, region) for region in order]
    assert all(a < b - 0.05 for a, b in pairwise(share))


def test_one_side_is_worse_and_either_may_be(population):
    disease = [s for s in population if s.pattern == "parkinson"]
    for s in disease[:100]:
        other = {"left": "right", "right": "left"}[s.side]
        assert s.uptake[f"putamen_posterior_{s.side}"] < 1.15 * s.uptake[f"putamen_posterior_{other}"]
    assert 0.4 < np.mean([s.side == "left" for s in disease]) < 0.6
    spread = {
        pattern: np.median([s.asymmetry for s in population if s.pattern == pattern])
        for pattern in ("normal", "parkinson", "atypical")
    }
    assert spread["normal"] < spread["atypical"] < spread["parkinson"]


def test_poses_and_acquisitions_stay_within_their_limits(population):
    assert max(np.abs(s.head.rotation_deg).max() for s in population) <= 10
    assert max(np.abs(s.head.shift_mm).max() for s in population) <= 15
    assert {s.acquisition.collimator for s in population} == set(COLLIMATORS)
    assert {s.acquisition.site for s in population} == set(SITES)
    counts = np.array([s.acquisition.counts for s in population])
    assert counts.min() > 8e5
    assert counts.max() < 4e6


def test_a_site_scans_in_its_own_way(population):
    for name, site in SITES.items():
        scans = [s.acquisition for s in population if s.acquisition.site == name]
        assert len(scans) > PAPER / len(SITES) / 2
        assert {scan.collimator for scan in scans} == {site.collimator}
        assert np.median([scan.counts for scan in scans]) == pytest.approx(site.counts, rel=0.06)
        assert np.mean([scan.radius_mm for scan in scans]) == pytest.approx(site.radius_mm, abs=1.5)
        assert {scan.reconstruction["post_filter_mm"] for scan in scans} == {site.reconstruction["post_filter_mm"]}
