"""The machine and the cluster: how many cores there are for us, and a Ray to put actors in.

A run joins the Ray that its config names or that its job belongs to; else it starts one of its own
on the loopback address. Ray is imported only where it is started.
"""

import logging
import os
from pathlib import Path
from typing import Any

from mbrl.config.schema import WITH_WORLD_MODEL, Config


def available_cores(root: Path = Path("/")) -> int:
    """Cores this process may use, at least 1.

    The smallest of what its affinity allows and what the CPU quotas of its control groups (version
    1 or 2, as containers and schedulers set them) come to, rounded up.

    Args:
        root: of the file system in which to look for `proc` and `sys/fs/cgroup`.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min([cores, *(-int(-quota // 1) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """CPU quotas, in cores, of this process's control groups and of the groups around them."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return []
    quotas = []
    for line in groups:
        _, controllers, inside = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # version 1 links `cpu` to the mount, whose name may list controllers in another order
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / inside.lstrip("/")
        # in a container the path may be the host's: then only the mount itself is there
        for folder in (group, *group.parents):
            quota = _quota(folder)
            quotas += [] if quota is None else [quota]
            if folder == mount:
                break
    return quotas


def _quota(folder: Path) -> float | None:
    """Cores that one control group may use; None without a limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = [word for name in names for word in (folder / name).read_text().split()]
            quota, period = words
            return None if quota in ("max", "-1") else int(quota) / int(period)
        except (OSError, ValueError):  # the other version of control groups, or the root group
            continue
    return None


def start_ray(config: Config) -> None:
    """Join or start Ray, if anything of this run is an actor or stock RLlib."""
    learners = config.learn_model.num_learners + config.learn_policy.num_learners
    actors = config.collect.num_collectors + learners
    if config.agent in WITH_WORLD_MODEL and not actors:
        return
    import ray

    if ray.is_initialized():
        return
    address = config.run.ray_address
    own: dict[str, Any] = {}
    if address is None and not {"RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"} & os.environ.keys():
        address = "local"  # or it would join a head that somebody started on this machine
        # at least what the actors ask for: on few cores they share, instead of waiting for ever
        own = {"num_cpus": max(available_cores(), actors + 1), "include_dashboard": False}
        own["_node_ip_address"] = "127.0.0.1"
    ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR, **own)
