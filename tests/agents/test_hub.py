"""Policies on a Hub: a server on this machine that keeps what it is given, as the Hub does."""

import base64
import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from programs import ROOT

from agents.hub import main
from common.errors import UserError

HOPPER = ROOT / "pretrained" / "hopper"
ACT = """
import sys
import numpy as np
from agents import load_actor
from common.errors import UserError

for name in sys.argv[1:]:
    try:
        actor = load_actor(name, target_return=3000)
        print(np.round(actor.act(np.linspace(-1, 1, 11)), 5).tolist())
    except UserError as error:
        print(f"error: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """Just the addresses that huggingface_hub asks for: make, upload, list, download."""

    repositories: dict[str, dict[str, bytes]]
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if body is content else "application/json"
        for name, value in ({"Content-Type": kind} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self):
        self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_GET(self):
        if found := re.match(r"/api/models/(\w+/[\w-]+)/(revision|tree)/", self.path):
            name, what = found.groups()
            if name not in self.repositories:
                return self.missing()
            files = self.repositories[name]
            if what == "revision":
                siblings = [{"rfilename": file} for file in files]
                return self.answer({"id": name, "sha": self.commit, "siblings": siblings})
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": _hash(content)}
                for file, content in files.items()
            ]
            return self.answer(entries)
        if found := re.match(r"/(\w+/[\w-]+)/resolve/[^/]+/(.+)", self.path):
            name, file = found.groups()
            content = self.repositories.get(name, {}).get(file)
            if content is None:
                return self.missing()
            tag = f'"{_hash(content)}"'
            return self.answer(content, ETag=tag, X_Repo_Commit=self.commit)
        self.answer({"error": self.path}, 404)

    do_HEAD = do_GET

    def do_POST(self):
        given = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer hf_of_a_test"
        if self.path == "/api/repos/create":
            body = json.loads(given)
            name = f"{body.get('organization') or 'me'}/{body['name']}"
            self.repositories.setdefault(name, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        if self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(given)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": path} | modes for path in paths]})
        if found := re.match(r"/api/models/(\w+/[\w-]+)/commit/main", self.path):
            for line in given.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    content = base64.b64decode(value["content"])
                    self.repositories[found[1]][value["path"]] = content
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{self.commit}"
            return self.answer({"commitUrl": url, "commitOid": self.commit, "success": True})
        self.answer({})  # the check of the card's header


def _hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(tmp_path):
    """A Hub on this machine: what it keeps, and the variables with which programs find it."""
    kept: dict[str, dict[str, bytes]] = {}
    handler = type("Handler", (Hub,), {"repositories": kept})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_of_a_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    yield kept, variables
    server.shutdown()
    server.server_close()


def test_a_pushed_policy_acts_as_it_did(hub, start, tmp_path):
    kept, variables = hub
    (tmp_path / "film.mp4").write_bytes(b"film")
    pushed = start(
        "-m agents.hub",
        *("push", f"run={HOPPER}", "repo=me/hopper", "video=film.mp4"),
        variables=variables,
    )
    assert pushed.returncode == 0, pushed.stderr
    assert "/me/hopper/commit/" in pushed.stdout
    files = kept["me/hopper"]
    assert {"config.json", "model.safetensors", "scores.json", "README.md", "replay.mp4"} <= {
        *files
    }
    assert files["model.safetensors"] == (HOPPER / "model.safetensors").read_bytes()
    assert not any("training_state" in name for name in files)
    assert b"https://huggingface.co/me/hopper/resolve/main/replay.mp4" in files["README.md"]

    acted = start("-c", ACT, HOPPER, "me/hopper", variables=variables)
    assert acted.returncode == 0, acted.stderr
    here = acted.stdout[: len(acted.stdout) // 2]
    assert acted.stdout == 2 * here != ""

    # What was downloaded is there without the network, also when it is asked for by its commit.
    offline = variables | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    again = start("-c", ACT, "me/hopper", f"me/hopper@{Hub.commit}", variables=offline)
    assert again.stdout == 2 * here, again.stderr

    # It is scored in a copy: the downloaded files stay as they are.
    arguments = ("run=me/hopper", "episodes=1", "horizon=5")
    scored = start("eval.py", *arguments, variables=offline)
    assert scored.returncode == 0, scored.stderr
    copy = tmp_path / "runs" / "hub" / "me" / "hopper"
    assert (copy / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert len(list(copy.glob("scores-*.json"))) == 1
    assert not list((tmp_path / "home").rglob("scores-*.json"))


def test_what_cannot_be_loaded_is_one_sentence(hub, start, tmp_path):
    kept, variables = hub
    kept["me/other"] = {"config.json": b"{}"}
    (tmp_path / "runs").mkdir()
    messages = {
        "me/nothing": "no folder me/nothing.*me/nothing of the Hugging Face Hub cannot be down",
        "me/other": "me/other of the Hugging Face Hub holds no policy of this project",
        "no_such_folder": "no_such_folder",
        "runs/no_such": "runs/no_such",  # a slip in the name of a run folder stays here
    }
    found = start("-c", ACT, *messages, variables=variables)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    for line, message in zip(found.stdout.splitlines(), messages.values(), strict=True):
        assert line.startswith("error: ") and re.search(message, line), line
        assert ("Hugging Face" in line) == message.startswith(("no folder", "me/other"))
    closed = variables | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    found = start("-c", ACT, "me/hopper", variables=closed)
    assert "me/hopper of the Hugging Face Hub cannot be downloaded" in found.stdout, found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("push", f"run={HOPPER}"), "give either repo=USER/NAME.*or to=FOLDER"),
        (("push", f"run={HOPPER}", "repo=hopper"), "repo is 'hopper'; give it as USER/NAME"),
        (("push", f"run={HOPPER}", "repo=me/a"), "set HF_TOKEN or run `hf auth"),
        (("push", "run=no_such", "to=x"), "no_such"),
        (("pull", f"run={HOPPER}", "repo=me/a"), "'pull' is no command; give push"),
        (("push", f"run={HOPPER}", "to=x", "video=no.mp4"), "video is 'no.mp4'"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)  # that of whoever tests
    with pytest.raises(UserError, match=message):
        main(list(arguments))
    assert not list(tmp_path.iterdir())


def test_the_model_card_is_one_that_the_hub_indexes(tmp_path):
    main(["push", f"run={HOPPER}", f"to={tmp_path / 'folder'}"])
    from huggingface_hub import ModelCard

    card = ModelCard.load(tmp_path / "folder" / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    (score,) = json.loads((HOPPER / "scores.json").read_text())
    assert values["mean_reward"].startswith(f"{score['return_mean']:.1f} +/- ")
    assert values["normalized_score"].startswith(f"{score['normalized_score_mean']:.1f} +/- ")
    assert card.data.eval_results[0].dataset_name == "Hopper-v5"
    for fact in ("Hopper-v5", "MuJoCo", "100 episodes", "sha256", "load_actor", "for 3,389: ret"):
        assert fact in card.text


@pytest.mark.parametrize("way", ["held", "chosen"])
def test_the_model_card_says_how_the_target_was_asked_for(tmp_path, way):
    run = shutil.copytree(HOPPER, tmp_path / "run")
    (score,) = json.loads((run / "scores.json").read_text())
    score["evaluation"][way] = True
    (run / "critic.safetensors").write_bytes(b"of the run")
    (run / "scores.json").write_text(json.dumps([score]))
    main(["push", f"run={run}", f"to={tmp_path / 'folder'}"])
    assert f"for 3,389, {way}: return" in (tmp_path / "folder" / "README.md").read_text()
    assert (tmp_path / "folder" / "critic.safetensors").read_bytes() == b"of the run"
