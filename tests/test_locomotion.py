"""The benchmark's runs can all be asked for; none is asked for twice."""

from collections import Counter

import pytest

from benchmarks import locomotion
from configs.launch import command
from configs.schema import register

RUNS = list(locomotion.commands(list(locomotion.GROUPS), [0]))


def test_each_run_has_its_folder():
    assert max(Counter(folder for folder, _ in RUNS).values()) == 1


@pytest.mark.parametrize("group", locomotion.GROUPS)
def test_each_variant_composes_and_differs(group):
    register()
    _, variants = locomotion.GROUPS[group]
    configs = []
    for overrides in variants.values():
        ((_, config),) = command.check([*locomotion.COMMON, *overrides], "train")
        configs.append(config)
        assert config.steps == (6000 if group == "longer" else 1500)
        assert config.protocol.batch_steps == 1280
    plain = command.check(locomotion.COMMON, "train")[0][1]
    assert all(configs.count(config) == 1 for config in configs)
    assert group == "main" or plain not in configs


def test_only_runs_that_are_made_are_evaluated():
    made = {folder for folder, _ in RUNS}
    assert {folder for folder, _ in locomotion.evaluations([0])} <= made
