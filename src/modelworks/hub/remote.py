"""The Hugging Face hub: a name becomes a folder in the local cache; the network is touched only here."""

from __future__ import annotations

import re
from pathlib import Path

from ..base.errors import FailureError, UserError

WANTED = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "README.md")
REFUSED = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*/*")


def fetch(name: str) -> Path:
    """The local copy of a model on the hub, downloaded when it is not in the cache yet (resumed, checksummed).

    Raises UserError when `name` can be no hub name or the hub does not know it; FailureError when the hub is
    out of reach and nothing is cached.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        raise UserError(f"{name}: there is no such folder; check the path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED), ignore_patterns=list(REFUSED)))
    except RepositoryNotFoundError:
        raise UserError(f"{name}: neither a folder here nor a model on the hub; check the name.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        raise FailureError(
            f"{name}: there is no such folder, and the Hugging Face hub cannot be reached; "
            "give the path of a downloaded model, or connect and try again."
        ) from None
