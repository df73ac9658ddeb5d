"""Tables, figures and page of a benchmark's results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import yaml

from datxai.commands.benchmark.bench import LESION, Bench, Trial, of_this_process
from datxai.config import Config
from datxai.files import write_table, write_text
from datxai.metrics import METRICS
from datxai.metrics.lesion import measure_change
from datxai.pages import benchmark as analysis
from datxai.pages.benchmark import Measure
from datxai.pages.content import MethodsPage
from datxai.pages.report import write_benchmark_report
from datxai.pages.style import save_figure
from datxai.progress import parallel
from datxai.volume import load

log = logging.getLogger("datxai")

RESULTS = ("method", "case", "metric", "value", "seconds", "peak_mib")
SUMMARY = ("method", "metric", "n", "mean", "low", "high", "rank")
LESION_MEASURES = {
    "seen_share": Measure(
        "Seen lesion, share", True, "of a lesion that the network sees, the share of the map's change that lies in it"
    ),
    "seen_rank": Measure(
        "Seen lesion, rank", True, "of such a lesion, the share within it of the voxels that change most"
    ),
    "seen_point": Measure(
        "Seen lesion, pointing", True, "whether the voxel that changes most lies within such a lesion"
    ),
    "unseen_density": Measure(
        "Unseen lesion, density", False, "how much the map changes within a lesion that the network does not see"
    ),
}


def report(bench: Bench, trials: Sequence[Trial]) -> None:
    """Write tables, figures and page."""
    folder, methods = bench.folder, bench.options.methods
    results = [row for trial in trials for method in methods for row in _read_results(bench, trial, method)]
    measures = _name_measures(bench)
    costs = [
        {**row, "metric": name, "value": row[name]}
        for row in {(row["method"], row["case"]): row for row in results}.values()
        for name in ("seconds", "peak_mib")
    ]
    summary = analysis.summarise([*results, *costs], measures, bench.settings.seed)
    cases = [_describe_trial(bench, trial) for trial in trials]
    write_table(folder / "results.tsv", results, RESULTS)
    write_table(folder / "summary.tsv", summary, SUMMARY)
    write_table(folder / "cases.tsv", cases, list(cases[0]))

    controls = {name for name in methods if bench.options.catalogue[name].control}
    save_figure(analysis.plot_ranks(summary, measures, controls), folder / "figures" / "ranks")
    tasks = [(bench.settings, bench.run.folder, trial) for trial in trials]
    for _ in parallel(_draw_maps, tasks, len(tasks), bench.settings.n_jobs, "figures drawn"):
        pass
    lines = analysis.tabulate(summary, measures, controls)
    methods_settings = {name: asdict(bench.options.catalogue[name]) for name in methods}
    write_text(folder / "summary.md", analysis.write_markdown(lines, cases, bench.run.folder.name))
    write_benchmark_report(
        folder / "report.html",
        MethodsPage(
            created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            lines=lines,
            cases=[{**row, "figure": folder / "figures" / f"maps_{row['case']}.png"} for row in cases],
            ranks=folder / "figures" / "ranks.png",
            methods=yaml.safe_dump(methods_settings, sort_keys=False),
            meanings={measure.title: measure.meaning for measure in measures.values() if measure.meaning},
        ),
    )
    ranks = analysis.average_ranks(summary)
    log.info("\nMean rank over the measures, %d cases", len(trials))
    for name, rank in ranks.items():
        log.info("  %-24s %5.1f", name, rank)
    log.info("\nReport: %s", folder / "report.html")


def _draw_maps(settings: Config, folder: Path, trial: Trial) -> None:
    """Draw the figure of a trial's maps."""
    bench = of_this_process(settings, folder)
    maps = {name: load(bench.map_of(trial, name), blank=True).data for name in bench.options.methods}
    figure = analysis.plot_maps(bench.anatomy.frame, bench.scan(trial), maps, bench.lesion(trial))
    save_figure(figure, bench.folder / "figures" / f"maps_{trial.name}")


def _read_results(bench: Bench, trial: Trial, method: str) -> list[dict]:
    """Rows of results.tsv."""
    record = bench.read(trial, method)
    assert record is not None, "a map is missing"
    peak = record["peak_bytes"]
    row = {"method": method, "case": trial.name, "seconds": record["seconds"], "peak_mib": peak and peak / 2**20}
    return [
        {**row, "metric": f"{metric}.{name}", "value": value}
        for metric in bench.options.metrics
        if metric not in trial.metrics_left_out
        for name, value in record["measures"][metric].items()
    ]


def _name_measures(bench: Bench) -> dict:
    """The measures that rank methods: the headline of each metric and the changes due to lesions; and the cost."""
    measures = {}
    for name in bench.options.metrics:
        if name == LESION:
            measures |= {f"lesion.{key}": measure for key, measure in LESION_MEASURES.items()}
        else:
            metric = METRICS[name]
            measures[f"{name}.{metric.headline}"] = Measure(metric.title, metric.higher_is_better, metric.meaning)
    return measures | {"seconds": Measure("Seconds per map", None, "computing time of a map")}


def _describe_trial(bench: Bench, trial: Trial) -> dict:
    """A row of cases.tsv; ``input_share`` is the share of the scan's own change within the lesion, for comparison."""
    input_share = None
    lesion = bench.lesion(trial)
    if lesion is not None:
        healthy = load(bench.pair(trial.name, "healthy")).data
        input_share = measure_change(bench.scan(trial), healthy, lesion, bench.regions["brain"])["share"]
    row = {"case": trial.name, "label": trial.label, "predicted": trial.predicted, "target": trial.target}
    row |= {"lesion": trial.lesion, "effect": trial.effect, "seen": trial.seen, "input_share": input_share}
    return row | {"checked": trial.checked}
