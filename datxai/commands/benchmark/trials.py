"""What every method has to explain: cases of the test set, and phantoms with and without a lesion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from datxai.case import describe_imaging
from datxai.commands.benchmark.bench import Bench, Trial, of_this_process
from datxai.config import Config
from datxai.files import hash_code, hash_content
from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.lesion import draw_healthy, locate_lesion, simulate_pair
from datxai.progress import parallel
from datxai.results import read_predictions
from datxai.run import Run
from datxai.stages.simulate import set_camera
from datxai.volume import load, save

PAIR_CODE = (  # with all that these import
    *(f"datxai.imaging.{part}" for part in ("reconstruction", "registration", "intensity", "quantification", "mirror")),
    "datxai.phantom.lesion",
)


def choose_cases(bench: Bench) -> list[Trial]:
    """Cases of the test set at equal steps from the most normal to the most reduced."""
    cases = sorted((case for case in read_predictions(bench.run) if case["set"] == "test"), key=_margin)
    n = min(bench.chosen.n_cases, len(cases))
    checked = _spread(min(bench.chosen.n_checks, n), n)
    targets = {"normal": 0, "reduced": 1, "difference": "difference"}
    return [
        Trial(
            case["participant_id"],
            targets.get(bench.settings.target, case["predicted"]),
            case["label"],
            case["predicted"],
            checked=number in checked,
        )
        for number, case in enumerate(cases[place] for place in _spread(n, len(cases)))
    ]


def _spread(n: int, total: int) -> list[int]:
    """``n`` places at equal steps among ``total``, in the middle of as many parts."""
    return [int((number + 0.5) * total / n) for number in range(n)]


def _margin(case: Mapping) -> float:
    return case["logit_reduced"] - case["logit_normal"]


def try_lesions(bench: Bench) -> list[Trial]:
    """The pairs of healthy and lesioned phantoms, made where they are missing, and what each lesion does."""
    settings, chosen = bench.settings, bench.chosen
    if not chosen.lesions:
        return []
    phantom = settings.data.kind == "phantom"
    seed, cohort = (settings.data.seed, settings.data.n_subjects) if phantom else (settings.seed, 0)
    heads = draw_healthy(chosen.n_heads, seed, beyond=cohort)
    tasks = [
        (settings, bench.run.folder, head, lesion, f"{lesion}-{number}")
        for number, head in enumerate(heads, start=1)
        for lesion in chosen.lesions
    ]
    for _ in parallel(_make_pair, tasks, len(tasks), settings.n_jobs, "lesions made"):
        pass
    tested = [case for case in read_predictions(bench.run) if case["set"] == "test"]
    normal, reduced = (np.median([_margin(case) for case in tested if case["label"] == label]) for label in (0, 1))
    trials = []
    for *_, lesion, name in tasks:
        scans = [load(bench.pair(name, kind)).data for kind in ("healthy", "lesioned")]
        with torch.no_grad():
            logits = bench.explainer.model(torch.from_numpy(np.stack(scans)[:, None]).to(bench.device)).double().cpu()
        healthy, lesioned = (logits[:, 1] - logits[:, 0]).tolist()
        effect = float((lesioned - healthy) / (reduced - normal))
        seen = abs(effect) >= chosen.min_effect
        trials.append(Trial(name, "difference", None, int(lesioned > 0), lesion, effect, seen))
    return trials


def _make_pair(settings: Config, folder: Path, head: object, lesion: str, name: str) -> None:
    """The scans of a head with and without a lesion, alike in all else, and where the lesion is."""
    bench = of_this_process(settings, folder)
    camera = set_camera(settings.data.camera) if settings.data.kind == "phantom" else {}
    how = asdict(settings.reconstruction)
    del how["start_angle_deg"], how["flip"], how["centre"]  # of other cameras
    mark = hash_content([lesion, head.seed, camera, describe_imaging(settings), how, hash_code(*PAIR_CODE)])
    if Run.made_with(bench.pair(name, "lesioned"), mark):
        return
    pair = simulate_pair(head, lesion, **camera)
    used = pair.camera
    lesioned, healthy = (
        reconstruct(counts, used.angles_deg, used.pixel_mm, used.pixel_mm, **how)
        for counts in (pair.lesioned, pair.healthy)
    )
    lesioned, measures = bench.imaging.process(lesioned, name)
    healthy = bench.imaging.follow(healthy, measures)
    scaled = healthy.data / np.float32(measures["reference_value"])
    save(healthy.after("scale", scaled, reference_value=measures["reference_value"]), bench.pair(name, "healthy"))
    save(bench.imaging.follow(locate_lesion(head.head, lesion), measures), bench.pair(name, "lesion"))
    save(lesioned, bench.pair(name, "lesioned"), {"fingerprint": mark, "measures": measures})  # last: now all are there
