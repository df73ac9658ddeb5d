"""Ways to explain one trained network side by side: the same cases, the same measures, and lesions that are known."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from datxai.case import Explainer, Imaging, choose_device, grid_of, outline_of
from datxai.config import Config, Method
from datxai.errors import InputError
from datxai.files import hash_content, read_json, write_json, write_table, write_text
from datxai.memory import measure_peak
from datxai.progress import parallel
from datxai.results import read_predictions
from datxai.run import Run
from datxai.volume import Volume, load, save, sidecar_path

log = logging.getLogger("datxai")

FILLS = ("mean", "blur", "brain_mean")
LESION = "lesion"  # the one metric that takes a pair
REPEATED = ("parameter_randomisation", "random_logit", "max_sensitivity")  # metrics that take many more maps
WARM_S = 1.0  # a process's first map by a method is made again if it took no longer, so that imports do not count
RESULTS = ("method", "case", "metric", "value", "seconds", "peak_mib")
SUMMARY = ("method", "metric", "n", "mean", "low", "high", "rank")


@dataclass(frozen=True)
class Trial:
    """What every method has to explain: a case of the test set, or the lesioned scan of a pair.

    ``target`` is the output explained. Of a pair, ``effect`` is how far the lesion moves the network towards reduced,
    in units of the way from a typical normal to a typical reduced test case; a map has to show the lesion only if the
    network has ``seen`` it.
    """

    name: str
    target: int | str
    label: int | None = None
    predicted: int | None = None
    lesion: str | None = None
    effect: float | None = None
    seen: bool | None = None
    checked: bool = False  # by the metrics that take many more maps

    @property
    def metrics_left_out(self) -> set[str]:
        return {*(() if self.lesion else (LESION,)), *(() if self.checked else REPEATED)}


def run(settings: Config, trained: Run) -> None:
    """Explain test cases and lesioned phantoms of a trained run by every method of ``settings.benchmark``.

    RUN/benchmark then holds the maps (``maps/METHOD/CASE_relevance.nii.gz``, with what was measured of each beside
    it), the lesions (``pairs``), ``cases.tsv``, ``results.tsv`` (a row per method, case and number), ``summary.tsv``
    (means with intervals, and ranks), ``summary.md``, figures and ``report.html``. What is there from the same settings
    is not made again, so that a benchmark that was interrupted goes on where it was.
    """
    chosen = settings.benchmark
    check(settings)
    trained.entry("evaluate", "benchmark")
    bench = Bench(settings, trained)
    log.info("benchmark")
    trials = [*_choose_cases(bench), *_try_lesions(bench)]
    tasks = [(settings, trained.folder, trial, method) for trial in trials for method in chosen.methods]
    missing = [task for task in tasks if bench.find_missing(*task[2:])]
    for _ in parallel(_explain_and_measure, missing, len(missing), bench.n_jobs, "maps explained and measured"):
        pass
    _report(bench, trials)


def check(settings: Config) -> None:
    """Refuse names that nothing stands behind, before anything is computed."""
    from datxai.metrics import METRICS
    from datxai.phantom.lesion import REGIONS

    chosen = settings.benchmark
    for field, known in (
        ("methods", list(chosen.catalogue)),
        ("metrics", [*METRICS, LESION]),
        ("lesions", list(REGIONS)),
    ):
        given = getattr(chosen, field)
        for name in given:
            if name not in known:
                raise InputError(f"benchmark.{field}: there is no {name}, expected some of {', '.join(known)}.")
        if len({*given}) < len(given):
            raise InputError(f"benchmark.{field}={given}: a name comes twice, expected every name once.")
    if not (chosen.methods and chosen.metrics):
        raise InputError("benchmark: expected at least one method and one metric.")
    if chosen.fill not in FILLS:
        raise InputError(f"benchmark.fill={chosen.fill}: expected one of {', '.join(FILLS)}.")
    if chosen.n_cases < 0 or chosen.n_heads < 0 or not chosen.n_cases + chosen.n_heads * len(chosen.lesions):
        raise InputError(
            f"benchmark: n_cases={chosen.n_cases} and n_heads={chosen.n_heads} leave nothing to explain, expected more."
        )
    if settings.target in ("label", "decision"):
        raise InputError(
            f"target={settings.target}: the benchmark explains predicted, normal, reduced or difference; choose one."
        )
    for name in chosen.methods:
        method = chosen.catalogue[name]
        if (method.attribution is None) == (method.control is None):
            raise InputError(f"benchmark.catalogue.{name}: expected either an attribution or a control.")
        if method.control not in (None, "uptake", "noise"):
            raise InputError(f"benchmark.catalogue.{name}.control={method.control}: expected uptake or noise.")
        if method.attribution and method.attribution.method == "lrp" and method.composite is None:
            raise InputError(f"benchmark.catalogue.{name}: lrp needs a composite.")


class Bench:
    """What the trials of a benchmark share."""

    def __init__(self, settings: Config, trained: Run):
        from datxai.cohort.dataset import open_store

        self.settings, self.chosen, self.run = settings, settings.benchmark, trained
        self.folder = trained.folder / "benchmark"
        self.device = choose_device(settings)
        self.store, self.grid = open_store(trained.store), grid_of(settings)
        if not (self.grid.shape == self.store.shape and np.allclose(self.grid.affine, self.store.affine)):
            raise InputError(f"grid={self.grid.name}: the network of {trained.folder} was trained on another grid.")
        self._memo: tuple[str, dict] = ("", {})

    @property
    def n_jobs(self) -> int:
        return self.settings.n_jobs if self.device == "cpu" else 1

    @cached_property
    def explainer(self) -> Explainer:
        return Explainer.of(self.settings, self.run)

    @cached_property
    def explain(self) -> dict[str, Callable]:
        """By the name of a method: a function of model, inputs [n, 1, X, Y, Z] and target, to maps [n, X, Y, Z]."""
        return {name: self._prepare(self.chosen.catalogue[name]) for name in self.chosen.methods}

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """The regions of metrics, both sides together, and those of figures."""
        from datxai.imaging.atlas import load_atlas, make_regions

        regions = make_regions(self.grid, load_atlas(self.settings.atlas.labels, self.settings.atlas.names))
        both = {name: regions[f"{name}_left"] | regions[f"{name}_right"] for name in ("caudate", "putamen", "striatum")}
        return {"brain": regions["brain"], **both, "outline": outline_of(regions)}

    @cached_property
    def parcels(self) -> np.ndarray:
        from datxai.imaging.atlas import load_atlas, make_parcellation

        return make_parcellation(self.grid, load_atlas(self.settings.atlas.labels, self.settings.atlas.names))[0]

    @cached_property
    def mean_scan(self) -> np.ndarray:
        """Half way between the mean normal and the mean reduced training case, (X, Y, Z)."""
        cases = [case for case in read_predictions(self.run) if case["set"] == "train"]
        groups = [[case["participant_id"] for case in cases if case["label"] == label] for label in (0, 1)]
        means = [sum(self.store.volume(name).astype(float) for name in group) / len(group) for group in groups if group]
        return np.mean(means, axis=0)

    def pair(self, trial_name: str, kind: str) -> Path:
        """A volume of a pair: the ``lesioned`` scan, the ``healthy`` one, or where the ``lesion`` is."""
        return self.folder / "pairs" / f"{trial_name}_{kind}.nii.gz"

    def scan(self, trial: Trial) -> np.ndarray:
        return load(self.pair(trial.name, "lesioned")).data if trial.lesion else self.store.volume(trial.name)

    def lesion(self, trial: Trial) -> np.ndarray | None:
        """Where the lesion is, (X, Y, Z), bool: the voxels that it fills at least by half."""
        return load(self.pair(trial.name, "lesion")).data >= 0.5 if trial.lesion else None

    def map_of(self, trial: Trial, method: str) -> Path:
        return self.folder / "maps" / method / f"{trial.name}_relevance.nii.gz"

    def mark(self, trial: Trial, method: str) -> str:
        """What a map follows from."""
        pair = self.pair(trial.name, "lesioned")
        made = read_json(sidecar_path(pair))["fingerprint"] if trial.lesion else None
        how = [asdict(self.chosen.catalogue[method]), asdict(self.settings.atlas), self.settings.seed]
        return hash_content([self.run.entries()["train"]["fingerprint"], made, trial.name, trial.target, how])

    def mark_measure(self, trial: Trial) -> str:
        """What the measures of a map follow from, apart from the map."""
        return hash_content([self.chosen.fill, trial.seen, trial.effect is not None and trial.effect > 0])

    def read(self, trial: Trial, method: str) -> dict | None:
        """What is known of a map that is up to date: its cost, and ``measures`` by metric; None without such a map."""
        path = self.map_of(trial, method)
        if not Run.made_with(path, self.mark(trial, method)):
            return None
        record = read_json(sidecar_path(path))
        if record["measured_with"] != self.mark_measure(trial):
            record |= {"measured_with": self.mark_measure(trial), "measures": {}}
        return record

    def find_missing(self, trial: Trial, method: str) -> list[str]:
        """The metrics of a map that are not known yet; all of them, where there is no map."""
        known = (self.read(trial, method) or {"measures": {}})["measures"]
        return [name for name in self.chosen.metrics if name not in {*known, *trial.metrics_left_out}]

    def memo(self, trial: Trial) -> dict:
        """What metrics keep for other maps of the same input."""
        if self._memo[0] != trial.name:
            self._memo = (trial.name, {})
        return self._memo[1]

    def _prepare(self, method: Method) -> Callable:
        import torch

        if method.control == "uptake":
            return lambda model, x, target: x[:, 0]
        if method.control == "noise":
            return lambda model, x, target: torch.stack([_draw_noise(part, self.settings.seed) for part in x[:, 0]])
        settings = replace(self.settings, attribution=method.attribution, composite=method.composite)
        explainer = replace(self.explainer, settings=settings)
        at_once = explainer.batch_size(self.grid.shape)
        _ = explainer.parcels  # made now, so that it does not count as time of a map

        def explain(model, x, target):
            parts = (explainer.attribute(part, target, model=model, ledger=False) for part in x.split(at_once))
            return torch.cat([part.relevance[:, 0] for part in parts])

        return explain


def _draw_noise(x, seed: int):
    """Random numbers of the shape of an input, others for every input."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(x.cpu().contiguous().numpy().tobytes(), seed))
    return torch.randn(x.shape, generator=generator).to(x)


