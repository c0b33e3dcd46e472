"""Does a crash, a full disk, a rival or a late riser ever leave anything inconsistent? What `tests/test_crash.py` tries, many times more, and what takes long.

    python benchmarks/chaos.py                    # everything: about an hour on one core
    python benchmarks/chaos.py --quick            # a little of each, without kernels: under a minute on an idle core
    python benchmarks/chaos.py --only kills disk  # some claims
    python benchmarks/chaos.py --json

Results are kept in `.mltrader/chaos.json` by claim: a run that is broken off goes on where it was, until each claim has its count (`--again` starts
anew; so does a change of the code). A *fault* is anything that one of the checks of `tests/test_crash.py` refuses: a database that is not whole,
a hash or a link that does not fit, a champion that does not serve, a run that hangs, results of the next cycle that differ from those of an unbroken
one, an error that does not name file and cause. What cannot be tried here (no right to mount) is named, and no fault. Exits with 1 if there is a fault.

kill -9 and SIGSTOP test processes, not power: what the kernel has taken over survives them. That files are flushed before they are renamed, and
folders after, is in the order of the fail-points (`flush:before`, `rename:before`, `rename:after`).
"""
import argparse
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import crash  # noqa: E402
import pytest  # noqa: E402
import test_crash as checks  # noqa: E402
from conftest import copy_project  # noqa: E402

from mltrader import reports  # noqa: E402
from mltrader import store as db  # noqa: E402
from mltrader.config import home as state_folder  # noqa: E402

Trial = Callable[[crash.Stage, int], None]


def a_kill(stage: crash.Stage, number: int) -> None:
    """At a random moment; every tenth cycle computes its folds and all the rest for real."""
    draw, home, real = random.Random(f"kill {number}"), stage.home(), number % 10 == 9
    if real:
        shutil.rmtree(home / "folds")
    if not hasattr(stage, "length"):
        stage.length = {real: stage.run(stage.home(), real=real)[1]["seconds"] for real in (False, True)}
    pid = stage.start(home, real=real)
    time.sleep(draw.random() * stage.length[real])
    os.kill(pid, signal.SIGKILL)
    stage.wait(pid)
    found = checks.broken(home)
    stage.between = getattr(stage, "between", 0) + (found["runs"][0]["status"] == "running")
    if number % 20 == 0:
        with pytest.MonkeyPatch.context() as patch:
            checks.serves(home, patch)
    if real and found["runs"][0]["status"] != "success":
        code, told = stage.run(home, real=True)
        assert code == 0 and told["results"] == stage.whole["results"] and crash.faults(home) == [] == crash.left_over(home), told
    else:
        checks.mended(stage, home)
    shutil.rmtree(home)


def a_step(stage: crash.Stage, number: int) -> None:
    """A kill at the n-th of all durable steps of a cycle."""
    home = stage.home()
    assert stage.run(home, f"*#{number + 1}")[0] == -signal.SIGKILL
    checks.broken(home)
    checks.mended(stage, home)
    shutil.rmtree(home)


def a_write(name: str) -> Trial:
    def trial(stage: crash.Stage, number: int) -> None:
        home = stage.home()
        code, told = stage.run(home, f"*#{number + 1}={name}")
        checks.broken(home)
        assert code == 1 and os.strerror(getattr(errno, name)) in told["error"] and str(home) in told["error"] and crash.left_over(home) == [], told
        checks.mended(stage, home)
        shutil.rmtree(home)

    return trial


def a_race(stage: crash.Stage, _: int) -> None:
    """Eight at once."""
    checks.a_race(stage)


def a_late_riser(stage: crash.Stage, number: int) -> None:
    draw = random.Random(f"late {number}")
    point = draw.choice(["files:after", "product:before", "product:after", "promote:before", "promote:after", "close:before", "manifest:before"])
    often = point in checks.OFTEN
    checks.wakes_up_too_late(stage, f"{point}#{draw.randint(1, 15) if often else 1}")


def a_flip(stage: crash.Stage, number: int) -> None:
    if not hasattr(stage, "kinds"):
        stage.flipped, stage.kinds = checks.a_home_to_spoil(stage)
    checks.flip(random.Random(f"flip {number}"), stage.kinds[number % 4], stage.flipped)


