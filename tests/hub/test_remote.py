"""Models by hub name, against a stand-in server with planted faults: what arrives is whole, or one sentence says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modelworks.base.errors import DamagedError, FailureError, UserError
from modelworks.hub import directory, download, presets, remote

from .standin import Hub, Repository, running

WEIGHTS = "model.safetensors"
NAME = "someone/tiny"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny model's files, and what must never be fetched."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    model, family, config = presets.build("qwen3-nano", vocab_size=512)
    directory.save(folder, model, family, config)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"pytorch_model.bin": b"\x80\x02", "modeling_tiny.py": b"raise SystemExit", "onnx/model.onnx": b"-"}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, which this process takes for the hub; an empty cache."""
    from huggingface_hub import constants

    with running(Hub({NAME: Repository(dict(files))})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(download, "WAIT", 0.01)
        yield server


def parts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob(f"*{download.PART}"))


def test_a_name_becomes_the_model(hub: Hub, files: dict[str, bytes]) -> None:
    folder = remote.fetch(NAME)
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"config.json", "generation_config.json", "model.safetensors", "modelworks.json", "README.md"}
    assert all((folder / name).read_bytes() == files[name] for name in kept)
    asked = {path.rsplit("/", 1)[1] for _, path, _, _ in hub.sent if "/resolve/" in path or "/cdn/" in path}
    assert asked == kept  # neither pickles nor code were so much as asked for
    assert all(NAME in path for _, path, _, _ in hub.sent) and not any("torch" in agent for agent in hub.agents)
    assert directory.load(NAME).family == "qwen3"
    assert hub.bodies(WEIGHTS) == [("", len(files[WEIGHTS]))]  # once, though it was opened twice


def test_a_token_is_shown_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    remote.fetch(NAME)
    assert any(path.startswith("/cdn/") for _, path, _, _ in hub.sent) and hub.authorised == {"127.0.0.1"}


def test_the_cache_is_the_ecosystems(hub: Hub) -> None:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    folder = remote.fetch(NAME)
    assert try_to_load_from_cache(NAME, WEIGHTS) == str(folder / WEIGHTS)
    assert snapshot_download(NAME, local_files_only=True, allow_patterns=["*.safetensors"]) == str(folder)


def test_what_another_program_cached_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, hf_hub_download

    for name in ("config.json", WEIGHTS):
        path = hf_hub_download(NAME, name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert remote.fetch(NAME) == Path(path).parent


@pytest.mark.parametrize("resets", [False, True])
def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, files: dict[str, bytes], resets: bool) -> None:
    size = len(files[WEIGHTS])
    hub.cuts, hub.resets = {WEIGHTS: [300_000, 400_000]}, resets
    assert (remote.fetch(NAME) / WEIGHTS).read_bytes() == files[WEIGHTS]
    spans = [span for span, _ in hub.bodies(WEIGHTS)]
    starts = [int(span.removeprefix("bytes=").rstrip("-") or 0) for span in spans]
    assert starts == sorted(starts) and len(spans) == 3 and starts[0] == 0
    if not resets:  # what an RST throws away in flight is asked for again
        assert hub.bodies(WEIGHTS) == [("", 300_000), ("bytes=300000-", 400_000), ("bytes=700000-", size - 700_000)]


