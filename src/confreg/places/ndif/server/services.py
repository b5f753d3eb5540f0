"""The parts of an NDIF server, as commands and environments of plain child processes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

SITE = Path(__file__).with_name("site")
PORTS = ("redis", "store", "api", "gcs", "dashboard")

_ACTORS = {
    ("cpu", False): "confreg_ndif.TrustedActor",
    ("cpu", True): "confreg_ndif.SandboxedActor",
    ("cuda", False): "ndif.services.ray.deployments.modeling.base.ModelActor",
    ("cuda", True): "ndif.services.ray.sandbox.model.SandboxModelActor",
}

# Names that a server inherits from the environment that starts it.
_INHERITED = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TERM", "USER", "LD_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    *("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
)


@dataclass(frozen=True)
class Settings:
    """Everything that one start of a server is determined by.

    Attributes
    ----------
    folder : str
        Where its state and logs are.
    python, redis : str
        Interpreter of the server's environment, and ``redis-server``.
    scratch : str
        A short path for Ray's sockets, removed at the end.
    device : str
        ``"cpu"`` or ``"cuda"``.
    dtype : str
        Every model is loaded in it.
    sandbox : bool
        Whether the server can run a block in a process without weights.
    models : list of str
        Model keys, deployed before the server counts as up.
    hub : str or None
        ``HF_ENDPOINT`` of the server; then its Hub cache is its own, too.
    timeout : float or None
        Execution time limit per request, seconds.
    profile : str or None
        The profile that is written for clients while the server is up.
    owner : int or None
        The server ends when this process does.
    environ : dict
        Set beside, or in place of, what is set here.
    """

    folder: str
    python: str
    redis: str
    scratch: str
    ports: dict[str, int]
    device: str = "cpu"
    dtype: str = "float32"
    sandbox: bool = True
    models: list[str] = field(default_factory=list)
    hub: str | None = None
    timeout: float | None = None
    profile: str | None = None
    owner: int | None = None
    environ: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read them back."""
        return cls(**json.loads(path.read_text()))

    def profile_text(self) -> str:
        """The profile that reaches this server."""
        return (
            "# Written by `confreg ndif up`; removed by `confreg ndif down`.\n"
            'kind = "ndif"\n'
            f'description = "the NDIF server on this machine ({self.device})"\n'
            f'host = "{self.url}"\n'
            f'dtype = "{self.dtype}"\n'
            "trusted = true\n"
            "retries = 6\n"
            "poll = 0.2\n"
            'memory = "1GB"\n'
        )

    @property
    def url(self) -> str:
        """Where clients find the server."""
        return f"http://127.0.0.1:{self.ports['api']}"

    @property
    def bin(self) -> Path:
        """Folder of the environment's commands."""
        return Path(self.python).parent


def environment(settings: Settings) -> dict[str, str]:
    """Environment variables that all parts share."""
    port = settings.ports
    values = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    values |= {
        "PATH": f"{settings.bin}{os.pathsep}{values.get('PATH', os.defpath)}",
        "PYTHONPATH": str(SITE),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        # Makes Ray take 127.0.0.1 as the address of its own node.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers are started when an actor needs one, at the priority of everything else.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_niceness": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        "RAY_TMPDIR": settings.scratch,
        # gRPC threads make forked Ray servers die, about every other time.
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "NDIF_HOME": settings.folder,
        "NDIF_REDIS_URL": f"redis://127.0.0.1:{port['redis']}",
        "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{port['store']}",
        "NDIF_API_URL": settings.url,
        "NDIF_API_PORT": str(port["api"]),
        # host:port, not ray://: the dispatcher is a driver, without Ray's client proxy.
        "NDIF_RAY_ADDRESS": f"127.0.0.1:{port['gcs']}",
        "NDIF_DEFAULT_MODEL_ACTOR_CLASS": _ACTORS[settings.device, settings.sandbox],
        "NDIF_DEFAULT_DTYPE": settings.dtype,
        "NDIF_DEPLOYMENTS": "|".join(settings.models),
        "NDIF_SANDBOX_POOL_SIZE": "1",
        "NDIF_STATUS_TTL_S": "1",
        "NDIF_QUEUE_FETCH_TIMEOUT_S": "1",
    }
    if settings.device == "cpu":
        values["NDIF_DEFAULT_PADDING_BIAS"] = "0"
        # A second replica on the same cores only takes them from the first.
        values["NDIF_AUTOSCALING_MAX_REPLICAS"] = "1"
        values["NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS"] = "0"
    if settings.timeout is not None:
        values["NDIF_DEFAULT_EXECUTION_TIMEOUT_SECONDS"] = str(settings.timeout)
    if settings.hub is not None:
        values["HF_ENDPOINT"] = settings.hub
        values["HF_HOME"] = str(Path(settings.folder, "hub"))
    return values | settings.environ


def redis(settings: Settings) -> list[str]:
    """The queue, and results on their way to a waiting websocket."""
    return [
        settings.redis,
        *("--port", str(settings.ports["redis"]), "--bind", "127.0.0.1", "--daemonize", "no"),
        *("--save", "", "--appendonly", "no", "--dir", settings.folder),
        # Results of websocket jobs are published: the stock limit drops those over 8 MB.
        *("--client-output-buffer-limit", "pubsub 2gb 1gb 60"),
    ]


def store(settings: Settings) -> list[str]:
    """An S3 server that keeps what polled jobs return in memory."""
    address = ["-H", "127.0.0.1", "-p", str(settings.ports["store"])]
    return [settings.python, "-m", "moto.server", *address]


def ray(settings: Settings, resources: dict[str, float]) -> list[str]:
    """Ray's head node. The dashboard stays on: NDIF's controller asks its state API."""
    counts = [] if settings.device == "cuda" else ["--num-gpus=1"]  # placement counts GPUs
    return [
        str(settings.bin / "ray"),
        *("start", "--head", "--block", f"--port={settings.ports['gcs']}", *counts),
        *("--node-ip-address=127.0.0.1", f"--num-cpus={max(4, os.cpu_count() or 1)}"),
        *("--object-store-memory=1000000000", f"--resources={json.dumps(resources)}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={settings.ports['dashboard']}", "--disable-usage-stats"),
        f"--temp-dir={settings.scratch}",
    ]


def cpu_resources() -> dict[str, float]:
    """What Ray is told of a machine without GPUs: its memory, as if it were a GPU's."""
    memory = psutil.virtual_memory().total
    return {"head": 10, "cuda_memory_bytes": memory, "cpu_memory_bytes": memory}


def cuda_resources(settings: Settings) -> list[str]:
    """Command that prints what Ray is to be told of this machine's GPUs, as JSON."""
    return [settings.python, "-m", "ndif.services.ray.resources", "--head"]


def controller(settings: Settings) -> list[str]:
    """Launches the controller, which lives on inside Ray, and returns."""
    return [settings.python, "-m", "ndif.services.ray.deployments.controller.controller"]


def api(settings: Settings) -> list[str]:
    """The HTTP server that clients talk to."""
    return [
        settings.python,
        *("-m", "uvicorn", "confreg_ndif_api:app", "--host", "127.0.0.1"),
        *("--port", str(settings.ports["api"]), "--ws-max-size", str(1 << 30)),
    ]


def dispatcher(settings: Settings) -> list[str]:
    """Takes requests off the queue and hands them to model actors."""
    return [settings.python, "-m", "ndif.services.api.queue.dispatcher"]
