"""Broken files for every reader of foreign ones, for longer than the tests have time for.

    python benchmarks/fuzz.py                       # 60 CPU-seconds a reader
    python benchmarks/fuzz.py --quick               # 2
    python benchmarks/fuzz.py --seconds 20 --only "bars csv" --seed 7
    python benchmarks/fuzz.py --json

Each reader gets good files that hypothesis has spoilt, and values of every kind in their places (`tests/fuzz.py` says how). It may read a file, or refuse it in the
package's own words; another exception, 20 seconds for one file, or a file written outside its folder is a fault. Files that show one are kept in --folder.
Exits with 1 if there is a fault. It counts faults, not seconds; there is no peer.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from timing import document, line, show, versions_of

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU-seconds a reader")
    parser.add_argument("--only", action="append", help="this reader; may be given more than once")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the draws; printed, so that a fault can be found again")
    parser.add_argument("--folder", type=Path, help="where files that show a fault are kept")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    from fuzz import TARGETS, feed

    seconds, folder, rows, told = 2.0 if chosen.quick else chosen.seconds, chosen.folder or Path(tempfile.mkdtemp(prefix="fuzz_")), [], []
    for name in chosen.only or TARGETS:
        tried, faults = feed(name, folder / name.replace(" ", "_"), seconds, chosen.seed)
        told += faults
        rows.append(line(f"faults of {name}", len(faults), 0, not faults, f"{tried:,} files, {seconds:g} CPU-s", least=False))
        print(f"{name}: {tried:,} files, {len(faults)} faults", *faults, sep="\n  ", file=sys.stderr, flush=True)
    libraries = ("hypothesis", "pandas", "pyarrow", "SQLAlchemy")
    if chosen.json:
        print(json.dumps(document(rows, libraries, chosen.quick, seed=chosen.seed, faults=told), indent=1))
    else:
        show(rows)
        print(f"seed {chosen.seed}; {', '.join(f'{name} {version}' for name, version in versions_of(libraries).items())}; files that show a fault: {folder}")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