def readers(stage: crash.Stage, _: int) -> None:
    """100 promotions, 4 readers."""
    checks.read_while_promoting(stage, times=100, readers=4)


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def a_full_disk(stage: crash.Stage, number: int) -> None:
    """A file system with a little more room than the home needs, or with a little more for artifacts, products or reports alone; room is made, and the cycle repeated."""
    part = ("", "artifacts", "products", "reports")[number % 4]
    home = stage.home()
    where = home / part if part else home
    used = sum(path.stat().st_size for path in where.rglob("*") if path.is_file()) / 2**20
    spare = {"": 0.3, "artifacts": 0.1, "products": 0.02, "reports": 0.02}[part] * (1 + number // 4)
    aside = where.rename(where.with_name(where.name + ".aside"))
    with small_disk(where, used * 1.15 + 0.3 + spare):
        shutil.copytree(aside, where, dirs_exist_ok=True)
        before = crash.state(home)["champion"]["name"]
        code, told = stage.run(home)
        stage.full = getattr(stage, "full", 0) + (code != 0)
        if code:
            assert "No space left" in told["error"] or "disk is full" in told["error"], told
        found = checks.broken(home)
        assert before == "production_v1" and crash.left_over(home) == []
        assert found["runs"][0]["status"] in (("success",) if code == 0 else ("failed", "running", "success")), (code, told)
        shutil.copytree(where, stage.folder / f"kept_{number}")
    wider = stage.folder / f"wider_{number}"
    if part:
        shutil.copytree(home, wider, ignore=lambda path, names: [n for n in names if n in (part, f"{part}.aside")])
        shutil.copytree(stage.folder / f"kept_{number}", wider / part)
    else:
        shutil.copytree(stage.folder / f"kept_{number}", wider)
    checks.mended(stage, wider, killed=False)


class Kernels:
    """A project in which whole builds run with kernels, made when first needed."""

    project: Any = None

    @classmethod
    def get(cls) -> Any:
        if cls.project is None:
            cls.project = copy_project(Path(tempfile.mkdtemp()) / "mltrader")
            done = cls.project.call("mltrader", "cycle", "--as-of", "2021-12-31", timeout=1200)
            assert done.returncode in (0, 3), done.stderr
        return cls.project

    @classmethod
    def begin(cls, day: str) -> subprocess.Popen:
        made = cls.get()
        return subprocess.Popen(["mltrader", "cycle", "--as-of", day], cwd=made.root, env=made.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

    @staticmethod
    def wait_within(child: subprocess.Popen, draw: random.Random) -> bytes:
        """Wait until a random task has begun, and up to three seconds more; returns what the build has told by then."""
        told, step = b"", f"[{draw.randint(1, 15)}/16]".encode()
        while step not in told:
            more = os.read(child.stderr.fileno(), 4096)
            assert more, f"the build ended before task {step!r}: {told!r}"
            told += more
        time.sleep(3 * draw.random())
        return told


def a_kill_with_kernels(_: crash.Stage, number: int) -> None:
    """kill -9 of a build and its kernels at a random moment; then `verify`, and the same build again, which resumes at once and leaves nothing to do."""
    made, draw, day = Kernels.get(), random.Random(f"kernels {number}"), f"2022-0{number % 5 + 1}-28"
    child = Kernels.begin(day)
    Kernels.wait_within(child, draw)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    verified = made.call("mltrader", "verify")
    assert verified.returncode == 0, verified.stdout
    done = made.call("mltrader", "cycle", "--as-of", day, timeout=1200)
    assert done.returncode in (0, 3), done.stderr
    with db.Store(f"sqlite:///{made.home / 'mltrader.db'}", create=False).read() as conn:
        assert conn.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok" and "running" not in [run["status"] for run in db.runs(conn)]
        assert db.runs(conn)[0]["status"] == "success" and db.runs(conn)[0]["as_of"].isoformat() == day
    assert made.call("mltrader", "verify").returncode == 0 and "Nothing to do" in made.call("mltrader", "cycle", "--as-of", day).stdout


def a_termination_with_kernels(_: crash.Stage, number: int) -> None:
    """SIGTERM at a random moment of a build with kernels: `interrupted`, exit code 130, within 10 seconds, no traceback."""
    made, draw, day = Kernels.get(), random.Random(f"term {number}"), f"2022-1{number % 2}-15"
    child = Kernels.begin(day)
    told = Kernels.wait_within(child, draw)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    errors = (told + child.communicate(timeout=60)[1]).decode()
    took = time.monotonic() - began
    with db.Store(f"sqlite:///{made.home / 'mltrader.db'}", create=False).read() as conn:
        run, lease = db.runs(conn)[0], db.current_lease(conn)
    assert child.returncode == 130 and run["status"] == "interrupted" and lease["holder"] is None, errors
    assert took < 10 and "Traceback" not in errors, (took, errors)


def a_clock(_: crash.Stage, number: int) -> None:
    """Clocks set forward and back, summer time, leap day, year's end: the tests of leases, in a process of their own."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-c", str(ROOT / "tests" / "pytest.ini"), "-n", "0", "-q", str(ROOT / "tests" / "test_crash.py"), "-k", "clock or summer or provably"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


CLAIMS: dict[str, tuple[str, Trial, int, int]] = {  # name: what is claimed, a trial, how many of them, and how many with --quick
    "kills": ("killed at a random moment: consistent, served, mended with the same digest", a_kill, 200, 10),
    "steps": ("killed at every durable step of a cycle: the same", a_step, 0, 10),
    "enospc": ("every write of a cycle fails in turn, no space left", a_write("ENOSPC"), 0, 5),
    "eio": ("every write of a cycle fails in turn, input/output error", a_write("EIO"), 0, 5),
    "races": ("8 orchestrators at once: 1 runs, 7 exit 75", a_race, 50, 2),
    "late": ("a stopped holder that wakes up after takeover is refused", a_late_riser, 50, 2),
    "flips": ("a random byte flipped in artifact, model, product, manifest: found before parsing", a_flip, 1000, 200),
    "readers": ("100 promotions under 4 readers: only old or new, always whole", readers, 5, 1),
    "disk": ("a disk that fills up (home, artifacts, products, reports), then has room", a_full_disk, 12, 0),
    "clocks": ("clock set by an hour or a year, summer time, leap day: leases", a_clock, 1, 1),
    "kernels": ("killed at a random moment of a build with kernels", a_kill_with_kernels, 5, 0),
    "terminations": ("SIGTERM during a build with kernels: interrupted within 10 s, no traceback", a_termination_with_kernels, 3, 0),
}


def try_claim(name: str, stage: crash.Stage, kept: dict[str, Any], target: int, save: Callable[[], None]) -> None:
    """Go on with a claim until it has its count."""
    trial = CLAIMS[name][1]
    while kept["count"] < target and not kept.get("not tried"):
        began = time.monotonic()
        try:
            trial(stage, kept["count"])
        except PermissionError as error:
            kept["not tried"] = str(error)
            continue
        except Exception as error:
            kept["faults"].append(f"{kept['count']}: {type(error).__name__}: {str(error)[:300]}")
        kept["count"] += 1
        kept["seconds"] += time.monotonic() - began
        save()
    if name == "kills" and hasattr(stage, "between"):
        kept["note"] = f"{stage.between} between first durable write and last commit"
    if name == "disk" and hasattr(stage, "full"):
        kept["note"] = f"the disk was full in {stage.full}"
    save()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    parser.add_argument("--only", nargs="+", choices=list(CLAIMS), default=list(CLAIMS))
    arguments = parser.parse_args()
    file = state_folder() / ("chaos_quick.json" if arguments.quick else "chaos.json")
    code = crash_digest()
    known = json.loads(file.read_bytes()) if file.is_file() and not arguments.again else {}
    if known.get("code") != code:
        known = {"code": code, "claims": {}}

    def save() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**known, "at": datetime.now(UTC).isoformat()}, indent=1))

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    stage = crash.Stage(folder)
    try:
        steps = sum(stage.run(stage.home())[1]["passed"].values())
        for name in arguments.only:
            target = CLAIMS[name][3] if arguments.quick else CLAIMS[name][2] or steps
            if target:
                kept = known["claims"].setdefault(name, {"count": 0, "faults": [], "seconds": 0.0})
                print(f"{name}: {kept['count']} of {target} so far …", file=sys.stderr, flush=True)
                try_claim(name, stage, kept, target, save)
    finally:
        stage.close()
        shutil.rmtree(folder, ignore_errors=True)
        if Kernels.project is not None:
            shutil.rmtree(Kernels.project.root.parent, ignore_errors=True)
    found = {name: known["claims"][name] for name in arguments.only if name in known["claims"]}
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"{'claim':<84} {'count':>6} {'faults':>6} {'seconds':>8}")
        for name, kept in found.items():
            note = f"  not tried: {kept['not tried']}" if kept.get("not tried") else f"  {kept.get('note', '')}"
            print(f"{CLAIMS[name][0]:<84} {kept['count']:>6} {len(kept['faults']):>6} {kept['seconds']:>8.1f}{note.rstrip()}")
        for name, kept in found.items():
            for fault in kept["faults"][:5]:
                print(f"  {name}: {fault}")
        for name in set(arguments.only) - set(found):
            print(f"  not run with --quick: {CLAIMS[name][0]}")
    return int(any(kept["faults"] for kept in found.values()))


def crash_digest() -> str:
    """Of the code under trial and of the trials."""
    from mltrader.core import digest_json

    return digest_json({**reports.code_digests(ROOT), **{path.name: path.read_text() for path in (ROOT / "tests" / "crash.py", ROOT / "tests" / "test_crash.py", Path(__file__))}})


if __name__ == "__main__":
    sys.exit(main())
