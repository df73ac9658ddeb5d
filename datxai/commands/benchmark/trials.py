"""Trials of a benchmark: cases of the test set, and phantoms with and without a lesion."""

from __future__ import annotations

from dataclasses import asdict
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from datxai.case import describe_imaging
from datxai.commands.benchmark.bench import Bench, Trial, of_this_process
from datxai.config import Config, Phantom
from datxai.data_source import set_camera
from datxai.files import hash_code, hash_content
from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.lesion import draw_healthy, locate_lesion, simulate_pair
from datxai.phantom.population import Subject
from datxai.progress import parallel
from datxai.run import Run
from datxai.volume import load, save

PAIR_CODE = (  # modules, with their imports, that a pair depends on
    *(f"datxai.imaging.{part}" for part in ("reconstruction", "registration", "intensity", "quantification", "mirror")),
    "datxai.phantom.lesion",
)


def choose_cases(bench: Bench) -> list[Trial]:
    """Choose cases of the test set at equal steps from the most normal to the most reduced."""
    cases = sorted(bench.findings.of_set("test"), key=itemgetter("margin"))
    n = min(bench.options.n_cases, len(cases))
    checked = _spread(min(bench.options.n_checks, n), n)
    targets = {"normal": 0, "reduced": 1, "difference": "difference", "decision": "decision"}
    return [
        Trial(
            case["participant_id"],
            targets.get(bench.settings.target, case["predicted"]),
            case["label"],
            case["predicted"],
            checked=number in checked,
        )
        for number, case in enumerate(cases[index] for index in _spread(n, len(cases)))
    ]


def _spread(n: int, total: int) -> list[int]:
    """``n`` indices at equal steps below ``total``: the centres of ``n`` equal intervals."""
    return [int((number + 0.5) * total / n) for number in range(n)]


def try_lesions(bench: Bench) -> list[Trial]:
    """Make missing pairs of healthy and lesioned phantoms, and measure the effect of each lesion on the network."""
    settings, options = bench.settings, bench.options
    if not options.lesions:
        return []
    data = settings.data
    seed, cohort = (data.seed, data.n_subjects) if isinstance(data, Phantom) else (settings.seed, 0)
    heads = draw_healthy(options.n_heads, seed, beyond=cohort)
    tasks = [
        (settings, bench.run.folder, head, lesion, f"{lesion}-{number}")
        for number, head in enumerate(heads, start=1)
        for lesion in options.lesions
    ]
    for _ in parallel(_make_pair, tasks, len(tasks), settings.n_jobs, "lesions made"):
        pass
    tested = bench.findings.of_set("test")
    normal, reduced = (np.median([case["margin"] for case in tested if case["label"] == label]) for label in (0, 1))
    trials = []
    for *_, lesion, name in tasks:
        scans = [load(bench.pair(name, kind)).data for kind in ("healthy", "lesioned")]
        with torch.no_grad():
            logits = bench.explainer.model(torch.from_numpy(np.stack(scans)[:, None]).to(bench.device)).double().cpu()
        healthy, lesioned = (logits[:, 1] - logits[:, 0]).tolist()
        effect = float((lesioned - healthy) / (reduced - normal))
        seen = abs(effect) >= options.min_effect
        trials.append(Trial(name, "difference", None, int(lesioned > 0), lesion, effect, seen))
    return trials


def _make_pair(settings: Config, folder: Path, head: Subject, lesion: str, name: str) -> None:
    """Write the scans of a head with and without a lesion, otherwise identical, and the mask of the lesion."""
    bench = of_this_process(settings, folder)
    camera = set_camera(settings.data.camera) if isinstance(settings.data, Phantom) else {}
    reconstruction = asdict(settings.reconstruction)
    del reconstruction["start_angle_deg"], reconstruction["flip"], reconstruction["centre"]  # for other cameras
    imaging, code = describe_imaging(settings), hash_code(*PAIR_CODE)
    fingerprint = hash_content([lesion, head.seed, camera, imaging, reconstruction, code])
    if Run.made_with(bench.pair(name, "lesioned"), fingerprint):
        return
    pair = simulate_pair(head, lesion, **camera)
    used = pair.camera
    lesioned, healthy = (
        reconstruct(counts, used.angles_deg, used.pixel_mm, used.pixel_mm, **reconstruction)
        for counts in (pair.lesioned, pair.healthy)
    )
    lesioned, measures = bench.imaging.process(lesioned, name)
    healthy = bench.imaging.follow(healthy, measures)
    scaled = healthy.data / np.float32(measures["reference_value"])
    save(healthy.after("scale", scaled, reference_value=measures["reference_value"]), bench.pair(name, "healthy"))
    save(bench.imaging.follow(locate_lesion(head.head, lesion), measures), bench.pair(name, "lesion"))
    record = {"fingerprint": fingerprint, "measures": measures}
    save(lesioned, bench.pair(name, "lesioned"), record)  # last, since its record marks the pair as complete