def _choose_cases(bench: Bench) -> list[Trial]:
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


def _try_lesions(bench: Bench) -> list[Trial]:
    """The pairs of healthy and lesioned phantoms, made where they are missing, and what each lesion does."""
    import torch

    from datxai.phantom.lesion import draw_healthy

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
    from datxai.imaging.reconstruction import reconstruct
    from datxai.phantom.lesion import locate_lesion, simulate_pair
    from datxai.stages.simulate import set_camera

    bench = _of_this_process(settings, folder)
    camera = set_camera(settings.data.camera) if settings.data.kind == "phantom" else {}
    parts = ("grid", "reconstruction", "registration", "atlas", "preprocessing")
    mark = hash_content([lesion, head.seed, camera, *(asdict(getattr(settings, part)) for part in parts)])
    if Run.made_with(bench.pair(name, "lesioned"), mark):
        return
    pair = simulate_pair(head, lesion, **camera)
    used, how = pair.camera, asdict(settings.reconstruction)
    del how["start_angle_deg"], how["flip"]  # of other cameras
    lesioned, healthy = (
        reconstruct(counts, used.angles_deg, used.pixel_mm, used.pixel_mm, **how)
        for counts in (pair.lesioned, pair.healthy)
    )
    imaging = Imaging.of(settings)
    lesioned, measures = imaging.process(lesioned, name)
    healthy = imaging.follow(healthy, measures)
    scaled = healthy.data / np.float32(measures["reference_value"])
    save(healthy.after("scale", scaled, reference_value=measures["reference_value"]), bench.pair(name, "healthy"))
    save(imaging.follow(locate_lesion(head.head, lesion), measures), bench.pair(name, "lesion"))
    save(lesioned, bench.pair(name, "lesioned"), {"fingerprint": mark, "measures": measures})  # last: now all are there


