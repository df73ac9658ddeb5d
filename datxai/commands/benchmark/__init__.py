"""Benchmark of explanation methods on one trained network: the same cases and measures for all, and known lesions.

`trials` chooses the cases, `bench` holds what trials share, `maps` explains and measures, `page` writes the results.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from datxai.commands.benchmark.bench import FILLS, LESION, Bench, Trial
from datxai.commands.benchmark.maps import explain_and_measure
from datxai.commands.benchmark.page import report
from datxai.commands.benchmark.trials import choose_cases, try_lesions
from datxai.config import DEFAULT, Config, Method
from datxai.errors import InputError
from datxai.explain.controls import CONTROLS
from datxai.metrics import METRICS
from datxai.phantom.lesion import REGIONS
from datxai.progress import parallel
from datxai.run import Run

log = logging.getLogger("datxai")


def run(settings: Config, trained: Run) -> None:
    """Explain test cases and lesioned phantoms of a trained run by every method of ``settings.benchmark``.

    RUN/benchmark then holds the maps (``maps/METHOD/CASE_relevance.nii.gz``, each with a sidecar of its measures), the
    lesions (``pairs``), ``cases.tsv``, ``results.tsv`` (a row per method, case and measure), ``summary.tsv`` (means
    with intervals, and ranks), ``summary.md``, figures and ``report.html``. Results of the same settings are not
    computed again, so that an interrupted benchmark resumes where it stopped.
    """
    settings = _with_explanation(settings, trained)
    check(settings)
    trained.entry("train", "benchmark")
    bench = Bench(settings, trained)
    bench.findings.require_tested("benchmark")
    log.info("benchmark")
    trials = [*choose_cases(bench), *try_lesions(bench)]
    tasks = [(settings, trained.folder, *task) for task in _share_out(bench, trials)]
    sizes = [_count_maps(trial) * len(methods) for *_, trial, methods in tasks]
    for _ in parallel(explain_and_measure, tasks, len(tasks), bench.n_jobs, "maps made and measured", sizes):
        pass
    report(bench, trials)


def _with_explanation(settings: Config, trained: Run) -> Config:
    """The settings, with the run's explanation added to the catalogue of methods if one is named."""
    name, options = settings.explanation, settings.benchmark
    if name == DEFAULT:
        return settings
    trained.entry("explain", "benchmark")
    if name in options.catalogue:
        raise InputError(
            f"explanation={name}: benchmark.catalogue has a method of that name, expected another; explain under "
            f"another name."
        )
    composite = settings.composite if settings.attribution.method == "lrp" else None
    catalogue = {**options.catalogue, name: Method(settings.attribution, composite)}
    return replace(settings, benchmark=replace(options, catalogue=catalogue, methods=[*options.methods, name]))


def _share_out(bench: Bench, trials: Sequence[Trial]) -> list[tuple[Trial, list[str]]]:
    """Divide the missing work into tasks, one per trial, since maps of a trial share the scores of flipped inputs.

    Trials with the costly metrics (`REPEATED`) are divided further, one task per method. They come first, so that the
    last task of a benchmark is a short one.
    """
    tasks = []
    for trial in sorted(trials, key=lambda trial: not trial.checked):
        missing = [method for method in bench.options.methods if bench.find_missing(trial, method)]
        tasks += [(trial, [method]) for method in missing] if trial.checked else [(trial, missing)] * bool(missing)
    return tasks


def _count_maps(trial: Trial) -> int:
    """Approximate number of maps needed to measure one: itself, that of the healthy scan, those of `REPEATED`."""
    return 1 + bool(trial.lesion) + 12 * trial.checked


def check(settings: Config) -> None:
    """Refuse unknown names before anything is computed."""
    options = settings.benchmark
    for field, allowed in (
        ("methods", list(options.catalogue)),
        ("metrics", [*METRICS, LESION]),
        ("lesions", list(REGIONS)),
    ):
        names = getattr(options, field)
        for name in names:
            if name not in allowed:
                raise InputError(f"benchmark.{field}: there is no {name}, expected some of {', '.join(allowed)}.")
        if len({*names}) < len(names):
            raise InputError(f"benchmark.{field}={names}: a name comes twice, expected every name once.")
    if not (options.methods and options.metrics):
        raise InputError("benchmark: expected at least one method and one metric.")
    if options.fill not in FILLS:
        raise InputError(f"benchmark.fill={options.fill}: expected one of {', '.join(FILLS)}.")
    if options.n_cases < 0 or options.n_heads < 0 or not options.n_cases + options.n_heads * len(options.lesions):
        raise InputError(
            f"benchmark: n_cases={options.n_cases} and n_heads={options.n_heads} leave nothing to explain, expected "
            f"more."
        )
    if settings.target == "label":
        raise InputError(
            "target=label: the benchmark explains decision, difference, predicted, normal or reduced; choose one."
        )
    for name in options.methods:
        _check_method(name, options.catalogue[name])


def _check_method(name: str, method: Method) -> None:
    """Refuse a method of the catalogue that is neither an attribution nor a control, or both."""
    if (method.attribution is None) == (method.control is None):
        raise InputError(f"benchmark.catalogue.{name}: expected either an attribution or a control.")
    if method.control not in (None, *CONTROLS):
        raise InputError(f"benchmark.catalogue.{name}.control={method.control}: expected {' or '.join(CONTROLS)}.")
    if method.attribution and method.attribution.method == "lrp" and method.composite is None:
        raise InputError(f"benchmark.catalogue.{name}: lrp needs a composite.")
