"""Work token by token, on the cores that it is worth."""

from concurrent.futures import ThreadPoolExecutor

import torch


def hand_on(first, then, count, device):
    """``then(token, first(token))`` for ``count`` tokens: list of what it returned.

    On a CPU every operation has one thread: they are too short for waking others to pay. ``first``,
    of the shortest, is done before; ``then``, of operations long enough to wait for Python's lock,
    on every core.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [then(token, first(token)) for token in range(count)]

    def alone(token, given):
        with torch.no_grad():  # gradients are a thread's own affair
            return then(token, given)

    try:
        torch.set_num_threads(1)
        found = [first(token) for token in range(count)]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, range(count), found))
    finally:
        torch.set_num_threads(threads)
