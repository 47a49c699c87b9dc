"""Wall time of `modelworks --help` and of `import modelworks`, whole processes, runs interleaved with a bare Python."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import record

COMMANDS = {
    "help": [str(Path(sys.executable).with_name("modelworks")), "--help"],
    "import": [sys.executable, "-c", "import modelworks"],
    "bare": [sys.executable, "-c", "pass"],
}
PROTOCOL = "Wall time of whole processes, output thrown away, one warm-up run each, then all three in turn."


def seconds(command: list[str]) -> float:
    """Wall time of one run. Raises SystemExit when it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-1000:]}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--publish", action="store_true", help="keep the result and add its row to docs/benchmarks.md")
    options = parser.parse_args()
    for command in COMMANDS.values():
        seconds(command)
    runs = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(options.runs)]
    every = {name: [run[name] for run in runs] for name in COMMANDS}
    cells = [options.runs, *(record.spread(every[name], 3) + " s" for name in COMMANDS)]
    line = record.row([record.machine_words(record.machine()), record.commit(), *cells])
    print(line)
    if options.publish:
        medians = {name: statistics.median(values) for name, values in every.items()}
        print(record.write("startup", PROTOCOL, runs, medians))
        record.publish("startup", line)


if __name__ == "__main__":
    main()
