"""The Hugging Face hub: a name becomes a checked folder of the local cache; the network is touched only here.

`name` or `name@revision` (a branch, a tag, a commit). Only what is read is fetched: settings, tokenizer,
safetensors. Code of a repository is neither fetched nor run, pickles neither fetched nor opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..base import files, log
from ..base.errors import DamagedError, FailureError, UserError

NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@([A-Za-z0-9][\w./-]*))?", re.ASCII)
WANTED = re.compile(
    r"[\w.-]+\.(json|jinja)|(tokenizer|spiece|sentencepiece[\w.]*)\.model|vocab\.txt|merges\.txt|README\.md"
    r"|(model(-\d+-of-\d+)?|adapter_model)\.safetensors|\d+_[A-Z]\w+/config\.json"
)
PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|h5|msgpack)")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def fetch(name: str, accept: Callable[[Any], object] | None = None) -> Path:
    """The local copy of a model on the hub, downloaded where the cache lacks something.

    `accept` is shown the parsed config.json before the weights are fetched and may raise. Every file's SHA-256
    (git's SHA-1 for small ones) is checked against the hub's, whether it came now or earlier. Where the hub
    cannot be reached, is switched off (HF_HUB_OFFLINE=1) or refuses, the copy in the cache is used.

    Raises UserError when `name` can be no hub name, the hub does not know it or its revision, the repository is
    gated, or holds no safetensors; FailureError when the hub is out of reach and the cache has no whole copy;
    DamagedError naming a file that is not what the hub has.
    """
    parsed = NAME.fullmatch(name)
    if not parsed or ".." in name or "--" in name:
        raise UserError(f"{name}: there is no such folder; check the path.")
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.errors import LocalEntryNotFoundError as Unanswered
    from huggingface_hub.errors import OfflineModeIsEnabled as Offline

    repository, revision = parsed[1], parsed[2]
    fresh: set[Path] = set()
    try:
        folder = _download(repository, revision, accept, fresh)
    except RevisionNotFoundError:
        raise UserError(f"{name}: the hub has {repository}, but no revision '{revision}' of it.") from None
    except (HfHubHTTPError, httpx2.TransportError, Unanswered, Offline) as error:
        unknown = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
        cached = None if unknown else _cached(repository, revision)
        if cached is None:
            raise _refusal(name, repository, error) from None
        if not isinstance(error, Offline):
            log.say(f"{name}: the hub gave nothing ({_short(error)}); the copy in the cache is used.")
        folder = cached
    _check(folder, name, fresh)
    return folder


def _refusal(name: str, repository: str, error: Exception) -> UserError | FailureError:
    """The sentence for what the hub, or the way to it, answered."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return UserError(
            f"{name}: is gated; accept its terms at {constants.ENDPOINT}/{repository}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{name}: neither a folder here nor a model on the hub; check the name (a private one needs HF_TOKEN)."
        )
    if isinstance(error, HfHubHTTPError):
        return FailureError(
            f"{name}: the hub answers {error.response.status_code} and the cache has no whole copy; try again later."
        )
    return FailureError(
        f"{name}: there is no such folder, the Hugging Face hub cannot be reached ({_short(error)}) and the cache has "
        "no whole copy; give the path of a downloaded model, or connect and try again."
    )


def _short(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    response = getattr(error, "response", None)
    if response is not None:
        return f"it answers {response.status_code}"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]


def _download(repository: str, revision: str | None, accept: Callable[[Any], object] | None, fresh: set[Path]) -> Path:
    """Bring what is wanted into the hub's own cache (so `transformers` finds it too), config.json first.

    The files that came now, hence were checked now, are added to `fresh`.
    """
    from huggingface_hub import constants, hf_hub_url, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    from . import download

    # Else the library asks the hub for a list of programs to look for on this machine, and reports what it finds.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    info = _about(repository, revision)
    listed = [file.rfilename for file in info.siblings or []]
    wanted = {file.rfilename: file for file in info.siblings or [] if WANTED.fullmatch(file.rfilename)}
    if not any(name.endswith(".safetensors") for name in wanted):
        pickles = [name for name in listed if PICKLE.fullmatch(name)]
        raise UserError(
            f"{repository}: holds only pickles ({pickles[0]}), which can run code when opened and are refused; look "
            "for a safetensors version." if pickles else f"{repository}: holds no model.safetensors."
        )  # fmt: skip
    cache = Path(constants.HF_HUB_CACHE)
    stem = repo_folder_name(repo_id=repository, repo_type="model")
    for name in sorted(wanted, key=lambda name: (name != "config.json", name)):
        file = wanted[name]
        digest, size = (file.lfs.sha256, file.lfs.size) if file.lfs else (file.blob_id, file.size)
        if size is None or not DIGEST.fullmatch(digest or ""):
            raise FailureError(f"{repository}: the hub does not say the checksum of {name}; it was not fetched.")
        blob = cache / stem / "blobs" / digest
        if not blob.exists():
            url = hf_hub_url(repository, name, revision=info.sha)
            download.fetch(url, blob, size, digest, f"{repository}/{name}", cache / ".locks" / stem / f"{digest}.lock")
            fresh.add(blob.resolve())
        if name == "config.json" and accept is not None:
            accept(files.read_json(blob))
    # What is left to do is to link the files into a folder, which is the hub library's own business.
    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(wanted), tqdm_class=_silent()))


def _about(repository: str, revision: str | None) -> Any:
    """What the hub says of a repository: its commit, its files with sizes and digests."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        return HfApi().model_info(repository, revision=revision, files_metadata=True)
    except HFValidationError:
        raise UserError(f"{repository}: there is no such folder; check the path.") from None
    except (ValueError, KeyError, TypeError):  # a hotel's log-in page, a proxy's apology
        raise httpx2.RemoteProtocolError("what answers in its place is no hub") from None


def _silent() -> Any:
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})

    return Silent


def _cached(repository: str, revision: str | None) -> Path | None:
    """The whole copy in the cache, if there is one; no network."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        names = [file.path for file in get_cached_repo_tree(repository, revision=revision)]
    except CachedRepoTreeNotFoundError:  # brought by another program, file by file
        names = []
    wanted = [name for name in names if WANTED.fullmatch(name)] or None
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=wanted))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").exists() and any(folder.glob("*.safetensors")) else None


def _check(folder: Path, name: str, fresh: set[Path]) -> None:
    """Every file of a snapshot against the digest that it is stored under. Raises DamagedError."""
    from . import download

    for path in sorted(path for path in folder.rglob("*") if WANTED.fullmatch(path.relative_to(folder).as_posix())):
        blob = path.resolve()
        if DIGEST.fullmatch(blob.name) and blob not in fresh and not download.same(blob, blob.name):
            raise DamagedError(
                f"{path}: is damaged (its checksum is not the hub's); delete {blob} and load {name} again."
            )
