"""Which runs share a row, what is marked, and what is left out."""

import re

import pytest
from run_folders import damage, make_run

import compare
from agents.policy import PolicyConfig
from common.errors import UserError
from configs.schema import EvaluationConfig
from reports.comparison import compare_runs
from reports.names import name_runs
from reports.runs import (
    find_run_folders,
    read_run,
)


def compared(*folders, by_folder=False):
    runs = [read_run(folder) for folder in find_run_folders(folders)]
    return compare_runs(runs, by_folder=by_folder)


def test_names_tell_what_differs_and_no_more(tmp_path):
    windowed = {"name": "windowed", "context_length": 20}
    for seed in range(2):
        for name, more in {
            "plain": {},
            "windowed": {"protocol": windowed},
            "window": {"rollout": "window"},
            "long": {"steps": 3000, "step": 3000},
            "attention": {"backbone": "attention", "steps": 700, "step": 700},
        }.items():
            make_run(tmp_path / f"{name}{seed}", seed=seed, **more)
    found = compared(tmp_path)
    assert set(found.rows) == {
        "min_gru",
        "min_gru protocol=windowed",  # the context length goes with it
        "min_gru rollout=window",
        "min_gru steps=3000",
        "attention",  # it has one configuration, whatever that is
    }
    assert all(len(cell.runs) == 2 for cell in found.cells.values())
    assert found.baselines == ["min_gru", "attention"]
    assert any(
        "attention is not trained or scored" in n and "updates 700" in n for n in found.notes
    )


def test_the_plainest_configuration_is_the_centre_not_the_one_in_the_middle(tmp_path):
    cloning = PolicyConfig(return_to_go=False)
    make_run(tmp_path / "plain")
    make_run(tmp_path / "bc", policy=cloning)
    make_run(tmp_path / "bc_held_out", policy=cloning, held_out=0.1)
    runs, _ = compare.read_runs([tmp_path])
    found = compare_runs(runs)
    assert found.baselines == ["min_gru"]
    assert set(found.rows) == {
        "min_gru",
        "min_gru return_to_go=false",
        "min_gru return_to_go=false held_out=0.1",
    }


def test_of_two_configurations_neither_is_the_usual_one(tmp_path):
    make_run(tmp_path / "a", protocol={"name": "whole_episodes"})
    make_run(tmp_path / "b")
    assert compared(tmp_path).rows == [
        "min_gru protocol=whole_episodes",
        "min_gru protocol=streamed",
    ]


@pytest.mark.parametrize(
    ("more", "name", "words"),
    [
        ({"episodes": 2}, "episodes=2", "episodes 2 instead of 4"),
        ({"environment": "Hopper-v4"}, "environment=Hopper-v4", "Hopper-v4 instead of Hopper-v5"),
        ({"engine": "envpool"}, "engine=envpool", "engine envpool instead of gymnasium"),
        ({"targets": (1800.0,)}, "target_return=1,800", "target return 1,800 instead of 3,000"),
        ({"step": 500}, "scored_at_update=500", "updates 500 instead of 1,500"),
    ],
)
def test_unequal_protocols_are_not_merged_and_are_marked(tmp_path, more, name, words):
    for seed in range(2):
        make_run(tmp_path / str(seed), seed=seed)
    make_run(tmp_path / "2", seed=2, **more)
    found = compared(tmp_path)
    task = "builtin/hopper/medium-v0"
    assert len(found.cells[task, "min_gru"].runs) == 2
    assert len(found.cells[task, f"min_gru {name}"].runs) == 1
    (number,) = found.marks[task, f"min_gru {name}"]
    assert words in found.notes[number - 1]
    assert (task, "min_gru") not in found.marks


def test_a_configuration_that_changes_from_task_to_task_is_marked(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "walker2d-medium", protocol={"context_length": 20})
    found = compared(tmp_path)
    assert found.rows == ["min_gru"]
    assert any(
        "protocol.context_length is 64 on hopper-medium, 20 on walker2d-medium" in note
        for note in found.notes
    )


def test_of_several_targets_the_runs_own_is_the_score(tmp_path):
    run = read_run(make_run(tmp_path / "run", targets=(6000.0, 3000.0, 100.0)))
    assert run.score.target_return == 3000
    assert [score.target_return for score in run.sweep] == [100, 3000, 6000]
    asked = EvaluationConfig(target_return=6000.0)
    other = make_run(tmp_path / "other", targets=(6000.0, 3000.0), evaluation=asked)
    assert read_run(other).score.target_return == 6000


