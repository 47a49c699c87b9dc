"""The environment and the tree keep their promises: no heavy strangers, fast start, no hosts, no unsafe sinks."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON_TREES = ("src", "tools", "bench", "examples")


def tracked() -> list[Path]:
    """Files of the tree: those that git knows or would take."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout to know which files belong to the tree")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def installed() -> dict[str, str]:
    return {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}


def test_no_heavy_strangers_are_installed() -> None:
    here = installed()
    unwanted = {"torchvision", "torchaudio", "xgrammar"}
    if "+cpu" in here["torch"]:  # the default build for GPUs brings its own triton and nvidia-*
        unwanted |= {"triton"} | {name for name in here if name.startswith(("nvidia-", "cuda-"))}
    assert sorted(unwanted & set(here)) == []


def test_constraints_hold_only_exact_versions() -> None:
    for name in ("constraints.txt", "constraints-torch.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][A-Za-z0-9.]*( ; .+)?", line), f"{name}: {line!r}"


def test_every_direct_requirement_has_a_tested_version() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {re.match(r"[A-Za-z0-9_.-]+", text)[0].lower() for text in wanted} - {"modelworks"}  # type: ignore[index]
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert sorted(names - pins) == []


def imported_by(*arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter imports, from its own import log."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize("arguments", [["-m", "modelworks", "--help"], ["-c", "import modelworks"]])
def test_start_up_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "transformers", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "fastapi", "tokenizers"}
    assert sorted(imported_by(*arguments) & heavy) == []


def test_no_host_of_a_registry_and_no_path_of_a_machine_in_the_tree() -> None:
    hosts = ["py" + "pi.org", "python" + "hosted.org", "registry.npm" + "js", "download.py" + "torch", "npm" + "mirror"]
    words = re.compile("|".join([*map(re.escape, hosts), r'"resolved": "http', r"(?<![\w.~-])/(?:work|root|opt)/"]))
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if words.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


# --- unsafe sinks -----------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {
    "eval", "exec", "os.system", "os.popen", "torch.load", "torch.save", "torch.hub.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all", "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "_LineLoader"}  # the last is base.config's child of SafeLoader


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def bad_keyword(name: str, keyword: ast.keyword) -> bool:
    value = keyword.value.value if isinstance(keyword.value, ast.Constant) else "not a constant"
    if keyword.arg in ("shell", "trust_remote_code", "allow_pickle"):
        return value is not False
    return keyword.arg == "weights_only" and value is not True


def sinks(source: str) -> list[tuple[int, str]]:
    """(line, what) of every place where data could become code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in UNSAFE_MODULES:
            found.append((node.lineno, node.module))
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in UNSAFE_CALLS or name.endswith(".extractall"):
                found.append((node.lineno, name))
            if name in ("yaml.load", "yaml.load_all"):
                loader = [k.value for k in node.keywords if k.arg == "Loader"] + node.args[1:]
                if not loader or dotted(loader[0]).split(".")[-1] not in SAFE_LOADERS:
                    found.append((node.lineno, name))
            found += [(node.lineno, f"{name}({k.arg}=...)") for k in node.keywords if bad_keyword(name, k)]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "import torch\ntorch.load('x')", "eval('1')", "exec(text)",
        "yaml.load(text)", "yaml.load(text, Loader=yaml.Loader)", "yaml.unsafe_load(text)", "archive.extractall('x')",
        "subprocess.run(command, shell=True)", "subprocess.run(command, shell=flag)", "os.system('ls')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)", "np.load('x', allow_pickle=True)",
        "torch.load('x', weights_only=False)",
    ],
)  # fmt: skip
def test_the_lint_sees_each_unsafe_sink(source: str) -> None:
    assert sinks(source)


def test_the_lint_lets_the_safe_ones_pass() -> None:
    assert sinks("model.eval()\nyaml.safe_load(t)\nyaml.load(t, Loader=yaml.SafeLoader)\nrun(c, shell=False)") == []


def test_no_unsafe_sink_in_our_code() -> None:
    found = []
    for path in tracked():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PYTHON_TREES:
            found += [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in sinks(path.read_text("utf-8"))]
    assert found == []
