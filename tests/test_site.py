"""The pages and the reference as a site: every link and every name in them exists."""

import subprocess
import sys

import pytest
from programs import ROOT


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "agents" / "index.html").read_text(encoding="utf-8")
    assert 'id="agents.actor.load_actor"' in page and "USER/NAME" in page
    speed = (tmp_path / "speed" / "index.html").read_text(encoding="utf-8")
    assert 'src="../benchmarks/results/step_time.png"' in speed
    assert (tmp_path / "benchmarks" / "results" / "step_time.png").exists()
