"""Programs of benchmarks/ that nothing else runs, at sizes that show only that they work."""

import csv
import sys

import pytest
from programs import SMALL


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_the_gpu_benchmark_works_and_its_checks_hold_where_triton_is_interpreted(start, tmp_path):
    """With the kernels' own code, without a GPU: what runs on one starts here first."""
    pytest.importorskip("triton")
    variables = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    arguments = ("--device", "cpu", "--quick", "--out", tmp_path)
    done = start("benchmarks/gpu.py", *arguments, variables=variables)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "gpu_quick_check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 20 and {row["holds"] for row in rows} == {"True"}
    for table in ("layers", "headline"):
        assert len((tmp_path / f"gpu_quick_{table}.csv").read_text().splitlines()) > 3


def test_the_main_job_is_taken_apart(start, tmp_path):
    arguments = ("--rounds", "1", "--out", tmp_path, "--overrides", *SMALL, "steps=40")
    done = start("benchmarks/main_job.py", *arguments, variables={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    with (tmp_path / "main_job.csv").open() as file:
        seconds = {row["part"]: float(row["seconds"]) for row in csv.DictReader(file)}
    with (tmp_path / "main_job_total.csv").open() as file:
        (total,) = csv.DictReader(file)
    assert seconds.keys() >= {"start Python, import", "make or read the data", "updates", "save"}
    assert min(seconds.values()) >= 0
    # Nothing is counted twice, and nothing is left out.
    assert sum(seconds.values()) == pytest.approx(float(total["seconds"]), abs=0.5)
