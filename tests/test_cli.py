"""The command as a user types it: exit status 0, 1 or 2, one clear sentence, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    recipe, documents = tiny.write(folder)
    done = tiny.command("run", recipe, "--set", f"data={documents}", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert "report:" in done.stdout and (folder / "out" / "report.html").is_file()
    return folder


def refused(*words: object, status: int = 2, says: str = "", **environment: str) -> str:
    """Run a command that must fail; its stderr ends with one sentence that has `says` in it."""
    done = tiny.command(*words, **environment)
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    assert done.returncode == status, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and says in last, done.stderr
    return last


def test_help_needs_no_torch_and_lists_every_verb() -> None:
    script = "import sys, modelworks.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    script += "assert not {'torch', 'numpy', 'pydantic', 'rich', 'yaml'} & set(sys.modules), set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verbs = "run collect prepare tokenizer train evaluate attack export generate chat serve plan ls data doctor schema"
    assert all(f"\n    {verb}" in done.stdout for verb in verbs.split())


def test_import_is_light() -> None:
    script = "import sys, modelworks; assert 'torch' not in sys.modules; assert modelworks.load and modelworks.run"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_ls_lists_what_the_folders_hold() -> None:
    for kind, name in {
        "objectives": "dpo", "presets": "qwen3-0.6b", "families": "gpt2", "attacks": "typos",
        "sources": "pydoc", "recipes": "demo", "suites": "questions",
    }.items():  # fmt: skip
        done = tiny.command("ls", kind, "--json")
        rows = json.loads(done.stdout)
        assert name in [row["name"] for row in rows] and all(row["about"] for row in rows), done.stdout
    refused("ls", "objectivs", says="did you mean 'objectives'")


def test_schema_is_json_and_knows_the_settings() -> None:
    recipe = json.loads(tiny.command("schema").stdout)
    assert recipe["properties"]["stages"]
    assert "learning_rate" in json.loads(tiny.command("schema", "train").stdout)["properties"]


def test_the_parts_by_hand(made: Path, tmp_path: Path) -> None:
    steps = [
        ("collect", f"files:{made / 'documents'}", "--out", "pages"),
        ("prepare", "pages", "--steps", "normalise", "split", "--out", "corpus"),
        ("tokenizer", "corpus", "--vocab-size", "300", "--out", "tokens"),
        ("train", "causal_lm", "--model", "qwen3-nano", "--data", "corpus", "--tokenizer", "tokens", "--steps", "3",
         "--rows", "2", "--max-len", "32", "--track", "[]", "--out", "model"),
        ("export", "model", "--dtype", "bfloat16", "--out", "exported"),
    ]  # fmt: skip
    for step in steps:
        done = tiny.command(*step, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    again = tiny.command(*steps[2], cwd=tmp_path)
    assert "up to date" in again.stderr
    told = tiny.command("generate", "exported", "the quick", "--set", "max_new_tokens=5", cwd=tmp_path)
    assert told.returncode == 0 and told.stdout.strip()
    refused("generate", tmp_path / "exported", "x", "--set", "temperatur=1", says="did you mean 'temperature'")


def test_python_front_door(made: Path) -> None:
    import torch

    import modelworks as mw

    model = mw.load(made / "out" / "model")
    tokens = torch.randint(0, 200, (2, 9))
    logits = model.logits(tokens)
    assert logits.dtype == torch.float32 and logits.shape == (2, 9, model.config.vocab_size)
    assert isinstance(model.generate("the quick", max_new_tokens=4), str)
    assert len(model.score("the", [" quick", " soup"])) == 2 and model.embed(["a b", "c"]).shape == (2, 32)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "dmeo"], "did you mean 'demo'"),
        (["run", "nothing.yaml"], "no such file"),
        (["run", "demo", "--set", "stages.base.rws=4"], "did you mean 'rows'"),
        (["run", "demo", "--set", "stages"], "key.subkey=value"),
        (["run", "demo", "--set", "stages.pages.from=['fils:x']"], "did you mean 'files'"),
        (["run", "char-lm", "--set", "data=/no/such/file.txt"], "/no/such/file.txt"),
        (["collect", "files:/no/such/folder", "--out", "x"], "/no/such/folder"),
        (["collect", "nonsense", "--out", "x"], "scheme:place"),
        (["generate", "/no/such/model", "x"], "/no/such/model"),
        (["plan", "qwen3-nan"], "did you mean 'qwen3-nano'"),
        (["plan", "gpt2", "--tokens", "many"], "--tokens"),
        (["data", "get", "nothing-like-it"], "nothing-like-it"),
        (["schema", "trane"], "did you mean 'train'"),
    ],
)
def test_mistakes(words: list[str], says: str, tmp_path: Path) -> None:
    out = [] if words[0] not in ("run",) else ["--out", str(tmp_path / "out")]
    refused(*[str(tmp_path / w) if w == "x" and words[0] == "collect" else w for w in words], *out, says=says)


def test_bad_input(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("collect", f"files:{tmp_path / 'empty'}", "--out", tmp_path / "o1", says="empty")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.txt").write_bytes(os.urandom(4000))
    (tmp_path / "junk" / "b.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    refused("collect", f"files:{tmp_path / 'junk'}", "--out", tmp_path / "o2", says="no document could be read")
    assert not (tmp_path / "o1").exists() and not (tmp_path / "o2").exists()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "latin.txt").write_bytes(
        "Caf\xe9 au lait, s'il vous pla\xeet, encore une fois.".encode("latin-1")
    )
    (tmp_path / "mixed" / "bad.txt").write_bytes(os.urandom(4000))
    done = tiny.command("collect", f"files:{tmp_path / 'mixed'}", "--out", tmp_path / "o3")
    assert done.returncode == 0 and "left_out 1" in done.stdout, done.stdout + done.stderr


def test_damage_and_a_full_disk(made: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree((made / "out" / "model").resolve(), broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "model.safetensors").write_bytes(data)
    refused("generate", broken, "x", status=1, says="damaged")
    line = f"ulimit -f 20; trap '' XFSZ; exec {sys.executable} -m modelworks run {made / 'tiny.yaml'} "
    line += f"--set data={made / 'documents'} --set stages.model.budget.steps=9 --out {made / 'out'}"
    before = {p.name for p in (made / "out").iterdir() if not p.name.startswith(".")}
    with subprocess.Popen(
        ["bash", "-c", line], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as full:
        said = [next(text for text in full.stderr if "for space" in text)]
        full.terminate()
        said += full.stderr.readlines()
    assert full.returncode == 1 and "make room" in said[-1], said
    assert before <= {p.name for p in (made / "out").iterdir()}
    again = tiny.command("run", made / "tiny.yaml", "--set", f"data={made / 'documents'}", "--out", made / "out")
    assert again.returncode == 0 and "model: up to date" in again.stderr
