"""modelworks: the gpt2 family without dropout under our loop, AdamW like the others, formats and settings chosen here.

What a user gets in a long run without setting a thing: `SETTINGS` holds only what asks for the machine's best. The
text goes through the objective and the loader of `causal_lm`, as one document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from task import Clock, Task

from modelworks.base.device import set_threads
from modelworks.data.loader import Documents, Loader
from modelworks.data.tokens import TokenData
from modelworks.models import gpt2
from modelworks.objectives.causal_lm import CausalLM
from modelworks.train.hooks import Hook
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.settings import TrainSettings

SETTINGS: dict[str, Any] = {"dtype": "auto", "tune": "auto"}  # as shipped


class Stamp(Hook):
    """Tells the clock that a step is over; first of the hooks, so that logging counts into the next step."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.loss = clock, float("nan")

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        self.clock.stamp()
        self.loss = logs["loss"]


def main() -> None:
    task = Task.read()
    set_threads(task.threads)
    clock = Clock(task)
    config = gpt2.Config(
        vocab_size=task.vocab, d_model=task.width, n_layers=task.layers, n_heads=task.heads, d_ff=4 * task.width,
        max_len=task.block, dropout=0.0,
    )  # fmt: skip
    settings = TrainSettings(
        **{
            "steps": task.steps, "rows": task.batch, "optimizer": "adamw", "learning_rate": 1e-3, "log_every": 10,
            "save_every": 1e9, "schedule": "constant", "warmup_steps": 0, "track": [], "seed": 1,
            **SETTINGS, **({"dtype": "float32"} if task.precision == "fp32" else {}), **task.settings,
        }
    )  # fmt: skip
    model = gpt2.build(config)
    data = TokenData.of([task.tokens().tolist()])
    loader = Loader(Documents(data, 0, task.block), task.batch, task.block, seed=1)
    clock.begin()
    run = start(model, CausalLM(loader, None), settings, Path(task.scratch), log=lambda text: print(text, flush=True))
    stamp = Stamp(clock)
    run.hooks.insert(0, stamp)
    train(run)
    clock.finish(stamp.loss, plan={key: value for key, value in run.plan.items() if key != "settings"})


if __name__ == "__main__":
    main()
