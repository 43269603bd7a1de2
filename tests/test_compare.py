"""compare.py as a user starts it: tables, pictures, the report, watching."""

import csv
import io
import os
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import damage, make_run

import compare
from agents.policy import PolicyConfig
from reports.progress import read_progress, time_span
from reports.run_files import read_run
from reports.scores import write_scores

ROOT = Path(__file__).parents[1]


def printed(folders, tmp_path, **options):
    text = io.StringIO()
    out = tmp_path / "out"
    console = Console(file=text, width=80)
    compare.main(list(folders), out=out, console=console, **options)
    return text.getvalue(), out


def markdown(out):
    return (out / "report.md").read_text()


def records(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Two tasks and three backbones, the third on one task only and with one seed."""
    runs = tmp_path_factory.mktemp("benchmark") / "runs"
    for seed, (gru, att) in enumerate([(50, 40), (60, 50), (70, 60)]):
        for task, more in (("hopper-medium", 0), ("walker2d-medium", 20)):
            folder = runs / task
            targets = (3000.0, 1500.0, 6000.0)
            make_run(
                folder / f"min_gru-seed{seed}", task, score=gru + more, seed=seed,
                curve=(30, gru + 10, gru), targets=targets,
            )  # fmt: skip
            make_run(
                folder / f"attention-seed{seed}", task, "attention", score=att + more, seed=seed,
                curve=(20, att, 3)[: 3 - seed % 2], targets=targets,
            )  # fmt: skip
    make_run(runs / "hopper-medium" / "min_lstm", backbone="min_lstm", score=65)
    return runs


@pytest.fixture(scope="module")
def report(benchmark):
    return printed([benchmark], benchmark.parent, published=True)


def test_figures_by_hand(report):
    text, out = report
    lines = {(line["task"], line["row"]): line for line in records(out / "scores.csv")}
    hopper = lines["hopper-medium", "min_gru"]
    assert float(hopper["last"]) == pytest.approx(60)
    # Standard deviation 10, three seeds: 4.303 * 10 / sqrt(3).
    assert float(hopper["last high"]) == pytest.approx(60 + 24.84, abs=0.01)
    assert float(hopper["best in training"]) == pytest.approx(70)
    assert (hopper["seeds"], hopper["episodes"]) == ("3", "4 / 20")
    single = lines["hopper-medium", "min_lstm"]
    assert (single["seeds"], single["last low"], single["best in training"]) == ("1", "", "")

    rows = {line["row"]: line for line in records(out / "overall.csv")}
    # Six runs, 50 to 90: one goes at either end.
    assert float(rows["min_gru"]["IQM"]) == pytest.approx((60 + 70 + 70 + 80) / 4)
    assert float(rows["attention"]["mean"]) == pytest.approx(60)
    assert float(rows["min_gru"]["IQM low"]) < 70 < float(rows["min_gru"]["IQM high"])
    assert (rows["min_lstm"]["tasks"], rows["min_lstm"]["IQM"]) == ("1 of 2", "")

    better = {(r["row"], r["over"]): r for r in records(out / "improvement.csv")}
    assert float(better["min_gru", "attention"]["mean"]) == pytest.approx(10)
    # The least and the greatest means that three runs can be drawn to: 50 - 60 and 70 - 40.
    low, high = (float(better["min_gru", "attention"][f"mean {end}"]) for end in ("low", "high"))
    assert -10 < low < 10 < high < 30
    other = float(rows["attention"]["IQM"])
    assert float(better["min_gru", "attention"]["IQM"]) == pytest.approx(70 - other)
    assert better["min_lstm", "min_gru"]["tasks"] == "1"
    assert better["min_lstm", "min_gru"]["mean low"] == ""

    assert "60.0 ± 24.8" in text
    assert "min_lstm on walker2d-medium: runs none" in text
    assert "| 1 | min_lstm | walker2d-medium | runs | none | on every task" in markdown(out)
    assert max(map(len, text.split("\n\n")[0].splitlines())) <= 80
    assert "\x1b" not in text


def test_published_scores_stand_apart_and_only_for_tasks_that_were_run(report):
    text, out = report
    first = records(out / "published.csv")[0]
    tasks = [key for key in first if "-" in key]
    assert tasks == ["hopper-medium", "walker2d-medium"]
    assert (first["method"], first["hopper-medium"]) == ("minGRU", "79.4")
    assert float(first["mean of these"]) == pytest.approx((79.4 + 73.3) / 2)
    assert "not checked" in first["evidence"]
    assert "not comparable with the other tables" in " ".join(text.split())
    assert all("minGRU" not in line["row"] for line in records(out / "scores.csv"))
    assert markdown(out).index("## Published scores") > markdown(out).index("## Protocol")


def test_published_scores_of_tasks_that_nobody_published(tmp_path):
    make_run(tmp_path / "run", referenced=False)
    text, out = printed([tmp_path / "run"], tmp_path, published=True)
    assert "There are no published scores of these tasks." in text
    assert not (out / "published.csv").exists()
    # Without reference returns: the return itself, and no average over tasks.
    (line,) = records(out / "scores.csv")
    assert line["task"] == "hopper-medium (return)" and float(line["last"]) == pytest.approx(
        1607, abs=1
    )
    assert "| 1 | all | hopper-medium (return) | reference returns |" in markdown(out)
    assert not (out / "overall.csv").exists()


def test_the_report_is_one_file_that_needs_no_other(report, benchmark, tmp_path):
    _, out = report
    page = (out / "report.html").read_text()
    names = {p.stem for p in out.glob("*.png")}
    assert names == {"interquartile_mean", "score_per_task", "learning_curve", "target_return"}
    assert page.count('src="data:image/png;base64,iVBOR') == len(names)
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    # The same runs make the same files.
    _, again = printed([benchmark], tmp_path, published=True)
    contents = [{path.name: path.read_bytes() for path in f.iterdir()} for f in (out, again)]
    assert contents[0] == contents[1]


def test_what_is_hidden_stands_beside_the_score(tmp_path):
    make_run(tmp_path / "runs" / "seeing")
    make_run(tmp_path / "runs" / "hiding", policy=PolicyConfig(hidden=[1]))
    text, out = printed([tmp_path / "runs"], tmp_path)
    lines = {line["row"]: line["hidden"] for line in records(out / "scores.csv")}
    assert lines == {"seeing": "", "hiding": "1"}
    assert "hidden observations" in text  # noted: the two are not scored alike
    assert "| task | row | hidden | last |" in markdown(out)
    printed([tmp_path / "runs" / "seeing"], tmp_path)
    assert "hidden" not in markdown(out)


def test_other_conditions_by_hand(tmp_path):
    for seed, (score, noisy) in enumerate([(50, 30), (60, 50), (70, None)]):
        noise = [(noisy, 3000.0, {"observation_noise": 0.1})]
        others = {} if noisy is None else {"scores-observation_noise-0.1": noise}
        make_run(tmp_path / "runs" / f"a-seed{seed}", score=score, seed=seed, others=others)
    text, out = printed([tmp_path / "runs"], tmp_path)
    (line,) = records(out / "conditions.csv")
    assert line["condition"] == "observation_noise 0.1" and line["seeds"] == "2"
    # Of the two seeds that were scored so; half the interval is 12.706 * sqrt(200) / sqrt(2).
    assert [float(line[k]) for k in ("score", "unchanged")] == pytest.approx([40, 55])
    assert float(line["score high"]) == pytest.approx(40 + 127.06, abs=0.01)
    assert "Under other conditions" in text and "60.0 ± 24.8" in text


def test_different_tasks_have_no_average(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "walker2d-medium", "attention", targets=(100.0, 3000.0))
    _, out = printed([tmp_path], tmp_path)
    assert "| 1 | a | walker2d-medium | runs | none |" in markdown(out)
    assert "| 2 | b | hopper-medium | runs | none |" in markdown(out)
    assert all(line["mean"] == "" for line in records(out / "overall.csv"))
    assert not (out / "improvement.csv").exists()
    assert not (out / "interquartile_mean.png").exists()


def test_some_tasks_alone(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "walker2d-medium", "attention", targets=(100.0, 3000.0))
    _, out = printed([tmp_path], tmp_path, tasks=["walker2d-medium"], table=tmp_path / "table")
    assert "hopper" not in markdown(out)
    (line,) = records(out / "overall.csv")
    assert line["row"] == "b" and line["tasks"] == "1 of 1"
    assert len(records(tmp_path / "table" / "runs.csv")) == 2  # of all runs


def test_without_matplotlib_the_tables_are_written_all_the_same(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text, out = printed([tmp_path / "run"], tmp_path)
    assert "there are no pictures. A picture needs an extra" in text and '".[plots]"' in text
    assert records(out / "scores.csv") and not list(out.glob("*.png"))
    assert "<table>" in (out / "report.html").read_text()


def test_watching_shows_what_runs_and_what_is_done(tmp_path, monkeypatch):
    make_run(tmp_path / "done", score=60, curve=(30, 70))
    # Scored by eval.py while it is training.
    going = make_run(tmp_path / "going", seed=1, curve=(10, 20), score=15, step=100)
    damage(going, "metrics.jsonl", lambda text: text + '{"step": 999, "eval')
    seen = io.StringIO()
    console = Console(file=seen, width=250, force_terminal=True)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            write_scores(going / "scores.json", read_run(tmp_path / "done").sweep)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(compare.time, "sleep", sleep)
    compare.watch([tmp_path], console)
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", seen.getvalue())
    before, after = text.index("1 of 2 runs done"), text.index("2 of 2 runs done")
    assert before < after
    # The score so far is that of the last evaluation, the final one is the last checkpoint's.
    assert re.search(r"going\W+100 / 1,500\W+20\.0\W+last sign \d+ \w+ ago", text[before:after])
    assert re.search(r"done\W+100 / 1,500\W+60\.0\W+done", text[before:after])
    assert re.search(r"going\W+100 / 1,500\W+60\.0\W+done", text[after:])


def test_watching_survives_folders_that_are_half_written_or_damaged(tmp_path, monkeypatch):
    make_run(tmp_path / "good", score=60)
    for name, file, text in (
        ("empty", "config.yaml", ""),
        ("list", "config.yaml", "- 1\n"),
        ("cut", "config.yaml", "a: [b"),
        ("bytes", "metrics.jsonl", b"\xff\xfe\n"),
        ("null", "metrics.jsonl", "null\n"),
        ("words", "metrics.jsonl", '{"step": "x", "eval/return_mean": []}\n'),
        ("garbage", "metrics.jsonl", "garbage\n"),
        ("number", "scores.json", "3"),
        ("half", "scores.json", '[{"dataset_id": 3'),
        ("gone", "config.json", "[]"),
        ("[/x] [red]\x1b[31m", "config.yaml", "steps: .nan\n"),
    ):
        folder = make_run(tmp_path / name, curve=(10, 20))
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "config.yaml").symlink_to(tmp_path / "missing")

    def sleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare.time, "sleep", sleep)
    seen = io.StringIO()
    compare.watch([tmp_path], Console(file=seen, width=200, force_terminal=True))
    text = re.sub(r"\x1b\[[0-9;?]*[hlmAGK]", "", seen.getvalue())
    assert re.search(r"good\W+0 / 1,500\W+60\.0\W+done", text)
    assert "[/x] [red]\N{REPLACEMENT CHARACTER}[31m" in text


def test_names_that_look_like_markup_formulas_or_escapes_are_shown_as_they_are(tmp_path):
    for name in ("[/x] [red]", "$x_{$", "a\x1b[31m|b", "<b>"):
        make_run(tmp_path / "runs" / name, curve=(10, 20), targets=(100.0, 3000.0))
    text, out = printed([tmp_path / "runs"], tmp_path)
    for name in ("x] [red]", "$x_{$", "<b>"):
        assert f"| {name} |" in markdown(out)
        assert all(word in text for word in name.split())  # narrow columns are folded
    assert "\x1b" not in text + markdown(out) + (out / "report.html").read_text()
    assert "&lt;b&gt;" in (out / "report.html").read_text()
    assert len(list(out.glob("*.png"))) == 4
    damage(tmp_path / "runs" / "[/x] [red]", "config.yaml", lambda text: "- 1\n")
    assert "left out: " in printed([tmp_path / "runs"], tmp_path)[0]


def test_a_folder_whose_files_arrive_one_by_one_is_done_with_the_last_of_them(tmp_path):
    run = make_run(tmp_path / "run", score=60)
    (run / "config.json").rename(tmp_path / "config.json")
    assert not read_progress(run).finished
    (tmp_path / "config.json").rename(run / "config.json")
    assert read_progress(run).finished


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_a_name_that_is_not_utf_8_stops_neither_report_nor_table(tmp_path):
    make_run(tmp_path / "runs" / os.fsdecode(b"\xff-seed0"))
    console = Console(file=io.StringIO())
    table = tmp_path / "table"
    compare.main([tmp_path / "runs"], out=tmp_path / "out", console=console, table=table)
    assert records(table / "runs.csv")[0]["run"] == "?-seed0"
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (1e6, "12 d")]
)
def test_time_spans(seconds, words):
    assert time_span(seconds) == words


def test_as_a_user_starts_it(start, call, tmp_path):
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "unfinished", seed=1, finished=False)
    found = start("compare.py", "runs")
    assert found.returncode == 0, found.stderr
    assert "unfinished is unfinished" in found.stdout
    assert f"Report: {Path('runs', 'comparison', 'report.html')}" in found.stdout
    assert (tmp_path / "runs" / "comparison" / "report.md").is_file()
    (tmp_path / "runs" / "unfinished" / "scores.json").write_text("[]")
    damaged = call("compare.py", "runs", "--table", "table")
    assert damaged.returncode == 1 and "are an empty list" in damaged.stdout
    assert "1 runs on 1 tasks" in (tmp_path / "runs" / "comparison" / "report.md").read_text()
    assert len(records(tmp_path / "table" / "runs.csv")) == 1


BAD = {
    "missing": (lambda t: [t / "missing"], r"missing does not exist; give run folders"),
    "file": (lambda t: [t / "file.txt"], r"file\.txt is not a folder; give run folders"),
    "empty": (lambda t: [t / "empty"], r"empty holds no runs: there is no config\.yaml"),
    "unfinished": (lambda t: [t / "unfinished"], r"none of the 1 runs in .* can be compared"),
    "tasks": (lambda t: [t / "good", "--tasks", "hoper-medium"], r"mean 'hopper-medium'"),
    "watch": (lambda t: ["--watch", t / "empty"], r"empty holds no runs"),
    "out": (lambda t: [t / "good", "--out", t / "file.txt"], r"file\.txt cannot be written"),
}


def test_bad_arguments_are_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    make_run(tmp_path / "unfinished", finished=False)
    make_run(tmp_path / "good")
    for arguments, words in BAD.values():
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments(tmp_path))])
        with pytest.raises(SystemExit) as ended:
            compare.run()
        message = capsys.readouterr().err
        assert ended.value.code == 1 and message.startswith("error: ")
        assert message.count("\n") == 1
        assert re.search(words, message), message
