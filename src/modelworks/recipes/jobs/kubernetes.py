"""kubernetes: an Indexed Job, one pod a machine, and a headless Service by which the pods find the first of them.

Fields as in https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1/ (batch/v1) and
https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/. All pods mount one volume, in which the run
and its checkpoints live, so a pod that was evicted goes on where it was.
"""

from __future__ import annotations

import yaml
from pydantic import Field

from ._job import PORT, Job, torchrun

GRACE = 120  # seconds that a pod that is told to go has to save


class Config(Job):
    """A Kubernetes Job."""

    image: str = Field(min_length=1)
    """The container image that holds modelworks."""
    claim: str = Field(min_length=1)
    """The PersistentVolumeClaim with data and runs; ReadWriteMany where there are several machines."""
    mount: str = Field("/work", pattern=r"^/[^\n]*$")
    """Where it is mounted, and where the command runs."""
    namespace: str | None = None
    """The namespace (default: the one of the context)."""
    resource: str = "nvidia.com/gpu"
    """How the cluster names a GPU."""


class _Plain(yaml.SafeDumper):
    """Writes what stands twice twice, without YAML's anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def text(config: Config, command: list[str]) -> str:
    """The manifest: give it to kubectl apply -f."""
    c = config
    where = {"namespace": c.namespace} if c.namespace else {}
    labels = {"app.kubernetes.io/name": "modelworks", "app.kubernetes.io/instance": c.name}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": c.name, **where, "labels": labels},
        # ranks meet before any of them is ready
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": c.name}},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": c.name, **where, "labels": labels},
        "spec": {
            "completions": c.nodes,
            "parallelism": c.nodes,
            "completionMode": "Indexed",
            "backoffLimit": c.restarts * c.nodes,
            "activeDeadlineSeconds": round(c.hours * 3600),
            # an evicted pod is no failure of the run
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod(c, command)},
        },
    }
    head = f"# kubectl apply -f FILE; kubectl logs -f job/{c.name}\n"
    return head + yaml.dump_all([service, job], Dumper=_Plain, sort_keys=False, default_flow_style=False, width=1000)


def _pod(c: Config, command: list[str]) -> dict[str, object]:
    amount = {"cpu": str(c.devices * c.cores), "memory": f"{c.memory}i"}
    if c.gpus:
        amount[c.resource] = str(c.devices)
    start = torchrun(c, command, f"{c.name}-0.{c.name}:{PORT}", c.name)
    container = {
        "name": "ranks",
        "image": c.image,
        "command": ["/bin/sh", "-c", f"exec {' '.join(start)}"],
        "workingDir": c.mount,
        "env": [{"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": str(GRACE - 10)}],
        "ports": [{"containerPort": PORT, "name": "rendezvous"}],
        "resources": {"requests": amount, "limits": amount},
        "volumeMounts": [{"name": "work", "mountPath": c.mount}, {"name": "memory", "mountPath": "/dev/shm"}],
    }
    return {
        "subdomain": c.name,  # with the Service it gives the pods names: NAME-INDEX.NAME
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": [
            {"name": "work", "persistentVolumeClaim": {"claimName": c.claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},  # NCCL's and the loader's shared memory
        ],
    }
