"""Which start of the explanation gives relevance that changes sign between the classes, as in the paper?

    datxai train -m base=RUN_DIR run=DIR training.seed=1,2,3,4
    python examples/sign_of_relevance.py RUN_DIR DIR/*/ [--out DIR]

LRP is linear in its seed. So two maps of a case, one per output and each started with one, give the maps of every
start below; they are kept in DIR/sign, and a second call, or one with more runs, reuses them. Runs only need
the stage `train`; composite and ROI are those of RUN_DIR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from nazari2021 import CNN, INCONSISTENT_FN, ROI_RELEVANCE, main
from scipy import ndimage

from datxai.analysis.classification import measure_auc, wilson_interval
from datxai.analysis.relevance import MeanMap, check_consistency
from datxai.files import read_json, replacing, write_json, write_table
from datxai.findings import GROUPS
from datxai.imaging.quantification import average_hottest
from datxai.pages.charts import plot_putamen_by_start
from datxai.pages.style import save_figure
from datxai.pages.tables import format_percent
from datxai.progress import Bar

NOTE = """LRP starts with a choice of output (that of the predicted class, of one class, or the difference of both,
the log-odds) and of its size (the logit's value or one). The table shows means and ranges over networks that differ in
their initial weights. Putamen: the hottest voxels in the ipsilateral ROI. Sign: reduced if positive; an accuracy far
below 50 % means that the reversed sign classifies."""
# Weights of the maps of both outputs (normal, reduced), each started with one, from logits (n, 2)
STARTS = {
    "predicted, logit": lambda logit: logit * _predicted(logit),
    "predicted, one": lambda logit: _predicted(logit),
    "normal, logit": lambda logit: logit * [1, 0],
    "normal, one": lambda logit: np.ones_like(logit) * [1, 0],
    "reduced, logit": lambda logit: logit * [0, 1],
    "reduced, one": lambda logit: np.ones_like(logit) * [0, 1],
    "reduced − normal, logit": lambda logit: logit * [-1, 1],
    "reduced − normal, one": lambda logit: np.ones_like(logit) * [-1, 1],
    "log-odds, one": lambda logit: logit * [-1, 1] / (logit @ [[-1], [1]]),
    "predicted − other, logit": lambda logit: logit * (2 * _predicted(logit) - 1),
}
# Minus the mean over validation cases: of the starting logit, or of the whole map
LOGIT_CENTRED, MAP_CENTRED = "reduced, logit − mean logit", "reduced − normal, logit; map − mean map"
SHOWN = (
    "predicted, logit", "reduced, logit", "reduced, one", "reduced − normal, logit", "predicted − other, logit",
    MAP_CENTRED,
)  # fmt: skip


NEAR_MM = 4.0


def _predicted(logits: np.ndarray) -> np.ndarray:
    return np.eye(2)[logits.argmax(axis=1)]


class Start(NamedTuple):
    """A line of the table: means over the networks."""

    start: str
    correlation: str
    positive_tn: str
    positive_tp: str
    accuracy: str
    auc: str
    inconsistent_fn: str
    near: str
    HEAD = (
        "start", "correlation of the TN and TP mean maps (range)", "TN with positive putamen",
        "TP with positive putamen", "accuracy of the sign (range)", "AUC (range)", "FN with inconsistent map",
        f"most relevant voxel within {NEAR_MM:.0f} mm of the striatum",
    )  # fmt: skip


PAPER = Start(
    "the paper", "about −1", "few", "most", format_percent(ROI_RELEVANCE["accuracy"]), "n/a",
    f"{INCONSISTENT_FN} of {CNN['fn']}", "all, or very close",
)  # fmt: skip


@dataclass(frozen=True)
class Maps:
    """The maps of a network's cases for one start, within the brain, from the two stored maps of each case."""

    weights: np.ndarray
    kept: np.ndarray
    offset: np.ndarray | float = 0.0

    def __getitem__(self, number: int) -> np.ndarray:
        return np.tensordot(self.weights[number], self.kept[number], 1) - self.offset

    @classmethod
    def of(cls, start: str, logits: np.ndarray, kept: np.ndarray, reference: np.ndarray) -> Maps:
        if start == LOGIT_CENTRED:
            return cls((logits - logits[reference].mean(axis=0)) * [0, 1], kept)
        if start == MAP_CENTRED:
            maps, mean = cls(STARTS["reduced − normal, logit"](logits), kept), MeanMap()
            for number in reference:
                mean.add(maps[number])
            return replace(maps, offset=mean.mean)
        return cls(STARTS[start](logits), kept)


def make(runs, out):
    base = runs[0]
    anatomy = base.anatomy
    roi = anatomy.regions["putamen_roi_left"][anatomy.brain]
    distance = ndimage.distance_transform_edt(~anatomy.striatum, anatomy.grid.spacing)[anatomy.brain]
    ml = base.run.entry("evaluate", "sign_of_relevance")["config"]["preprocessing"]["putamen_ml"]
    rows, groups, values = [], [], {name: [] for name in (*STARTS, LOGIT_CENTRED, MAP_CENTRED)}
    for number, run in enumerate(runs, start=1):
        cases, kept, logits = explain(run, base, out / "sign")
        test, reference = (
            np.array([place for place, case in enumerate(cases) if case["set"] == name])
            for name in ("test", "validation")
        )
        groups.append([cases[place]["group"] for place in test])
        for name in values:
            maps = Maps.of(name, logits, kept, reference)
            putamen = [average_hottest(maps[place], roi, ml, anatomy.grid.voxel_ml) for place in test]
            values[name].append(putamen)
            measured = measure([cases[place] for place in test], [(maps, place) for place in test], putamen)
            peaks = [distance[np.abs(maps[place]).argmax()] for place in test]
            measured["near"] = float(np.mean(np.array(peaks) <= NEAR_MM))
            rows.append({"initialisation": number, "run": run.run.folder.name, "start": name, **measured})
    save_figure(plot_putamen_by_start({name: values[name] for name in SHOWN}, groups), out / "sign_of_relevance")
    write_table(out / "sign_of_relevance.tsv", rows, list(rows[0]))
    return [PAPER, *(summarise(name, [row for row in rows if row["start"] == name]) for name in values)]


def is_made(run, base, out) -> bool:
    """Whether the maps of a run exist."""
    record = _place(run.run, base, out / "sign")[0].with_suffix(".json")
    return record.is_file() and read_json(record)["made_from"] == _place(run.run, base, out / "sign")[1]


def _place(run, base, folder):
    """Location of the maps of a run, and their inputs."""
    chosen = base.run.entry("explain", "sign_of_relevance")["config"]["composite"]
    made_from = [run.entry("train", "sign_of_relevance")["fingerprint"], chosen]
    return folder / f"{made_from[0][:16]}.npy", made_from


def explain(run, base, folder) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """Test and validation cases of a run, maps (n, 2, voxels of the brain) of both outputs started with one, logits."""
    import torch

    from datxai.explain import attribute
    from datxai.model import checkpoint

    cases = [case for case in run.predictions if case["set"] != "train"]
    path, made_from = _place(run.run, base, folder)
    record, chosen = path.with_suffix(".json"), made_from[1]
    if not record.is_file() or read_json(record)["made_from"] != made_from:
        model, _ = checkpoint.load(run.run.model, "cpu")
        brain = base.anatomy.brain
        maps, logits = np.empty((len(cases), 2, brain.sum()), np.float32), np.empty((len(cases), 2))
        with Bar(len(cases), f"cases of {run.run.folder.name} explained") as bar:
            for number, case in enumerate(cases):
                x = torch.from_numpy(base.store.volume(case["participant_id"]))[None, None]
                explained = attribute(
                    model, x.expand(2, *x.shape[1:]), "lrp", chosen["layers"], chosen["canonizers"], "label", [0, 1],
                    start="one", ledger=False,
                )  # fmt: skip
                maps[number], logits[number] = explained.relevance[:, 0].numpy()[:, brain], explained.logits[0].numpy()
                bar.update()
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, maps)
        write_json(record, {"made_from": made_from, "logits": logits.tolist()})
    return cases, np.load(path, mmap_mode="r"), np.array(read_json(record)["logits"])


