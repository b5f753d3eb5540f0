"""What a confreg-started NDIF server imports beside NDIF: an API module and CPU model actors.

This file lies on the server's PYTHONPATH, in an environment that has ndif, ray and nnsight
and not confreg. NDIF's own model actors load onto CUDA devices and synchronise with them;
these hold the model in memory and are otherwise NDIF's.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import gc

import ndif.services.ray.sandbox.host as host
import ray
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel

# A runner builds the model's structure from the Hub, so it must be told which Hub.
host.RUNNER_ENV = (*host.RUNNER_ENV, "HF_ENDPOINT", "HF_HUB_OFFLINE")


class OnCPU:
    """The parts of a model actor that touch CUDA, without CUDA."""

    # Parking a replica means moving its weights from the GPU to memory, where they are.
    CACHEABLE = False

    def load_from_disk(self):
        """Load the weights into memory."""
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self):
        """Forget the request that has ended."""
        if hasattr(self, "discard_sandbox"):
            self.discard_sandbox()
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


class Trusted(OnCPU, BaseModelDeployment):
    """Runs every block beside the weights."""


class Sandboxed(OnCPU, SandboxModelDeployment):
    """Runs a block in a process without weights, unless its request is trusted."""

    def interrupt(self):
        """Stop a request that ran out of time.

        NDIF's own stops the runner and then throws SystemExit at the worker thread. That
        thread is on its way out already, its socket being closed, so the exception kills an
        idle thread of the executor instead, and every later request of this actor hangs.
        """
        if self.execution_sandbox is not None:
            self.execution_sandbox.stop()
        else:
            super().interrupt()


@ray.remote(num_cpus=0, max_restarts=-1)
class TrustedActor(Trusted):
    """Ray actor of `Trusted`."""


@ray.remote(num_cpus=0, max_restarts=-1)
class SandboxedActor(Sandboxed):
    """Ray actor of `Sandboxed`."""
