"""What it costs that a run tells its story: processor time of everything that looks, writes and shows, on `char-lm`.

    python bench/train/story.py --data FILE [--steps 365] [--publish]

The recipe runs in this process, on one thread, with a terminal, TensorBoard, samples and histograms on. Each part is
timed by its own thread's clock, so that other work on the machine does not count; what is left of the run is steps.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

PROTOCOL = (
    "CPU seconds by thread clocks, one thread, one run; evaluations are not counted as steps; the panel by wall time."
)
spent: dict[str, float] = {}


def timed(owner: Any, name: str, part: str) -> None:
    """Count the processor time of a method under `part`."""
    inner: Callable[..., Any] = getattr(owner, name)

    def around(*given: Any, **named: Any) -> Any:
        start = time.thread_time()
        try:
            return inner(*given, **named)
        finally:
            spent[part] = spent.get(part, 0.0) + time.thread_time() - start

    setattr(owner, name, around)


def terminal() -> None:
    """A terminal for stderr that nobody looks at."""
    reader, writer = os.openpty()

    def drain() -> None:
        while os.read(reader, 65536):
            pass

    threading.Thread(target=drain, daemon=True).start()
    sys.stderr = os.fdopen(writer, "w", buffering=1)
    os.environ.pop("CI", None)
    os.environ.pop("MODELWORKS_QUIET", None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a text file")
    parser.add_argument("--steps", type=int, default=365)
    parser.add_argument("--evaluate-every", type=int, default=73)
    parser.add_argument("--publish", action="store_true", help="keep the result and add its row to docs/benchmarks.md")
    options = parser.parse_args()
    os.environ["MODELWORKS_THREADS"] = "1"
    terminal()
    import rich.live
    import torch.utils.tensorboard  # noqa: F401 - its import is not counted

    from modelworks.recipes import front
    from modelworks.train import histograms, hooks, log, loop, samples

    timed(log.Log, "__call__", "log and line")
    timed(histograms.Histograms, "__call__", "histograms")
    timed(histograms.Histograms, "_look", "histograms")
    timed(samples.Samples, "__call__", "samples")
    timed(hooks.Evaluate, "_measure", "evaluation")
    timed(rich.live.Live, "refresh", "panel")
    timed(hooks.Save, "__call__", "checkpoints")
    timed(loop, "train", "all")
    clock = time.monotonic()
    front.train = loop.train  # type: ignore[attr-defined]
    from modelworks.recipes.stages import train as stage

    stage.train = loop.train
    with tempfile.TemporaryDirectory(prefix="story-") as folder:
        settings = [f"budget.steps={options.steps}", f"evaluate_every={options.evaluate_every}"]
        settings += ["evaluate_tokens=20000", "track=[tensorboard]"]
        given = [f"data={options.data}", *(f"stages.model.{setting}" for setting in settings)]
        front.run("char-lm", given, out=folder)
    wall = time.monotonic() - clock
    looks = options.steps // options.evaluate_every
    steps = spent["all"] - spent["evaluation"] - spent["histograms"] - spent["log and line"] - spent["checkpoints"]
    shares = {part: spent[part] / steps for part in ("log and line", "histograms", "samples")}
    shares["panel"] = spent["panel"] / wall  # it is drawn by the clock, however many steps are taken
    print("CPU seconds:", {part: round(value, 3) for part, value in spent.items()}, file=sys.stdout)
    cells = [options.steps, looks, f"{steps / options.steps * 1e3:.2f} ms"]
    cells += [f"{share:.2%}" for share in shares.values()]
    line = record.row([record.machine_words(record.machine()), record.commit(), *cells])
    print(line)
    if options.publish:
        print(record.write("train_story", PROTOCOL, [dict(spent)], {**shares, "step_seconds": steps / options.steps}))
        record.publish("train_story", line)


if __name__ == "__main__":
    main()
