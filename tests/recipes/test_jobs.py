"""Job files: a shell that reads the script, a parser that reads the manifest, and fields as the schedulers document them."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelworks.base import folders
from modelworks.base.errors import UserError
from modelworks.cli import main
from modelworks.recipes import launching

COMMAND = ["train", "causal_lm", "--model", "qwen3-nano", "--data", "my corpus/it's", "--out", "runs/$x", "--steps", "9",
           "--tokenizer", "tokens"]  # fmt: skip
# https://slurm.schedmd.com/sbatch.html, the long options that we use
SBATCH = {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "partition", "account",
          "output", "open-mode", "requeue", "signal"}  # fmt: skip


def written(capsys: pytest.CaptureFixture[str], kind: str, *settings: str) -> str:
    main(["launch", "--print", kind, *settings, "--", *COMMAND])
    return capsys.readouterr().out


def words_after(text: str, program: str) -> list[str]:
    """What a shell hands to `program`, with its variables left as they are written."""
    line = next(line for line in text.splitlines() if program in line)
    words = shlex.split(line)
    return words[words.index(program) + 1 :]


def check_torchrun(words: list[str], nodes: int, devices: int) -> None:
    """The options are torchrun's own, and behind them stands the very command."""
    from torch.distributed.run import get_args_parser

    known = get_args_parser().parse_args(words)
    assert (known.nnodes, known.nproc_per_node, known.rdzv_backend) == (str(nodes), str(devices), "c10d")
    assert known.max_restarts == 3 and known.rdzv_endpoint.endswith(":29400") and known.rdzv_id
    assert known.module and known.training_script == "modelworks"
    assert known.training_script_args == COMMAND


@pytest.mark.parametrize(("settings", "nodes", "devices"), [
    ([], 1, 8), (["--nodes", "2", "--devices", "4", "--hours", "30.5", "--partition", "gpu", "--account", "team"], 2, 4),
    (["--nodes", "4", "--devices", "2", "--gpus", "false", "--setup", "source ~/v/bin/activate", "--image", "a b"], 4, 2),
])  # fmt: skip
def test_slurm(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, settings: list[str], nodes: int, devices: int
) -> None:
    text = written(capsys, "slurm", *settings)
    script = tmp_path / "job.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    head = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(head)] == head, "sbatch stops reading at the first line that is none of its own"
    given = dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups() for line in head)  # type: ignore[union-attr]
    assert set(given) <= SBATCH
    assert given["nodes"] == str(nodes) and given["ntasks-per-node"] == "1"
    assert given.get("gpus-per-node") == (None if "--gpus" in settings else str(devices))
    assert given["cpus-per-task"] == str(8 * devices)
    assert re.fullmatch(r"\d+-\d\d:\d\d:\d\d", given["time"])
    assert given["time"] == ("1-06:30:00" if "--hours" in settings else "1-00:00:00")
    assert re.fullmatch(r"TERM@\d+", given["signal"])
    check_torchrun(words_after(text, "torchrun"), nodes, devices)


def test_slurm_in_a_shell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Run with stand-ins for scontrol, srun and torchrun: the words arrive as they were typed, the head is the first."""
    text = written(capsys, "slurm", "--nodes", "2", "--setup", "export SET=up")
    (tmp_path / "job.sh").write_text(text)
    bodies = {
        "scontrol": "echo a1; echo a2",
        "srun": 'while [ "$1" != torchrun ]; do shift; done; exec "$@"',
        "torchrun": 'printf "%s\\n" "$SET" "$@"',
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_SUBMIT_DIR": str(tmp_path),
           "SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "64"}  # fmt: skip
    done = subprocess.run(["bash", tmp_path / "job.sh"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "up" and "--rdzv-endpoint=a1:29400" in said and "--rdzv-id=77-0" in said
    assert said[-len(COMMAND) :] == COMMAND


@pytest.mark.parametrize("gpus", [True, False])
def test_kubernetes(capsys: pytest.CaptureFixture[str], gpus: bool) -> None:
    text = written(capsys, "kubernetes", "--image", "example.org/modelworks:1", "--claim", "data", "--nodes", "4",
                   "--devices", "2", "--name", "lm-1", "--namespace", "ml", "--gpus", str(gpus).lower())  # fmt: skip
    service, job = yaml.safe_load_all(text)
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert service["metadata"]["namespace"] == job["metadata"]["namespace"] == "ml"
    spec = job["spec"]
    # io.k8s.api.batch.v1.JobSpec
    assert set(spec) <= {"activeDeadlineSeconds", "backoffLimit", "completionMode", "completions", "parallelism",
                         "podFailurePolicy", "template"}  # fmt: skip
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 4
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Ignore"]
    pod = spec["template"]["spec"]
    # io.k8s.api.core.v1.PodSpec
    assert set(pod) <= {"containers", "restartPolicy", "subdomain", "terminationGracePeriodSeconds", "volumes"}
    assert pod["restartPolicy"] == "Never", "a failure policy and an Indexed Job ask for it"
    assert pod["subdomain"] == service["metadata"]["name"], "this makes the pods' names resolve"
    (container,) = pod["containers"]
    amount: dict[str, Any] = container["resources"]["limits"]
    assert amount == container["resources"]["requests"] and amount["memory"] == "64Gi"
    assert amount.get("nvidia.com/gpu") == ("2" if gpus else None)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    shell, option, line = container["command"]
    assert (shell, option) == ("/bin/sh", "-c")
    assert subprocess.run(["bash", "-n", "-c", line], capture_output=True).returncode == 0
    words = words_after(line, "torchrun")
    assert "--rdzv-endpoint=lm-1-0.lm-1:29400" in words
    check_torchrun(words, 4, 2)
    assert "&id" not in text


def test_every_scheduler_says_what_it_is() -> None:
    for kind in folders.names(launching.JOBS):
        module = folders.find(launching.JOBS, kind)
        assert folders.summary(launching.JOBS, kind).startswith(f"{kind}: ")
        assert all(field.description for field in module.Config.model_fields.values())


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("slrum", {}, "did you mean 'slurm'"),
        ("slurm", {"node": 2}, "did you mean 'nodes'"),
        ("slurm", {"memory": "64 GB"}, "such as 64G"),
        ("slurm", {"setup": "a\nb"}, "one line"),
        ("slurm", {"name": "My Job"}, "small letters"),
        ("kubernetes", {"claim": "data"}, "'image' is needed"),
        ("slurm", {"nodes": 3, "devices": 1}, "cannot be shared by 3 ranks"),
    ],
)
def test_mistakes(kind: str, settings: dict[str, Any], says: str) -> None:
    stages = launching.of_command("train", {"objective": "causal_lm", "model": "qwen3-nano", "data": "x", "steps": 1,
                                            "tokenizer": "y"}, here=False)  # fmt: skip
    with pytest.raises(UserError, match=says):
        launching.job(kind, settings, COMMAND, stages)


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--"], ["--", "evaluate", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(["launch", "--print", "slurm", *words])
        assert stop.value.code == 2 and "write the command behind --" in capsys.readouterr().err