def _explain_and_measure(settings: Config, folder: Path, trial: Trial, method: str) -> None:
    """A trial's map by a method, where it is missing, and its measures, each kept as soon as it is known."""
    import torch

    bench = _of_this_process(settings, folder)
    explain, model, path = bench.explain[method], bench.explainer.model, bench.map_of(trial, method)
    scan = bench.scan(trial)
    x = torch.from_numpy(np.ascontiguousarray(scan))[None, None].to(bench.device)
    record = bench.read(trial, method)
    if record is None:
        record = _explain(bench, explain, x, trial, method, path)
    relevance = torch.from_numpy(load(path, blank=True).data).to(bench.device)
    case = _make_case(bench, explain, model, x, relevance, trial)
    for name in bench.find_missing(trial, method):
        begin = time.perf_counter()
        measure = _measure_lesion if name == LESION else _measure
        record["measures"][name] = measure(bench, case, trial, name)
        record["seconds_of_measures"][name] = round(time.perf_counter() - begin, 3)
        write_json(sidecar_path(path), record)


def _explain(bench: Bench, explain: Callable, x, trial: Trial, method: str, path: Path) -> dict:
    model = bench.explainer.model

    def work():
        begin = time.perf_counter()
        return explain(model, x, trial.target)[0].cpu().numpy(), time.perf_counter() - begin

    (relevance, seconds), peak = measure_peak(work, bench.device)
    if method not in _warm and seconds < WARM_S:
        (relevance, seconds), peak = measure_peak(work, bench.device)
    _warm.add(method)
    record = {
        "fingerprint": bench.mark(trial, method), "measured_with": bench.mark_measure(trial),
        "method": asdict(bench.chosen.catalogue[method]), "target": trial.target,
        "seconds": seconds, "peak_bytes": peak, "measures": {}, "seconds_of_measures": {},
    }  # fmt: skip
    history = {"step": "explain", "method": method, "target": trial.target}
    save(Volume(np.ascontiguousarray(relevance, np.float32), bench.grid.affine, (history,)), path, record)
    return read_json(sidecar_path(path))


