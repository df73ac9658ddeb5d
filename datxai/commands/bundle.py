"""Export of a run's model to a single file that can be shared, with its model card."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from datxai.bundle import (
    CARD,
    MEANS,
    MOST,
    NETWORK,
    REFERENCE,
    SETTINGS,
    SHIFT,
    SUFFIX,
    WEIGHTS,
    WIDTHS,
    Bundle,
    pack_numbers,
    require_place,
    settings_to_hand_on,
    write_bundle,
)
from datxai.config import Config, restore
from datxai.errors import InputError
from datxai.explainer import Explainer, describe_method, predict_label
from datxai.files import hash_content, hash_file
from datxai.findings import Findings
from datxai.model import checkpoint
from datxai.pages import card as page
from datxai.pages.content import ModelCard
from datxai.progress import Bar
from datxai.record import Record, read_record
from datxai.reference import Reference
from datxai.run import Run, git_revision, versions
from datxai.tested import Tested

log = logging.getLogger("datxai")

MIN_CASES = 5  # cases in a mean, or in a subgroup of the test, that may be shared
SUBGROUPS = ("sex", "age")  # other columns may name sites or people
TREE_KEYS = ("nodes", "tree")


def run(settings: Config, trained: Run) -> None:
    """Write the bundle of a finished run to ``settings.out``, by default RUN/NAME.datxai; for a bundle, print its card.

    With ``settings.precision=bf16``, kernels and matrices are rounded, and the effect is measured on the run's test
    cases. Raises `InputError` if the run cannot be shared.
    """
    if trained.folder.is_file():
        print(Bundle.open(trained.folder).card)
        return
    if settings.precision not in WIDTHS:
        raise InputError(f"precision={settings.precision}: expected {' or '.join(WIDTHS)}.")
    trained.entry("evaluate", "bundle")
    path = Path(settings.out or trained.folder / f"{trained.folder.absolute().name}{SUFFIX}")
    require_place(path)
    record = _read_record(settings, trained)
    handed, files = settings_to_hand_on(record)
    findings, reference = Findings(trained), Reference.of(settings, trained)
    explainer = Explainer.of(settings, trained)
    mean_scan_of = _count_mean_scan(explainer.model, findings)
    weights, rounding = (trained.model / checkpoint.WEIGHTS).read_bytes(), None
    if settings.precision == "bf16":
        weights, rounding = _round(explainer, findings)
    members: dict[str, bytes | Mapping] = {
        SETTINGS: handed,
        NETWORK: (trained.model / checkpoint.CONFIG).read_bytes(),
        REFERENCE: _describe_reference(settings, reference, findings),
        WEIGHTS: pack_numbers(weights, WIDTHS[settings.precision]),
        **{name: file.read_bytes() for name, file in files.items()},
    }
    groups = {group: findings.groups.count(group) for group in ("TN", "TP")}
    if reference.means is not None and min(groups.values()) >= MIN_CASES:
        pair = {group: np.ascontiguousarray(mean) for group, mean in zip(groups, reference.means)}
        members[MEANS] = safetensors.numpy.save(pair)
    if reference.shift is not None and reference.shift.measures:
        members[SHIFT] = trained.shift.read_bytes()
    about = _describe_origin(trained, settings.precision)
    card = ModelCard(
        name=f"DAT-SPECT classifier {reference.evaluated['fingerprint'][:12]}",
        precision=settings.precision,
        rounding=rounding,
        parameters=sum(parameter.numel() for parameter in explainer.model.parameters()),
        groups=groups,
        least=MIN_CASES,
        mean_scan_of=mean_scan_of,
        members={name: len(members[name]) for name in MOST if isinstance(members.get(name), bytes)},
        made_by={**about["made_by"], "run": reference.evaluated["fingerprint"]},
        **_describe_run(record, findings),
    )
    members[CARD] = page.render_card(card).encode()
    write_bundle(path, members, about)
    log.info("Bundle: %s, %.1f MB; `datxai bundle run=%s` shows its card", path, path.stat().st_size / 1e6, path)


def _describe_origin(trained: Run, precision: str) -> dict:
    """The run that a bundle was made from, and the software that made the bundle."""
    return {
        "explanation": trained.explanation,
        "precision": precision,
        "made_by": {**versions(), "git_revision": git_revision()},
        "run": {stage: entry["fingerprint"] for stage, entry in trained.entries().items() if "/" not in stage},
        "weights": hash_file(trained.model / checkpoint.WEIGHTS),
    }


def _read_record(settings: Config, trained: Run) -> Record:
    """The settings that the explanation was made with; `InputError` if ``settings`` asks for another explanation."""
    record = read_record(trained.folder)
    if record is None or not record.values:
        raise InputError(f"{trained.folder}: no settings of the run are recorded; make the run again.")
    record = record.of_explanation(trained.explanation)
    recorded = restore(record.values)
    if recorded.composite.rules_from is None and describe_method(settings) != describe_method(recorded):
        raise InputError(
            f"run={trained.folder}: a bundle holds an explanation that the run has made, not another composite, "
            f"attribution or target; leave these out, or make it first: `datxai explain run={trained.folder} "
            f"explanation=NAME` and `evaluate`, then `bundle` with explanation=NAME."
        )
    return record


def _count_mean_scan(model: nn.Module, findings: Findings) -> int | None:
    """The number of training cases in the mean scan of a network; None if it subtracts no mean.

    Raises `InputError` if there are so few that the mean would reveal single scans.
    """
    input_layer = getattr(model, "input", None)
    if input_layer is None or not bool((input_layer.mean != 0).any()):
        return None
    cases = sum(case["set"] == "train" for case in findings.cohort)
    if cases < MIN_CASES:
        raise InputError(
            f"{findings.run.folder}: its network subtracts the mean of {cases} training scans, expected {MIN_CASES} or "
            f"more for a mean that may be handed on; train with more cases, or with network=nazari2021."
        )
    return cases


def _round(explainer: Explainer, findings: Findings) -> tuple[bytes, dict[str, Any]]:
    """Weights as safetensors with kernels and matrices in bfloat16, and the resulting changes in the test cases."""
    model, tensors = copy.deepcopy(explainer.model), {}
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    for name, tensor in model.state_dict().items():
        rounded = tensor.to(torch.bfloat16) if name in matrices else tensor
        tensors[name] = rounded.cpu().contiguous()
        tensor.copy_(rounded)
    return safetensors.torch.save(tensors), _compare(explainer, replace(explainer, model=model), findings)


def _compare(exact: Explainer, rounded: Explainer, findings: Findings) -> dict[str, Any]:
    """The largest changes of a logit and of a map (relative to its norm) over the test cases, and changed decisions."""
    cases, logit, share, decisions = findings.of_set("test"), 0.0, 0.0, 0
    with Bar(len(cases), "cases compared") as bar:
        for case in cases:
            x = torch.from_numpy(findings.store.volume(case["participant_id"]))[None, None]
            maps, records = zip(*(explainer.explain(x, [case["label"]])[0] for explainer in (exact, rounded)))
            logits = [record["logits"] for record in records]
            logit = max(logit, float(np.abs(np.subtract(*logits)).max()))
            norm = float(np.linalg.norm(maps[0].astype(float))) or 1.0
            share = max(share, float(np.linalg.norm(maps[1].astype(float) - maps[0])) / norm)
            calls = {predict_label(pair)["predicted"] for pair in logits}
            decisions += len(calls) > 1
            bar.update()
    return {"cases": len(cases), "logit": logit, "map": share, "decisions": decisions}


def _describe_reference(settings: Config, reference: Reference, findings: Findings) -> dict[str, Any]:
    """The statistics over many cases that a new scan, or another cohort, is compared with."""
    calibration = reference.calibration
    sbr, cart = (findings.metrics["classifiers"][name] for name in ("sbr", "cart"))
    classifiers = {"sbr": {"cutoff": sbr["cutoff"]}, "cart": {key: cart[key] for key in TREE_KEYS}}
    tested = Tested(findings, calibration, classifiers)
    return {
        "calibration": {key: calibration[key] for key in ("temperature", "determined", "half_width")},
        "ranges": {name: normal_range.pack() for name, normal_range in reference.ranges.items()},
        "evaluated": {key: reference.evaluated[key] for key in ("fingerprint", "finished")},
        "method": hash_content(describe_method(settings)),
        "classifiers": classifiers,
        "tested": tested.describe(SUBGROUPS, MIN_CASES) if len(tested.cases) >= MIN_CASES else None,
    }


def _describe_run(record: Record, findings: Findings) -> dict[str, Any]:
    """The fields of `ModelCard` on cohort, performance and settings."""
    values, metrics = record.values, findings.metrics
    split = values["split"]
    training = {name: value for name, value in values["training"].items() if name not in ("tracking", "shard")}
    network = values["network"]
    drawn = "Glorot uniform, biases zero" if network["architecture"] == "plain" else "as the network's class draws them"
    if network.get("initialisation") == "looks_linear":
        drawn += ", paired so that the untrained network is linear"
    initialisation = {"initial weights": "of another training" if network.get("weights") else drawn}
    groups = ("grid", "registration", "atlas", "preprocessing")
    imaging = {name: value for group in groups for name, value in values[group].items()}
    method = {**values["attribution"], "target": values["target"], "composite": values["composite"]["name"]}
    hidden = {"age_mean": None, "age_sd": None}
    return {
        "data": "the digital phantom (simulated)" if values["data"]["kind"] == "phantom" else "scans of people",
        "table1": [row if row["n"] >= MIN_CASES else {**row, **hidden} for row in findings.table1],
        "left_out": len(findings.skipped),
        "split": f"Division: {split['kind']}.",
        "classifiers": metrics["classifiers"],
        "calibration": metrics["calibration"],
        "peaks": metrics["peaks"],
        "inconsistent": metrics["inconsistent"],
        "mean_map_correlation": metrics.get("mean_map_correlation"),
        "settings": {
            page.IMAGING: {name: _hide(name, value) for name, value in imaging.items()},
            page.NETWORK: {name: _hide(name, value) for name, value in values["network"].items()},
            page.TRAINING: {**initialisation, **training},
            page.EXPLANATION: method | {"lines of the composite": _list_lines(values["composite"])},
        },
    }


def _hide(name: str, value: object) -> object:
    """A setting for the card; a path to a file of the user becomes "the run's own"."""
    return "the run's own" if value is not None and name in ("template", "labels", "names", "weights") else value


def _list_lines(composite: Mapping[str, Any]) -> str:
    """The lines of a composite as text."""
    lines = []
    for line in composite["layers"]:
        parameters = ", ".join(f"{name}={value}" for name, value in line["parameters"].items())
        lines.append(f"{' '.join(line['match'])}: {line['rule']}{f' ({parameters})' if parameters else ''}")
    return "; ".join(lines)