def test_a_server_without_ranges_starts_again(hub: Hub, files: dict[str, bytes]) -> None:
    hub.cuts, hub.ranges = {WEIGHTS: [300_000]}, False
    assert (remote.fetch(NAME) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert hub.bodies(WEIGHTS) == [("", 300_000), ("bytes=300000-", len(files[WEIGHTS]))]


def test_a_download_given_up_goes_on_in_the_next_call(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    size = len(files[WEIGHTS])
    hub.cuts = {WEIGHTS: [500_000] + [0] * download.TRIES}
    with pytest.raises(
        FailureError, match=rf"tiny/model.safetensors: the download stopped at 500,000 of {size:,} bytes"
    ):
        remote.fetch(NAME)
    assert [path.stat().st_size for path in parts(tmp_path)] == [500_000]
    hub.cuts = {}
    assert (remote.fetch(NAME) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert hub.bodies(WEIGHTS)[-1] == ("bytes=500000-", size - 500_000) and not parts(tmp_path)


def test_a_flipped_bit_is_named_and_thrown_away(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    for name in ("config.json", WEIGHTS):
        hub.flips = {f"/{name}": len(files[name]) - 9}
        with pytest.raises(DamagedError, match=rf"someone/tiny/{name}: what arrived is damaged"):
            remote.fetch(NAME)
        assert not parts(tmp_path) and not list((tmp_path / "cache").rglob(name))
    hub.flips = {}
    assert (remote.fetch(NAME) / WEIGHTS).read_bytes() == files[WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_copy_that_rotted_in_the_cache_is_refused(hub: Hub, name: str) -> None:
    path = remote.fetch(NAME) / name
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.resolve().write_bytes(data)
    with pytest.raises(DamagedError, match=rf"{name}: is damaged"):
        remote.fetch(NAME)
    path.resolve().unlink()  # what the sentence says to do
    path.unlink()
    remote.fetch(NAME)


def test_revisions(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repositories[NAME].revisions = ("main", "v1.0", "refs/pr/7")
    commit = hub.repositories[NAME].commit
    assert {remote.fetch(f"{NAME}@{revision}").name for revision in ("v1.0", commit, "refs/pr/7")} == {commit}
    with pytest.raises(UserError, match=r"someone/tiny@v2: the hub has someone/tiny, but no revision 'v2'"):
        remote.fetch(f"{NAME}@v2")


def test_a_new_commit_is_fetched_and_shares_what_did_not_change(hub: Hub, files: dict[str, bytes]) -> None:
    old = remote.fetch(NAME)
    hub.repositories[NAME].files["README.md"] = b"# better"
    new = remote.fetch(NAME)
    assert new.name != old.name and (new / "README.md").read_bytes() == b"# better"
    assert len(hub.bodies(WEIGHTS)) == 1


def test_what_the_hub_refuses(hub: Hub, files: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match=r"someone/tinny: neither a folder here nor a model on the hub"):
        remote.fetch("someone/tinny")
    hub.repositories["someone/gated"] = Repository(dict(files), gated=True)
    with pytest.raises(
        UserError, match=r"someone/gated: is gated; accept its terms at http.*/someone/gated, then log in"
    ):
        remote.fetch("someone/gated")
    hub.repositories["someone/pickled"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"\x80\x02"})
    with pytest.raises(UserError, match=r"someone/pickled: holds only pickles \(pytorch_model.bin\)"):
        remote.fetch("someone/pickled")
    hub.repositories["someone/empty"] = Repository({"config.json": b"{}"})
    with pytest.raises(UserError, match=r"someone/empty: holds no model.safetensors"):
        remote.fetch("someone/empty")


def test_a_file_may_not_be_put_elsewhere(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repositories[NAME].files |= {"../../../evil.json": b"{}", "sub/config.json": b"{}"}
    remote.fetch(NAME)
    assert not list(tmp_path.rglob("evil.json")) and not list(tmp_path.rglob("sub"))


def test_a_busy_hub_and_the_copy_in_the_cache(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.status = 503
    with pytest.raises(FailureError, match=r"the hub answers 503 and the cache has no whole copy; try again later"):
        remote.fetch(NAME)
    hub.status = 0
    folder = remote.fetch(NAME)
    hub.status = 503
    assert remote.fetch(NAME) == folder
    assert "it answers 503); the copy in the cache is used" in capsys.readouterr().err


def test_the_server_is_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    here = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FailureError, match=r"the Hugging Face hub cannot be reached .* connect and try again"):
        remote.fetch(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    folder = remote.fetch(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert remote.fetch(NAME) == folder


def test_a_page_to_log_in_is_no_hub(hub: Hub) -> None:
    hub.portal = True
    with pytest.raises(FailureError, match=r"cannot be reached \(what answers in its place is no hub\)"):
        remote.fetch(NAME)


def test_half_a_copy_is_no_copy(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    (remote.fetch(NAME) / WEIGHTS).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FailureError, match=r"cannot be reached \(HF_HUB_OFFLINE is set\) and the cache has no whole copy"
    ):
        remote.fetch(NAME)


def test_settings_are_seen_before_the_weights_are_fetched(hub: Hub) -> None:
    def refuse(settings: dict) -> None:
        assert settings["model_type"] == "qwen3"
        raise UserError("no such thing here")

    with pytest.raises(UserError, match="no such thing here"):
        remote.fetch(NAME, refuse)
    assert not hub.bodies(WEIGHTS)


def test_custom_code_is_refused_before_the_weights_come(hub: Hub, files: dict[str, bytes]) -> None:
    settings = json.loads(files["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "modeling_tiny.Tiny"}}
    own = json.dumps(settings | {"architectures": ["TinyForCausalLM"]}).encode()
    hub.repositories["someone/own"] = Repository(files | {"config.json": own})
    with pytest.raises(UserError, match=r"TinyForCausalLM \(it is code of the repository's own, which is never run\)"):
        directory.load("someone/own")
    unknown = json.dumps(settings | {"alibi": True}).encode()
    hub.repositories["someone/unknown"] = Repository(files | {"config.json": unknown})
    with pytest.raises(UserError, match=r"'alibi' is True, a setting that our qwen3 does not know"):
        directory.load("someone/unknown")
    assert not hub.bodies(WEIGHTS)
    hub.repositories["someone/ours"] = Repository(files | {"config.json": json.dumps(settings).encode()})
    assert directory.load("someone/ours").family == "qwen3"  # the architecture is ours: its own code is not needed


def test_a_sentence_encoder_comes_with_its_pooling(hub: Hub, files: dict[str, bytes]) -> None:
    import modelworks as mw

    modules = [{"path": path, "type": kind} for path, kind in (("", "m.Transformer"), ("1_Pooling", "m.Pooling"))]
    more = {"modules.json": json.dumps(modules).encode(), "1_Pooling/config.json": b'{"pooling_mode_lasttoken": true}'}
    hub.repositories["someone/sentences"] = Repository(files | more)
    model = mw.load("someone/sentences@main", device="cpu")
    assert (model.pooling, model.normalise) == ("last", False)


def test_what_can_be_no_name_touches_no_network(hub: Hub) -> None:
    for name in ("runs/demo/x", "./here", "/abs", "a--b", "a..b", "~/x", "a b", "x@", "x@-r", "", "ж", "x" * 99):
        with pytest.raises(UserError, match="there is no such folder"):
            remote.fetch(name)
    assert not hub.sent


def _environment(hub: Hub, tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS"))
    }
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"} | more


def test_killed_midway_and_started_again(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """Another process, the real environment variables, a kill, and at last no network at all."""
    code = f"from modelworks.hub import remote; print(remote.fetch({NAME!r}))"
    hub.cuts = {WEIGHTS: [200_000] + [0] * 99}
    first = subprocess.Popen([sys.executable, "-c", code], env=_environment(hub, tmp_path), stderr=subprocess.PIPE)
    until = time.monotonic() + 30
    while len(hub.bodies(WEIGHTS)) < 1 and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    hub.cuts = {}
    run = lambda **more: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code],
        env=_environment(hub, tmp_path, **more),
        capture_output=True,
        text=True,
        timeout=60,
    )
    again = run()
    assert hub.bodies(WEIGHTS)[1:] == [("bytes=200000-", len(files[WEIGHTS]) - 200_000)], again.stderr
    asked = len(hub.sent)
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.stdout == again.stdout and Path(offline.stdout.strip()).name == hub.repositories[NAME].commit
    assert len(hub.sent) == asked and json.loads((Path(offline.stdout.strip()) / "config.json").read_text())