def _make_case(bench: Bench, explain: Callable, model, x, relevance, trial: Trial):
    import torch

    from datxai.metrics import Case
    from datxai.metrics.flipping import blur, brain_mean

    def score(inputs):
        logits = model(inputs)
        return logits[:, 1] - logits[:, 0] if trial.target == "difference" else logits[:, trial.target]

    other = 0 if trial.target == "difference" else 1 - trial.target
    fill = {
        "mean": lambda: torch.from_numpy(bench.mean_scan).to(x),
        "blur": lambda: blur(x, bench.grid.spacing),
        "brain_mean": lambda: brain_mean(x, bench.regions["brain"]),
    }[bench.chosen.fill]()
    return Case(
        model=model,
        x=x,
        relevance=relevance,
        score=score,
        explain=lambda model, x: explain(model, x, trial.target),
        explain_other=lambda model, x: explain(model, x, other),
        fill=fill,
        parcels=bench.parcels,
        regions={name: mask for name, mask in bench.regions.items() if name != "outline"},
        spacing=bench.grid.spacing,
        truth=bench.lesion(trial) if trial.seen and trial.effect > 0 else None,
        seed=bench.settings.seed,
        memo=bench.memo(trial),
    )


def _measure(bench: Bench, case, trial: Trial, name: str) -> dict[str, float]:
    from datxai.metrics import METRICS

    return METRICS[name](case)


def _measure_lesion(bench: Bench, case, trial: Trial, name: str) -> dict[str, float | None]:
    """How the map answers to the lesion: where it changes, if the network has seen the lesion, or how much, if not.

    The change counts towards the output that the lesion raises, so that it has to be positive where the lesion is.
    """
    import torch

    from datxai.analysis.benchmark import measure_change
    from datxai.metrics.localisation import point, rank

    healthy = torch.from_numpy(load(bench.pair(trial.name, "healthy")).data)[None, None].to(case.x)
    before, lesion = case.explain(case.model, healthy)[0].cpu().numpy().astype(float), bench.lesion(trial)
    found = measure_change(case.map, before, lesion, bench.regions["brain"])
    if not trial.seen:
        return {"unseen_density": found["density"]}
    change = np.sign(trial.effect) * (case.map - before)
    return {
        "seen_share": found["share"],
        "seen_rank": rank(change, lesion),
        "seen_point": point(change, lesion, bench.grid.spacing),
    }


_warm: set[str] = set()  # methods that this process has used
_benches: dict[str, Bench] = {}


def _of_this_process(settings: Config, folder: Path) -> Bench:
    """The bench of these settings, made once in each process."""
    key = hash_content([str(folder), asdict(settings)])
    if key not in _benches:
        _benches.clear()
        _benches[key] = Bench(settings, Run(folder))
    return _benches[key]


