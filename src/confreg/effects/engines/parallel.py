"""Work token by token, on the cores that it is worth."""

from concurrent.futures import ThreadPoolExecutor

import torch

from .tuning import WORKERS


def hand_on(first, then, count, device):
    """``then(token, first(token))`` for ``count`` tokens: list of what it returned.

    On a CPU operations of ``first``, of the shortest, have one thread and are done before: they are
    too short for waking others to pay. ``then``, of operations long enough to wait for Python's
    lock, runs for several tokens side by side.
    """
    threads = torch.get_num_threads()
    workers = min(threads, count, WORKERS)
    if device.type != "cpu" or workers == 1:
        return [then(token, first(token)) for token in range(count)]

    def alone(token, given):
        with torch.no_grad():  # gradients are a thread's own affair
            return then(token, given)

    try:
        torch.set_num_threads(1)
        found = [first(token) for token in range(count)]
        each = (threads // workers,)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=each) as pool:
            return list(pool.map(alone, range(count), found))
    finally:
        torch.set_num_threads(threads)
