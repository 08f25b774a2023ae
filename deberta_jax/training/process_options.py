"""Defines the options of processes and their devices, which training, prediction and ``preflight`` have in common."""

import dataclasses

from jax.sharding import Mesh

from deberta_jax.errors import InputError
from deberta_jax.sharding import make_mesh

LONGEST_WAIT = 1_000_000
"""Largest number of seconds of a time limit; timers cannot wait much longer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Configures the mesh of devices, and how the processes of a run find each other."""

    mesh_data: int = -1
    """Number of devices along the mesh axis ``data``, each with a part of the batch; -1 for all remaining devices."""
    mesh_fsdp: int = 1
    """Number of devices that the parameters are sharded over; each also has a part of the batch."""
    mesh_tensor: int = 1
    """Number of devices that attention heads, feed-forward layers and vocabulary are sharded over."""
    distributed: bool = False
    """Run as one of several processes, which JAX finds itself on TPU pods, SLURM and Kubernetes."""
    coordinator: str = ""
    """Address host:port of process 0, if JAX does not find the processes itself; needs --processes and --process."""
    processes: int = 0
    """Number of processes, with --coordinator."""
    process: int = -1
    """Index of this process, counted from 0, with --coordinator."""
    heartbeat: int = 100
    """Seconds without a heartbeat after which a process is considered lost and the run ends."""
    deadline: int = 1200
    """Seconds within which all processes must have started; hosts of a cluster may start minutes apart."""

    def check_times(self) -> None:
        """Raises InputError for a number of seconds that cannot be used."""
        for name in ("heartbeat", "deadline"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 1")
        if max(self.heartbeat, self.deadline) > LONGEST_WAIT:
            raise InputError(f"--heartbeat and --deadline: must be at most {LONGEST_WAIT} seconds")


def mesh_of(options: ProcessOptions) -> Mesh:
    """Returns the mesh that the options describe, over the devices of all processes."""
    return make_mesh(options.mesh_data, options.mesh_fsdp, options.mesh_tensor)