def measure(cases, places, putamen) -> dict:
    """Table values for a network and a start, from the maps at ``places`` and the relevance in the putamen."""
    averages = {group: MeanMap() for group in ("TN", "TP")}
    for case, (maps, place) in zip(cases, places):
        if case["group"] in averages:
            averages[case["group"]].add(maps[place])
    consistent = []
    for case, (maps, place) in zip(cases, places):
        data = maps[place]
        others = [mean.without(data) if case["group"] == group else mean.mean for group, mean in averages.items()]
        known = all(mean is not None for mean in others)
        consistent.append(check_consistency(data, case["predicted"], *others)["consistent"] if known else None)
    means = [average.mean for average in averages.values()]
    groups, labels = np.array([case["group"] for case in cases]), np.array([case["label"] for case in cases])
    positive = np.array(putamen) > 0
    right = int((positive == labels).sum())
    low, high = wilson_interval(right, len(cases))
    shares = {
        f"positive_{group}": float(positive[groups == group].mean()) if (groups == group).any() else None
        for group in GROUPS
    }
    defined = all(mean is not None and mean.any() for mean in means)  # both outputs can have the same map
    return {
        "correlation": float(np.corrcoef(*means)[0, 1]) if defined else None,
        **shares,
        "accuracy": right / len(cases),
        "accuracy_low": low,
        "accuracy_high": high,
        "auc": measure_auc(labels, np.array(putamen))[0],
        "fn": int((groups == "FN").sum()),
        "fn_inconsistent": sum(agrees is False for agrees, group in zip(consistent, groups) if group == "FN"),
        "inconsistent": sum(agrees is False for agrees in consistent),
    }


def summarise(name, rows) -> Start:
    """One start over all networks."""

    def average(key, show) -> str:
        known = [row[key] for row in rows if row[key] is not None]
        if not known:
            return "n/a"
        text = show(np.mean(known)) + (f" ({show(min(known))} to {show(max(known))})" if len(known) > 1 else "")
        return text.replace("-", "−")

    fn, inconsistent = (sum(row[key] for row in rows) for key in ("fn", "fn_inconsistent"))
    return Start(
        name,
        average("correlation", lambda value: f"{value:.2f}"),
        average("positive_TN", lambda value: f"{100 * value:.0f} %"),
        average("positive_TP", lambda value: f"{100 * value:.0f} %"),
        average("accuracy", format_percent),
        average("auc", lambda value: f"{value:.2f}"),
        f"{inconsistent} of {fn}",
        average("near", lambda value: f"{100 * value:.0f} %"),
    )


if __name__ == "__main__":
    main(make, __doc__)