def _report(bench: Bench, trials: Sequence[Trial]) -> None:
    """Tables, figures and page of what has been measured."""
    from datxai.analysis import benchmark as analysis
    from datxai.analysis.report import write_benchmark_report
    from datxai.analysis.slices import Frame
    from datxai.analysis.style import save_figure

    place, methods = bench.folder, bench.chosen.methods
    results = [row for trial in trials for method in methods for row in _read_results(bench, trial, method)]
    measures = _name_measures(bench)
    costs = [
        {**row, "metric": name, "value": row[name]}
        for row in {(row["method"], row["case"]): row for row in results}.values()
        for name in ("seconds", "peak_mib")
    ]
    summary = analysis.summarise([*results, *costs], measures, bench.settings.seed)
    cases = [_describe_trial(bench, trial) for trial in trials]
    write_table(place / "results.tsv", results, RESULTS)
    write_table(place / "summary.tsv", summary, SUMMARY)
    write_table(place / "cases.tsv", cases, list(cases[0]))

    frame = Frame(bench.grid, bench.regions["outline"], bench.regions["brain"])
    save_figure(analysis.plot_ranks(summary, measures), place / "figures" / "ranks")
    for trial in trials:
        maps = {name: load(bench.map_of(trial, name), blank=True).data for name in methods}
        figure = analysis.plot_maps(frame, bench.scan(trial), maps, bench.lesion(trial))
        save_figure(figure, place / "figures" / f"maps_{trial.name}")
    lines = analysis.tabulate(summary, measures)
    ways = {name: asdict(bench.chosen.catalogue[name]) for name in methods}
    write_text(place / "summary.md", analysis.write_markdown(lines, cases, bench.run.folder.name))
    write_benchmark_report(
        place / "report.html",
        {
            "created": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
            "lines": lines,
            "cases": [{**row, "figure": place / "figures" / f"maps_{row['case']}.png"} for row in cases],
            "figures": {"ranks": place / "figures" / "ranks.png"},
            "methods": yaml.safe_dump(ways, sort_keys=False),
        },
    )
    ranks = analysis.average_ranks(summary)
    log.info("\nMean rank over the measures, %d cases", len(trials))
    for name, rank in ranks.items():
        log.info("  %-24s %5.1f", name, rank)
    log.info("\nReport: %s", place / "report.html")


def _read_results(bench: Bench, trial: Trial, method: str) -> list[dict]:
    """Rows of results.tsv."""
    record = bench.read(trial, method)
    peak = record["peak_bytes"]
    row = {"method": method, "case": trial.name, "seconds": record["seconds"], "peak_mib": peak and peak / 2**20}
    return [
        {**row, "metric": f"{metric}.{name}", "value": value}
        for metric in bench.chosen.metrics
        if metric not in trial.metrics_left_out
        for name, value in record["measures"][metric].items()
    ]


def _name_measures(bench: Bench) -> dict:
    """What methods are ranked by: the headline of each metric, and how maps change with a lesion; what a map costs."""
    from datxai.analysis.benchmark import Measure
    from datxai.metrics import METRICS

    named = {}
    for name in bench.chosen.metrics:
        if name == LESION:
            named["lesion.seen_share"] = Measure("Seen lesion, share", True)
            named["lesion.seen_rank"] = Measure("Seen lesion, rank", True)
            named["lesion.seen_point"] = Measure("Seen lesion, pointing", True)
            named["lesion.unseen_density"] = Measure("Unseen lesion, density", False)
        else:
            metric = METRICS[name]
            named[f"{name}.{metric.headline}"] = Measure(metric.title, metric.higher_is_better)
    return named | {"seconds": Measure("Seconds per map", None)}


def _describe_trial(bench: Bench, trial: Trial) -> dict:
    """A row of cases.tsv; ``input_share``, a yardstick: the share of the scan's own change that lies in the lesion."""
    from datxai.analysis.benchmark import measure_change

    share = None
    if trial.lesion:
        healthy = load(bench.pair(trial.name, "healthy")).data
        share = measure_change(bench.scan(trial), healthy, bench.lesion(trial), bench.regions["brain"])["share"]
    row = {"case": trial.name, "label": trial.label, "predicted": trial.predicted, "target": trial.target}
    row |= {"lesion": trial.lesion, "effect": trial.effect, "seen": trial.seen, "input_share": share}
    return row | {"checked": trial.checked}
