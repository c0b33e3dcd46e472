"""The loop a quant lives in, over Jupyter's own API: open, restart and run all, change a feature, export, build, look at the difference."""
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
import uuid

import pytest
from conftest import Project, copy_built

TOKEN = "t0ken"


@pytest.fixture(scope="module")
def project(built, tmp_path_factory) -> Project:
    """The project after one build, as a git repository of its own."""
    made = copy_built(built, tmp_path_factory.mktemp("loop") / "mltrader")
    for command in (["git", "init", "-q"], ["git", "add", "-A"], ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start"]):
        assert made.call(*command).returncode == 0, command
    assert "Nothing to do" in made.call("ploomber", "build").stdout  # although it has moved to another folder
    return made


@pytest.fixture(scope="module")
def server(project):
    """JupyterLab as `make lab` starts it, on a free port, without a browser."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = re.search(r"^lab:.*\n\t@?(.*)$", (project.root / "Makefile").read_text(), re.M)[1].replace("$(BIN)", ".venv/bin").split()
    child = subprocess.Popen([*command, "--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={TOKEN}"], cwd=project.root, env=project.environment(),
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    base = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            ask(base, "/api/status")
            break
        except OSError:
            assert child.poll() is None, child.stderr.read().decode()
            time.sleep(0.2)
    yield base
    os.killpg(child.pid, signal.SIGTERM)
    child.wait(timeout=30)


def ask(base: str, path: str, method: str = "GET", body: dict | None = None) -> dict:
    request = urllib.request.Request(base + path, method=method, data=json.dumps(body).encode() if body is not None else None,
                                     headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        text = reply.read()
    return json.loads(text) if text else {}


def restart_and_run_all(base: str, notebook: dict, path: str) -> list[dict]:
    """Start a session as JupyterLab does, run every code cell over the websocket, fill in the outputs; returns the errors."""
    import websocket

    session = ask(base, "/api/sessions", "POST", {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}})
    channel = websocket.create_connection(f"{base.replace('http', 'ws')}/api/kernels/{session['kernel']['id']}/channels?token={TOKEN}", timeout=120)
    errors = []
    for number, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), 1):
        message = uuid.uuid4().hex
        channel.send(json.dumps({"header": {"msg_id": message, "msg_type": "execute_request", "username": "t", "session": "s", "date": "2024-01-01T00:00:00Z", "version": "5.3"}, "parent_header": {},
                                 "metadata": {}, "channel": "shell", "content": {"code": "".join(cell["source"]), "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}}))
        cell["execution_count"], cell["outputs"] = number, []
        while True:
            reply = json.loads(channel.recv())
            if reply["parent_header"].get("msg_id") != message:
                continue
            kind, content = reply["msg_type"], reply["content"]
            if kind == "error":
                errors.append({"cell": "".join(cell["source"])[:200], **content})
            if kind in ("execute_result", "display_data"):
                cell["outputs"].append({"output_type": kind, "data": content["data"], "metadata": content["metadata"], **({"execution_count": number} if kind == "execute_result" else {})})
            if kind == "stream":
                cell["outputs"].append({"output_type": "stream", "name": content["name"], "text": content["text"]})
            if kind == "status" and content["execution_state"] == "idle":
                break
    channel.close()
    ask(base, f"/api/sessions/{session['id']}", "DELETE")
    return errors


def difference(project: Project) -> list[str]:
    """Added and removed lines of `git diff`."""
    text = project.call("git", "diff", "-U0").stdout
    return [line for line in text.splitlines() if re.match(r"[+-](?![+-])", line)]


@pytest.mark.parametrize("name", ["11_features", "13_labels", "60_orchestrator"])
def test_restart_and_run_all_leaves_no_trace(project, server, name):
    """Every cell runs on the last run's products, nothing is stored, and saving the notebook changes nothing in git."""
    before = {p: p.read_bytes() for p in (project.home / "products").rglob("outputs.json")}
    model = ask(server, f"/api/contents/{name}.ipynb")
    errors = restart_and_run_all(server, model["content"], f"{name}.ipynb")
    assert errors == []
    outputs = [o for c in model["content"]["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert any("Dry run" in str(o.get("text")) for o in outputs)
    assert any("image/png" in o.get("data", {}) for o in outputs)
    model["content"]["metadata"]["papermill"] = {"input_path": str(project.root)}
    ask(server, f"/api/contents/{name}.ipynb", "PUT", {"type": "notebook", "format": "json", "content": model["content"]})
    assert project.call("git", "status", "--porcelain").stdout == ""
    assert {p: p.read_bytes() for p in before} == before


def test_every_notebook_opens(project, server):
    for path in sorted((project.root / "nbs").glob("*.ipynb")):
        assert ask(server, f"/api/contents/{path.name}")["type"] == "notebook"


def test_changing_one_feature_reruns_what_depends_on_it(project, server):
    """Edit over the API, forget the export (refused), export, build: the right tasks rerun, the report shows it, the diff is the edit."""
    was = json.loads((project.home / "products" / "features" / "outputs.json").read_bytes())["digest"]
    model = ask(server, "/api/contents/11_features.ipynb")
    cell = next(c for c in model["content"]["cells"] if c["source"].startswith("#| export") and '(f"log_return_{n}"' in c["source"])
    old = cell["source"]
    cell["source"] = re.sub(r"\b250\b", "240", old, count=1)
    assert cell["source"] != old
    ask(server, "/api/contents/11_features.ipynb", "PUT", {"type": "notebook", "format": "json", "content": model["content"]})
    refused = project.call("ploomber", "build")
    assert refused.returncode != 0 and "nbdev_export" in refused.stdout + refused.stderr
    assert project.call("nbdev_export").returncode == 0
    changed = set(project.call("git", "diff", "--name-only").stdout.split())
    assert changed == {"nbs/11_features.ipynb", "mltrader/features.py"}
    lines = difference(project)
    assert 2 <= len([line for line in lines if not re.match(r"[+-]# %% ", line)]) <= 4, lines

    done = project.call("ploomber", "build")
    assert done.returncode == 0, done.stderr[-2000:]
    ran = re.findall(r"^\[\d+/\d+\] (\w+)", done.stderr, re.M)
    from mltrader.reports import PIPELINE

    expected, grown = {"features"}, True
    while grown:
        more = {t for t, s in PIPELINE.items() if expected & set(s.upstream)} - expected
        expected, grown = expected | more, bool(more)
    assert set(ran) == expected and {"market", "regimes", "labels"}.isdisjoint(ran)
    assert json.loads((project.home / "products" / "features" / "outputs.json").read_bytes())["digest"] != was
    newest = sorted((project.root / "reports").glob("run_*"))[-1]
    manifest = json.loads((newest / "manifest.json").read_bytes())
    assert manifest["tasks"]["market"]["status"] == "reused" and manifest["tasks"]["features"]["status"] == "ran"
    assert "reused" in (newest / "market.html").read_text()[:6000]
    assert "Nothing to do" in project.call("ploomber", "build").stdout


def test_nbdev_commands_leave_the_tree_clean(project):
    project.call("git", "add", "-A")
    project.call("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "edited", "--allow-empty")
    for command in ("nbdev_export", "nbdev_clean"):
        assert project.call(command).returncode == 0
    assert project.call("git", "status", "--porcelain").stdout == ""


def test_an_injected_cell_is_removed_and_the_tag_stays(project):
    """`ploomber nb --inject` and back again: no trace; nbdev_clean keeps the `parameters` tag."""
    assert project.call("ploomber", "nb", "--inject").returncode == 0
    assert project.call("git", "status", "--porcelain").stdout != ""
    assert project.call("ploomber", "nb", "--remove").returncode == 0
    assert project.call("nbdev_clean").returncode == 0
    assert project.call("git", "status", "--porcelain").stdout == ""
    for path in (project.root / "nbs").glob("[1-4]*.ipynb"):
        if "open_task" in path.read_text():
            assert '"parameters"' in path.read_text(), path.name
