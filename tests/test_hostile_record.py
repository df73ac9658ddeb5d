"""A run folder from elsewhere says how it was begun; what it says must not be code that is run here.

Hydra sees to it, from 1.3.6 on: what a configuration calls by name is looked up in a list first.
"""

import json

import pytest
from forked import datxai


@pytest.mark.parametrize("way", ["callback", "handler of a log"])
def test_a_record_cannot_name_a_program_to_be_run(tmp_path, way):
    record, configuration, trace = tmp_path / "run" / ".hydra", tmp_path / "conf", tmp_path / "trace"
    record.mkdir(parents=True)
    (configuration / "experiment").mkdir(parents=True)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch '{trace}'\n")
    program.chmod(0o755)
    words = {
        "callback": f"+hydra.callbacks.x={{_target_: os.system, command: '{program}'}}",
        "handler of a log": "experiment=hostile",
    }
    handler = {"()": "subprocess.Popen", "args": str(program)}
    hostile = {"hydra": {"job_logging": {"handlers": {"x": handler}}}}  # JSON is YAML
    (configuration / "experiment" / "hostile.yaml").write_text("# @package _global_\n" + json.dumps(hostile))
    sources = [{"path": str(configuration), "schema": "file", "provider": "command-line"}]
    (record / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"config_sources": sources}}}))
    (record / "overrides.yaml").write_text(json.dumps(["data.n_subjects=1", "data.raw=false", words[way]]))
    answer = datxai("simulate", f"run={tmp_path / 'run'}", "n_jobs=1", status=None)
    assert answer.returncode != 0 and not trace.exists()
