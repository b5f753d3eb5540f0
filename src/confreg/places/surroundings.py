"""What a run is not to take from the code around it, and what it leaves as it found it.

Gradients, inference mode, autocast and the default dtype are settings of the thread or the process
that calls; each would change numbers, or make tensors that later code cannot use. A run has its
own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from confreg.errors import ConfregError

TRACING = threading.RLock()
"""One trace at a time: threads may share a model, and nnsight's own state is the process's."""
_first_run: list[int] = []


@contextmanager
def own() -> Iterator[None]:
    """Run with settings of our own, whatever the caller's are.

    Raises
    ------
    ConfregError
        This process was forked from one in which confreg had run.
    """
    _refuse_fork()
    import torch

    usual = torch.get_default_dtype()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(torch.set_default_dtype, usual)
        torch.set_default_dtype(torch.float32)
        yield


def _refuse_fork() -> None:
    """Refuse to hang: threads of torch, zarr and nnsight do not survive a fork."""
    if not _first_run:
        _first_run.append(os.getpid())
    if _first_run[0] != os.getpid():
        raise ConfregError(
            "This process was forked from one in which confreg had run, and threads that it needs "
            "did not come along. Start workers anew: multiprocessing.get_context('spawn'), or run "
            "nothing before the fork."
        )
