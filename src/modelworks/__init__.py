"""modelworks: raw data in, working model out.

    import modelworks as mw

    model = mw.load("runs/demo/base")
    print(model.generate("This is an example of", max_new_tokens=40))
    mw.run("demo")

Names are looked up when first used, so importing this costs milliseconds and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelworks.recipes.front import facts, load, run

__version__ = "0.1.0"
__all__ = ["facts", "load", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from modelworks.recipes import front

        return getattr(front, name)
    raise AttributeError(f"module 'modelworks' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
