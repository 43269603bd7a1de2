"""Which runs share a row, what is noted, and what is left out."""

import re

import pytest
from run_folders import damage, make_run

from agents.critic.learning import CriticConfig
from agents.policy import PolicyConfig
from reports.comparison import Note, compare_runs
from reports.run_files import UnfinishedRun, read_run, read_runs
from reports.tables import choice_table, overall_table


def compared(folder):
    runs, problems = read_runs([folder])
    assert not problems
    return compare_runs(runs)


def test_rows_are_named_after_their_folders(tmp_path):
    for seed in range(2):
        for task in ("hopper-medium", "walker2d-medium"):
            make_run(tmp_path / task / f"min_gru-bc-seed{seed}", task, seed=seed, rollout="window")
            make_run(tmp_path / task / f"min_gru-streamed-seed{seed}", task, seed=seed)
    found = compared(tmp_path)
    assert sorted(found.rows) == ["min_gru-bc", "min_gru-streamed"]
    assert all(len(cell.runs) == 2 for cell in found.cells.values())
    assert found.baselines == ["min_gru-bc"]
    make_run(tmp_path / "hopper-medium" / "min_gru-seed0", rollout="rolling")
    assert compared(tmp_path).baselines == ["min_gru"]


def test_runs_of_one_folder_name_that_differ_in_more_than_their_seed_have_rows_of_their_own(
    tmp_path,
):
    for seed in range(3):
        make_run(tmp_path / f"bc-seed{seed}", seed=seed)
    make_run(tmp_path / "later" / "bc-seed3", seed=3, steps=3000, step=500)
    found = compared(tmp_path)
    assert {
        row: [run.config["seed"] for run in cell.runs] for (_, row), cell in found.cells.items()
    } == {
        "bc": [0, 1, 2],
        "bc steps=3000 scored_at_update=500": [3],
    }


def test_a_setting_that_another_version_does_not_know_is_no_difference(tmp_path):
    for seed in range(3):
        make_run(tmp_path / f"min_gru-seed{seed}", seed=seed)
    path = tmp_path / "min_gru-seed1" / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "previous_action" not in line))
    damage(tmp_path / "min_gru-seed2", "config.yaml", lambda t: t.replace("dropout", "drop"))
    found = compared(tmp_path)
    assert found.rows == ["min_gru"] and not found.notes


@pytest.mark.parametrize(
    ("more", "fact", "value", "usual"),
    [
        ({"episodes": 2}, "episodes", "2", "4"),
        ({"environment": "Hopper-v4"}, "environment", "Hopper-v4", "Hopper-v5"),
        ({"engine": "envpool"}, "engine", "envpool", "gymnasium"),
        ({"targets": (1800.0,)}, "target return", "1,800", "3,000"),
        ({"held": True}, "the target is", "held", "counted down"),
        ({"chosen": True}, "the target is", "chosen", "counted down"),
        ({"step": 500}, "updates", "500", "1,500"),
        ({"critic": CriticConfig(updates=9000)}, "value help", "a critic of 9,000 updates", "none"),
    ],
)
def test_what_was_scored_otherwise_is_noted(tmp_path, more, fact, value, usual):
    for row in ("a", "b"):
        make_run(tmp_path / f"{row}-seed0")
    make_run(tmp_path / "c-seed0", **more)
    found = compared(tmp_path)
    assert found.notes == [Note("c", "hopper-medium", fact, value, usual)]
    assert found.marks == {("builtin/hopper/medium-v1", "c"): [1]}


def test_the_time_of_the_updates_is_told_where_it_is_known_and_is_no_difference(tmp_path):
    for seed, speed in enumerate((5.0, 2.5)):  # of 1,500 updates
        make_run(tmp_path / f"min_gru-seed{seed}", seed=seed, updates_per_second=speed)
    make_run(tmp_path / "bc-seed0", updates_per_second=5.0)
    make_run(tmp_path / "bc-seed1", seed=1)
    critic = {"critic": CriticConfig(updates=9000), "updates_per_second": 5.0}
    make_run(tmp_path / "critic-seed0", **critic)  # trained for longer than its updates
    minutes = {line["row"]: line["minutes"] for line in overall_table(compared(tmp_path)).rows}
    assert minutes == {"min_gru": pytest.approx(7.5), "bc": None, "critic": None}


def test_a_configuration_that_changes_from_task_to_task_is_noted(tmp_path):
    make_run(tmp_path / "hopper" / "a")
    make_run(tmp_path / "walker" / "a", "walker2d-medium", protocol={"context_length": 20})
    found = compared(tmp_path)
    assert found.rows == ["a"]
    assert found.notes == [
        Note("a", "hopper-medium", "protocol.context_length", "64", "one for all tasks"),
        Note("a", "walker2d-medium", "protocol.context_length", "20", "one for all tasks"),
    ]


