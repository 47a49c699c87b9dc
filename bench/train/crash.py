"""What a training run survives: killed, stopped, its checkpoints damaged, the disk full, the power cut; with a seed.

    python bench/train/crash.py [--only kill,damage] [--scale 0.01] [--seed 1] [--faults] [--publish]

A tiny recipe with all that a checkpoint must carry (tests/train/killer.py) runs undisturbed once and then disturbed at
random instants until the tries are reached; each run must end with the weights and the logged numbers of the
undisturbed one, bit for bit, and never go back behind what was saved. Then each guard is taken out in turn (--faults,
tests/train/faults.py) and the same trial must fail. Kills, damage and power cuts run in memory where there is a memory
file system (a kill leaves the page cache, and what the power takes is modelled), the full disk is a mounted file system
of 2 MB, and stops are timed on the disk of --folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

TESTS = record.ROOT / "tests" / "train"
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
PROTOCOL = " ".join(" ".join(str(__doc__).split("\n\n")[2:]).split())
TRIES = {"kill": 2000, "damage": 1000, "full": 200, "signal": 200, "power": 500}
WHAT = {
    "kill": "`kill -9` at a random instant",
    "damage": "newest checkpoint damaged (bits, pages, length, files missing or swapped)",
    "full": "disk full, then space again",
    "signal": "SIGTERM or SIGINT, also in an evaluation and in a save",
    "power": "power cut: what was not fsynced is gone",
}


def killer(what: str, count: int, seed: int, folder: str | None) -> dict[str, Any]:
    """One process of `killer.py`; what it reports."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MODELWORKS_QUIET": "1"}
    with tempfile.TemporaryDirectory(prefix="crash-", dir=folder) as place:
        command = [sys.executable, str(TESTS / "killer.py"), what, place, str(count), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def trial(what: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """A kind of disturbance, shared among the workers, each with a seed of its own; stops are timed by one alone."""
    workers = 1 if what == "signal" else min(options.workers, count)
    folder = options.folder if what in ("signal", "full") else MEMORY or options.folder
    shares = [count // workers + (number < count % workers) for number in range(workers)]
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        work = [pool.submit(killer, what, n, options.seed + number, folder) for number, n in enumerate(shares)]
        reports = [future.result() for future in work]
    out = {
        "what": what,
        "tries": sum(report["tries"] for report in reports),
        "runs": sum(report["runs"] for report in reports),
        "lost": sum(report["lost"] for report in reports),
        "seconds": round(time.perf_counter() - began, 1),
        "reports": reports,
    }
    print(f"{what}: {out['tries']} tries in {out['runs']} runs, {out['lost']} lost, {out['seconds']:.0f} s", flush=True)
    for report in reports:
        for text in report["wrong"]:
            print(f"  {text}", flush=True)
    return out


def notes(found: dict[str, Any]) -> str:
    """What else is worth saying about a kind."""
    reports = found["reports"]

    def total(name: str) -> int:
        return sum(report[name] for report in reports)

    if found["what"] == "kill":
        share = total("inside_a_save") / found["tries"]
        return f"{share:.0%} inside a save, {total('saved_beside') / found['tries']:.0%} of runs saving beside training"
    if found["what"] == "full":
        kind = "a real file system" if all(report["real_file_system"] for report in reports) else "injected"
        return (
            f"{kind}; {total('killed_while_full')} killed meanwhile, {total('full_at_the_end')} at the end of the run"
        )
    if found["what"] == "signal":
        where = ", ".join(f"{count} {name}" for name, count in reports[0]["where"].items())
        return f"median {reports[0]['median']:.2f} s, slowest {reports[0]['slowest']:.2f} s ({where})"
    if found["what"] == "power":
        return f"{total('all_lost_that_was_not_fsynced')} with all of it gone, the others with a part"
    kinds = sorted({kind for report in reports for kind in report["kinds"]})
    return ", ".join(f"{sum(report['kinds'].get(kind, 0) for report in reports)} {kind}" for kind in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TRIES), help="kinds, with commas between")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the tries; less is only a try")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that try at a time")
    parser.add_argument("--folder", help="where stops and the full disk are tried (default: the temporary folder)")
    parser.add_argument("--faults", action="store_true", help="take out each guard in turn and see it missed")
    parser.add_argument(
        "--publish", action="store_true", help="keep the result and put its table on docs/benchmarks.md"
    )
    options = parser.parse_args()
    runs = [trial(what, max(1, round(TRIES[what] * options.scale)), options) for what in options.only.split(",")]
    planted: dict[str, Any] = {}
    if options.faults:
        planted = killer("faults", 0, options.seed, MEMORY or options.folder)
        print(f"faults: {planted['caught']} of {len(planted['faults'])} caught; missed: {planted['missed'] or 'none'}")
    rows = []
    for found in runs:
        mine = [fault for fault in planted.get("faults", {}).values() if fault["trial"] == found["what"]]
        caught = f"{sum(bool(fault['wrong']) for fault in mine)} of {len(mine)}" if mine else "-"
        rows.append([WHAT[found["what"]], found["tries"], found["lost"], caught, notes(found)])
    table = record.table(["what", "tries", "runs lost", "guards taken out, found", "of these"], rows)
    print("\n".join(table))
    if options.publish:
        summary = {found["what"]: {key: found[key] for key in ("tries", "runs", "lost", "seconds")} for found in runs}
        path = record.write("crash", PROTOCOL, [*runs, planted], summary | {"seed": options.seed})
        facts = f"{record.machine_words(record.machine())}, commit {record.commit()}, seed {options.seed}, {path.name}"
        record.publish_table("crash", [*table, "", facts + "."])


if __name__ == "__main__":
    main()
