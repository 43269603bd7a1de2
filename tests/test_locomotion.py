"""The benchmark's runs can all be asked for, none twice, and finished ones are kept."""

import sys
from collections import Counter

import pytest
from run_folders import make_run

from benchmarks import locomotion
from common.errors import UserError
from configs.launch import command
from configs.schema import register
from reports.run_files import read_runs

RUNS = list(locomotion.commands(list(locomotion.GROUPS), [0]))


def test_each_run_has_its_name():
    assert max(Counter(name for name, _ in RUNS).values()) == 1


@pytest.mark.parametrize("group", locomotion.GROUPS)
def test_each_variant_composes_and_differs(group):
    register()
    _, variants = locomotion.GROUPS[group]
    configs = []
    for name, overrides in variants.items():
        ((_, config),) = command.check([*locomotion.COMMON, *overrides], "train")
        configs.append(config)
        assert config.steps > 3000 if name.endswith("_longer") else config.steps == 3000
        assert config.protocol.batch_steps == 1280
    plain = command.check(locomotion.COMMON, "train")[0][1]
    assert all(configs.count(config) == 1 for config in configs)
    assert group == "main" or plain not in configs


def test_only_runs_that_are_made_are_evaluated():
    made = {name for name, _ in RUNS}
    assert {name for name, _ in locomotion.evaluations([0])} <= made


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_rows_are_not_trained_again_unless_their_data_are_of_another_version(
    monkeypatch, capsys, version
):
    runs, problems = read_runs([locomotion.RESULTS / "locomotion"])
    asked = {name for name, _ in locomotion.commands(["main"], [0, 1, 2])}
    finished = len(asked & {run.name for run in runs}) if version == "v1" else 0
    assert not problems and len(runs) > 20
    ids = {name.rpartition("-")[0] + f"-{version}" for name in locomotion.RECIPES}
    monkeypatch.setattr(locomotion, "RECIPES", ids)  # the tables that ship are of v1
    monkeypatch.setattr(sys, "argv", ["locomotion.py", "--dry-run", "--groups", "main"])
    locomotion.main()
    assert capsys.readouterr().out == f"{finished} of {len(asked)} runs are finished.\n"


def test_other_results_have_runs_of_their_own(monkeypatch, capsys):
    words = ["--dry-run", "--groups", "main", "others", "--results"]
    asked = {name for name, _ in locomotion.commands(["main", "others"], [0, 1, 2])}
    rows = {run.name for run in read_runs([locomotion.RESULTS / "locomotion_backbones"])[0]}
    finished = {"of_nobody": 0, "locomotion_backbones": len(asked & rows)}
    for name, count in finished.items():
        monkeypatch.setattr(sys, "argv", ["locomotion.py", *words, name])
        locomotion.main()
        assert capsys.readouterr().out == f"{count} of {len(asked)} runs are finished.\n"
    assert not (locomotion.ROOT / "runs" / "of_nobody").exists()
    only = ["--datasets", "hopper-medium", "walker2d-medium", "--names", "min_gru", "gru"]
    monkeypatch.setattr(sys, "argv", ["locomotion.py", *words, "of_nobody", *only])
    locomotion.main()
    assert capsys.readouterr().out == "0 of 12 runs are finished.\n"
    for wrong in ("", "..", "a/b"):
        monkeypatch.setattr(sys, "argv", ["locomotion.py", *words, wrong])
        with pytest.raises(UserError, match=r"--results is .*; it must be the name of one folder"):
            locomotion.main()
    monkeypatch.setattr(sys, "argv", ["locomotion.py", "--jobs", "0"])
    with pytest.raises(UserError, match=r"--jobs is 0; it must be 1 or more\."):
        locomotion.main()


def test_only_policies_that_are_asked_for_and_here_are_evaluated(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(locomotion, "ROOT", tmp_path)
    monkeypatch.setattr(locomotion, "RESULTS", tmp_path / "results")
    make_run(tmp_path / "runs" / "mine" / "hopper-medium" / "min_gru-seed0")
    make_run(tmp_path / "runs" / "mine" / "hopper-medium" / "min_gru-seed1", finished=False)
    make_run(tmp_path / "runs" / "mine" / "walker2d-medium" / "min_gru-seed0")
    each = sum("min_gru" in names for data, names, _ in locomotion.EVALUATIONS)
    assert all("hopper-medium" in data for data, _, _ in locomotion.EVALUATIONS)
    words = ["--evaluate", "--dry-run", "--results", "mine", "--datasets", "hopper-medium"]
    for only, here, asked in (
        (["--names", "min_gru"], each, 3 * each),
        (["--names", "min_gru_uniform"], 0, 3),
        (["--groups", "chosen"], 0, 6),
    ):
        monkeypatch.setattr(sys, "argv", ["locomotion.py", *words, *only])
        locomotion.main()
        said = capsys.readouterr().out
        assert said == f"The policies of {here} of {asked} evaluations are here.\n"


def test_finished_runs_become_rows_and_nothing_is_lost(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    noise = {"scores-observation_noise-0.1": [(40, 3000.0, {})]}
    make_run(runs / "hopper-medium" / "a-seed0", score=50, others=noise)
    make_run(runs / "hopper-medium" / "b-seed0", finished=False)
    assert locomotion.collect(runs, results).keys() == {"hopper-medium/a-seed0"}
    first = (results / "runs.csv").read_bytes()

    # On another machine, without the first run's folder.
    more = tmp_path / "more"
    make_run(more / "hopper-medium" / "c-seed0", score=60)
    found = locomotion.collect(more, results)
    assert [name.rpartition("/")[2] for name in found] == ["a-seed0", "c-seed0"]
    assert (results / "runs.csv").read_bytes().startswith(first)
    # The same run again, where it has not been evaluated further: its evaluations are kept.
    make_run(more / "hopper-medium" / "a-seed0", score=50)
    again = locomotion.collect(more, results)["hopper-medium/a-seed0"]
    assert again.evaluations.keys() == {"scores-observation_noise-0.1"}