def test_of_several_targets_the_first_is_the_runs_own(tmp_path):
    run = read_run(make_run(tmp_path / "run", targets=(3000.0, 6000.0, 100.0)))
    assert run.score.target_return == 3000
    assert [score.target_return for score in run.sweep] == [100, 3000, 6000]


def test_what_a_choice_of_the_target_brings_is_told_where_several_were_tried(tmp_path):
    sweep = {"scores-targets": [(20, 1650.0, {"episodes": 3}), (70, 3300.0, {"episodes": 3})]}
    make_run(tmp_path / "a-seed0", score=50, others=sweep)
    make_run(tmp_path / "b-seed0", score=50, backbone="min_lstm")
    (line,) = choice_table(compared(tmp_path)).rows
    assert (line["row"], line["targets"], line["runs"]) == ("a", 3, 1)
    assert line["asked in advance"] == pytest.approx(50)
    # The target of score 70 is the best in each episode.
    assert line["tried 1"] == pytest.approx(70, abs=0.1)
    assert "tried 5" not in line or line["tried 5"] is None


def test_a_held_target_and_one_counted_down_are_two_of_a_sweep(tmp_path):
    counted = [(40, 3000.0, {"held": False}), (30, 1500.0, {"held": False})]
    run = read_run(make_run(tmp_path / "run", score=50, held=True, others={"scores-x": counted}))
    assert [(s.target_return, round(s.value)) for s in run.sweep] == [
        (1500, 30),
        (3000, 40),
        (3000, 50),
    ]
    assert run.sweep[2] == run.score and not run.others


def test_other_evaluations_are_read_beside_the_score_and_never_instead_of_it(tmp_path):
    folder = make_run(
        tmp_path / "run",
        score=50,
        others={
            "scores-target_fraction-0.5-1": [(20, 1650.0, {}), (55, 3300.0, {})],
            "scores-episodes-2": [(10, 3000.0, {"episodes": 2})],
            "scores-horizon-5000": [(99, 3000.0, {"horizon": 5000})],
            "scores-rollout-window": [(48, 100.0, {"rollout": "window"})],
            "scores-older-weights": [(5, 6000.0, {"checkpoint_step": 500})],
        },
    )
    run = read_run(folder)
    assert run.score.value == pytest.approx(50)
    assert [score.target_return for score in run.sweep] == [1650, 3000, 3300]
    assert run.sweep[1] == run.score
    assert {what: round(score.value) for what, score in run.others.items()} == {
        "horizon 5000": 99,
        "rollout window, target return 100": 48,
    }


def test_rows_on_some_of_the_tasks_are_a_part_with_averages_of_its_own(tmp_path):
    for i, task in enumerate(("hopper-medium", "walker2d-medium", "halfcheetah-medium")):
        make_run(tmp_path / task / "min_gru", task, score=60)
        make_run(tmp_path / task / "min_gru_window", task, score=55, rollout="window")
        if i < 2:
            make_run(tmp_path / task / "attention", task, "attention", score=40)
            make_run(tmp_path / task / "long", task, score=70, steps=3000, step=3000)
            make_run(tmp_path / task / "short", task, score=50, steps=300, step=300)
    make_run(tmp_path / "walker2d-medium" / "lstm", "walker2d-medium", "min_lstm")
    found = compared(tmp_path)
    whole, part = found.parts()
    assert whole.rows == ["min_gru", "min_gru_window", "lstm"]
    assert part.rows == ["long", "min_gru", "short", "attention"]
    assert part.complete == part.rows and len(part.tasks) == 2
    (alone,) = [note for note in found.notes if note.fact == "runs"]
    assert (alone.row, alone.task) == ("lstm", "halfcheetah-medium, hopper-medium")


def test_where_every_row_is_in_a_part_no_row_lacks_an_average(tmp_path):
    for task in ("hopper-medium", "walker2d-medium", "halfcheetah-medium"):
        for steps in (300, 700, 900):
            key = {"steps": steps, "step": steps}
            if task != "halfcheetah-medium":
                make_run(tmp_path / task / f"gru-{steps}", task, **key)
            if task != "hopper-medium":
                make_run(tmp_path / task / f"lstm-{steps}", task, "min_lstm", **key)
    found = compared(tmp_path)
    assert [len(part.tasks) for part in found.parts()] == [2, 2]
    assert not [note for note in found.notes if note.fact == "runs"]


def test_seeds_on_other_data_share_a_row_and_are_noted(tmp_path):
    for name in ("bc", "plain"):
        for seed, digest in enumerate(["a" * 64, "a" * 64, "b" * 64]):
            folder = tmp_path / f"{name}-seed{seed}"
            make_run(folder, seed=seed, sha256=digest, held_out=0.1 * (name == "bc"))
    found = compared(tmp_path)
    assert {row: len(cell.runs) for (_, row), cell in found.cells.items()} == {"bc": 3, "plain": 3}
    assert found.notes == [
        Note("bc, plain", "hopper-medium", "data hash of seed 2", "b" * 12, "a" * 12)
    ]
    assert all(marks == [1] for marks in found.marks.values())


