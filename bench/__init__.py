"""Benchmarks.

Each runs on the device that `EDGECORTEX_BENCH_DEVICE` names, and so do its processes.
"""

import os

from edgecortex.errors import ConfigError

DEVICES = ("cpu", "gpu")
VARIABLE = "EDGECORTEX_BENCH_DEVICE"


def use_device(name: str) -> None:
    """Lets MLX compute on `cpu` or `gpu`, in this process and in those that it starts.

    Raises:
        ConfigError: no such device here.
    """
    import mlx.core as mx

    if name not in DEVICES:
        raise ConfigError(f"no device {name!r}, expected {' or '.join(DEVICES)}")
    device = getattr(mx, name)
    if not mx.is_available(device):
        raise ConfigError(
            f"MLX has no {name} on this machine; what it has, `edgecortex doctor` shows"
        )
    mx.set_default_device(device)
    os.environ[VARIABLE] = name


if _chosen := os.environ.get(VARIABLE):
    use_device(_chosen)
