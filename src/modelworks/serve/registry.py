"""What is served under which name: language models, and assistants that answer from passages."""

from __future__ import annotations

import time
from typing import Any

from modelworks.base.errors import UserError, nearest

from .errors import ApiError


class Registry:
    """name -> entry. An entry with `answer` is an assistant: its answers are checked whole, not sampled freely."""

    def __init__(self, models: dict[str, Any]) -> None:
        if not models:
            raise UserError("there is no model to serve; name at least one model directory.")
        for name in models:
            if not name or len(name) > 200 or not name.isprintable():
                raise UserError(f"{name!r} cannot be the name of a model; use 1 to 200 printable characters.")
        self.models = dict(models)
        self.created = int(time.time())

    def find(self, name: str) -> Any:
        """Raises ApiError 404 where nothing has that name."""
        if name not in self.models:
            hint = nearest(name[:200], list(self.models))
            raise ApiError(404, f"there is no model of that name here{hint}.", "model_not_found", "model")
        return self.models[name]

    def describe(self, name: str) -> dict[str, Any]:
        """The entry as OpenAI's API lists it, with the title and examples that our page shows."""
        entry = self.find(name)
        told = getattr(entry, "about", None) or {}
        extra = {key: told[key] for key in ("title", "description", "examples") if key in told}
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "modelworks",
            "grounded": hasattr(entry, "answer"),
            **extra,
        }