def test_other_evaluations_are_read_beside_the_score_and_never_instead_of_it(tmp_path):
    folder = make_run(
        tmp_path / "run",
        score=50,
        others={
            "scores-target_fraction-0.5-1": [(20, 1650.0, {}), (55, 3300.0, {})],
            "scores-episodes-2": [(10, 3000.0, {"episodes": 2})],
            "scores-horizon-5000": [(99, 3000.0, {"conditions": "horizon 5000"})],
            "scores-rollout-window": [(48, 100.0, {"rollout": "window"})],
            "scores-older-weights": [(5, 6000.0, {"checkpoint_step": 500})],
        },
    )
    run = read_run(folder)
    assert run.last == pytest.approx(50)
    assert [score.target_return for score in run.sweep] == [1650, 3000, 3300]
    assert run.sweep[1] == run.score
    assert {what: round(score.value) for what, score in run.others.items()} == {
        "horizon 5000": 99,
        "rollout window, target return 100": 48,
    }


def test_rows_on_some_of_the_tasks_are_a_part_with_averages_of_its_own(tmp_path):
    for i, task in enumerate(("hopper-medium", "walker2d-medium", "halfcheetah-medium")):
        make_run(tmp_path / f"{task}-gru", task, score=60)
        make_run(tmp_path / f"{task}-window", task, score=55, rollout="window")
        if i < 2:
            make_run(tmp_path / f"{task}-attention", task, "attention", score=40)
            make_run(tmp_path / f"{task}-long", task, score=70, steps=3000, step=3000)
            make_run(tmp_path / f"{task}-short", task, score=50, steps=300, step=300)
    make_run(tmp_path / "lstm", "walker2d-medium", "min_lstm")
    found = compared(tmp_path)
    whole, part = found.parts()
    assert whole.rows == ["min_gru", "min_gru rollout=window", "min_lstm"]
    assert part.rows == ["min_gru steps=3000", "min_gru", "min_gru steps=300", "attention"]
    assert part.complete == part.rows and len(part.tasks) == 2
    alone = [note for note in found.notes if "not run on" in note]
    assert len(alone) == 1 and alone[0].startswith("min_lstm was not run on")


def test_where_every_row_is_in_a_part_no_row_lacks_an_average(tmp_path):
    for task in ("hopper-medium", "walker2d-medium", "halfcheetah-medium"):
        for steps in (300, 700, 900):
            key = {"steps": steps, "step": steps}
            if task != "halfcheetah-medium":
                make_run(tmp_path / f"{task}-{steps}", task, **key)
            if task != "hopper-medium":
                make_run(tmp_path / f"{task}-lstm-{steps}", task, "min_lstm", **key)
    found = compared(tmp_path)
    assert [len(part.tasks) for part in found.parts()] == [2, 2]
    assert not [note for note in found.notes if "not run on" in note]


def test_rows_are_named_after_their_folders_if_one_asks_for_it(tmp_path):
    for seed in range(2):
        for task in ("hopper-medium", "walker2d-medium"):
            make_run(tmp_path / task / f"bc-seed{seed}", task, seed=seed, rollout="window")
            make_run(tmp_path / task / f"plain-seed{seed}", task, seed=seed)
    found = compared(tmp_path, by_folder=True)
    assert sorted(found.rows) == ["bc", "plain"]
    assert all(len(cell.runs) == 2 for cell in found.cells.values())
    make_run(tmp_path / "hopper-medium" / "min_gru-seed0", rollout="rolling")
    assert compared(tmp_path, by_folder=True).baselines == ["min_gru"]
    make_run(tmp_path / "hopper-medium" / "bc-seed2", seed=2)
    with pytest.raises(UserError, match=r"bc-seed2 and .*bc-seed0 have the same name but"):
        compared(tmp_path, by_folder=True)


def test_other_data_of_the_same_name_are_marked_by_their_hash(tmp_path):
    for seed, digest in enumerate(["a" * 64, "a" * 64, "b" * 64, None]):
        make_run(tmp_path / str(seed), seed=seed, sha256=digest)
    found = compared(tmp_path)
    assert {row: cell.runs[-1].seed for (_, row), cell in found.cells.items()} == {
        "min_gru": 3,  # an older run, which does not tell, is not marked
        f"min_gru data_hash={'b' * 12}": 2,
    }
    (note,) = found.notes
    assert f"data hash {'b' * 12} instead of {'a' * 12}" in note