def test_the_target_of_a_policy_that_does_not_see_it_is_no_difference(tmp_path):
    make_run(tmp_path / "gru")
    bc = PolicyConfig(return_to_go=False)
    make_run(tmp_path / "bc", policy=bc, targets=(1000.0,))
    assert not compared(tmp_path).notes


def test_a_run_that_was_copied_is_counted_once(tmp_path):
    for folder in (tmp_path / "run", tmp_path / "copy" / "run"):
        make_run(folder)
    found = compared(tmp_path)
    (cell,) = found.cells.values()
    assert len(cell.runs) == 1
    (note,) = found.notes
    assert "is left out: the same run" in note.value and note.fact == "seed 0"


DAMAGE = {
    "of another version: scores": (
        lambda f: damage(f, "scores.json", lambda t: t.replace('"seed"', '"start_seed"')),
        r"scores\.json' are damaged or of another version .*start_seed\); run eval\.py again",
    ),
    "of another version: config": (
        lambda f: damage(
            f, "config.yaml", lambda t: t.replace("backbone:\n  name:", "net:\n  is:")
        ),
        r"of another version of this project \(the key 'backbone\.name' is missing\): copy it",
    ),
    "without data in config.json": (
        lambda f: (f / "config.json").write_text("{}"),
        r"config\.json is damaged or of another version .*the key 'dataset' is missing",
    ),
    "of another version: data": (
        lambda f: damage(f, "config.json", lambda t: t.replace("return_top10", "top")),
        r"config\.json is damaged or of another version .*missing or unknown: return_top10, top\)",
    ),
    "no keys in config.json": (
        lambda f: (f / "config.json").write_text("[]"),
        r"config\.json is damaged or of another version .*where the keys of a DatasetInfo should",
    ),
    "cut off": (lambda f: damage(f, "config.yaml", lambda t: t[:40] + ": ["), r"is damaged or of"),
    "not text": (
        lambda f: (f / "metrics.jsonl").write_bytes(b"\xff\xfe\n"),
        r"is damaged or of another version",
    ),
    "without its configuration": (
        lambda f: (f / "config.yaml").unlink(),
        r"config\.yaml is damaged or of another version .*\(No such file.*\): copy it again",
    ),
    "a list": (lambda f: (f / "config.yaml").write_text("- 1\n"), r"is damaged or of another"),
    "a score that is no number": (
        lambda f: damage(
            f, "scores.json", lambda t: re.sub(r'("return_mean"): [\d.]+', r"\1: NaN", t)
        ),
        r"return_mean is nan",
    ),
    "a data set that is no text": (
        lambda f: damage(
            f, "scores.json", lambda t: re.sub(r'("dataset_id"): "[^"]*"', r"\1: 3", t)
        ),
        r"dataset_id is 3",
    ),
    "a seed that is no number": (
        lambda f: damage(f, "config.yaml", lambda t: re.sub(r"(?m)^seed: .*", "seed: [a]", t)),
        r"config\.yaml is damaged or of another .*seed is \['a'\], which is no int",
    ),
    "no number in its curve": (
        lambda f: (f / "metrics.jsonl").write_text('{"step": 1, "eval/return_mean": null}\n'),
        r"metrics\.jsonl is damaged or of .*eval/return_mean is None, which is not a finite number",
    ),
    "not finite in its curve": (
        lambda f: (f / "metrics.jsonl").write_text('{"step": 1, "eval/return_mean": NaN}\n'),
        r"metrics\.jsonl is damaged or of .*eval/return_mean is nan, which is not a finite number",
    ),
    "no record in its curve": (
        lambda f: (f / "metrics.jsonl").write_text("[]\n"),
        r"metrics\.jsonl is damaged or of another version .*the record \[\] has no step",
    ),
    "a file in which keys hold each other": (
        lambda f: (f / "config.yaml").write_text("a: &a\n  b: *a\n"),
        r"config\.yaml is damaged or of another version .*recursion",
    ),
    "unfinished": (
        lambda f: (f / "scores.json").unlink(),
        r"is unfinished, it has no scores\.json: resume it with .*resume=true, or .*eval\.py",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_that_cannot_be_read_is_named_in_a_sentence_and_left_out(tmp_path, kind):
    broken, words = DAMAGE[kind]
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    broken(bad)
    runs, (problem,) = read_runs([tmp_path])
    assert [run.folder for run in runs] == [good]
    reason = str(problem)
    assert re.search(words, reason), reason
    assert str(bad) in reason and "\n" not in reason and reason.endswith(".")
    assert isinstance(problem, UnfinishedRun) == (kind == "unfinished")


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path):
    folder = make_run(tmp_path / "run", curve=(10, 30, 20))
    damage(folder, "metrics.jsonl", lambda text: text + '{"step": 9, "eval/norm')
    run = read_run(folder)
    assert list(run.curve) == [50, 100, 150]
    assert run.best == pytest.approx(30)