def test_seeds_of_one_folder_name_on_other_data_share_a_row_and_are_marked(tmp_path):
    for name in ("bc", "plain"):
        for seed, digest in enumerate(["a" * 64, "a" * 64, "b" * 64]):
            folder = tmp_path / f"{name}-seed{seed}"
            make_run(folder, seed=seed, sha256=digest, held_out=0.1 * (name == "bc"))
    found = compared(tmp_path, by_folder=True)
    assert {row: len(cell.runs) for (_, row), cell in found.cells.items()} == {"bc": 3, "plain": 3}
    (note,) = found.notes
    assert note == (
        f"hopper-medium: seed 2 has data hash {'b' * 12} instead of {'a' * 12} in bc, plain."
    )
    assert all(marks == [1] for marks in found.marks.values())


def test_the_target_of_a_policy_that_does_not_see_it_is_no_difference(tmp_path):
    make_run(tmp_path / "gru")
    bc = PolicyConfig(return_to_go=False)
    make_run(tmp_path / "bc", policy=bc, targets=(1000.0,))
    assert not compared(tmp_path).notes


def test_a_run_that_was_copied_is_counted_once(tmp_path):
    for name in ("run", "copy"):
        make_run(tmp_path / name)
    found = compared(tmp_path, tmp_path / "run")
    (cell,) = found.cells.values()
    assert len(cell.runs) == 1
    (note,) = found.notes
    assert "run is left out: it is the same run as" in note and "seed 0 of min_gru" in note


DAMAGE = {
    "of another version: scores": (
        lambda f: damage(f, "scores.json", lambda t: t.replace('"seed"', '"start_seed"')),
        r"scores\.json' do not have the expected keys.*seed, start_seed; run eval\.py again",
    ),
    "of another version: config": (
        lambda f: damage(
            f, "config.yaml", lambda t: t.replace("backbone:\n  name:", "net:\n  is:")
        ),
        r"of another version of this project \(the key 'backbone\.name' is missing\): train it",
    ),
    "without data in config.json": (
        lambda f: (f / "config.json").write_text("{}"),
        r"the key 'dataset' is missing",
    ),
    "cut off": (lambda f: damage(f, "config.yaml", lambda t: t[:40] + ": ["), r"is damaged or of"),
    "not text": (
        lambda f: (f / "metrics.jsonl").write_bytes(b"\xff\xfe\n"),
        r"is damaged or of another version",
    ),
    "without its configuration": (
        lambda f: (f / "config.yaml").unlink(),
        r"is not a whole run folder: config\.yaml is missing beside scores\.json",
    ),
    "unfinished": (
        lambda f: (f / "scores.json").unlink(),
        r"is unfinished, it has no scores\.json: go on with .*resume=true, or .*python eval\.py",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_that_cannot_be_read_is_named_in_a_sentence_and_left_out(tmp_path, kind):
    broken, words = DAMAGE[kind]
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    broken(bad)
    runs, (reason,) = compare.read_runs([tmp_path])
    assert [run.folder for run in runs] == [good]
    assert re.search(words, reason), reason
    assert str(bad) in reason and "\n" not in reason and reason.endswith(".")


def test_scores_from_before_there_was_a_second_engine_are_still_read(tmp_path):
    make_run(tmp_path / "new", seed=1)
    damage(
        make_run(tmp_path / "old"),
        "scores.json",
        lambda text: re.sub(r',\s*"engine": "gymnasium"', "", text),
    )
    assert "engine" not in (tmp_path / "old" / "scores.json").read_text()
    (cell,) = compared(tmp_path).cells.values()
    assert [run.protocol["engine"] for run in cell.runs] == ["gymnasium", "gymnasium"]


def test_an_older_run_without_a_key_is_not_merged_with_newer_ones(tmp_path):
    for seed in range(3):
        make_run(tmp_path / str(seed), seed=seed)
    damage(tmp_path / "2", "config.yaml", lambda text: text.replace("  burn_in: 0\n", ""))
    assert compared(tmp_path).rows == ["min_gru", "min_gru burn_in=absent"]


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path):
    folder = make_run(tmp_path / "run", curve=(10, 30, 20))
    damage(folder, "metrics.jsonl", lambda text: text + '{"step": 9, "eval/norm')
    run = read_run(folder)
    assert [step for step, _ in run.curve] == [50, 100, 150]
    assert run.best == pytest.approx(30)


def test_a_key_newer_than_a_run_counts_as_its_default(tmp_path):
    for seed in range(3):
        make_run(tmp_path / f"min_gru-seed{seed}", seed=seed)
    path = tmp_path / "min_gru-seed1" / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "return_to_go" not in line))
    path = tmp_path / "min_gru-seed2" / "config.yaml"
    path.write_text(path.read_text().replace("return_to_go: true", "return_to_go: false"))
    runs, left_out = compare.read_runs([tmp_path])
    names = {run.seed: name.text for run, name in zip(runs, name_runs(runs), strict=True)}
    assert not left_out and names[0] == names[1] == "min_gru" != names[2]
