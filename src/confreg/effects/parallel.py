"""Work token by token, on the cores that it is worth."""

from concurrent.futures import ThreadPoolExecutor

import torch


def one_by_one(work, count, device):
    """``work(token)`` for ``count`` tokens, on one core of a CPU: list of what it returned.

    For operations so small that waking other threads costs more than they would save.
    """
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        return [work(token) for token in range(count)]
    finally:
        torch.set_num_threads(threads)


def side_by_side(work, count, device):
    """``work(token)`` for ``count`` tokens, on a CPU one on each core: list of what it returned.

    For operations that are long enough to wait for Python's lock, and too short to be split.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [work(token) for token in range(count)]

    def alone(token):
        with torch.no_grad():  # gradients are a thread's own affair
            return work(token)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, range(count)))
    finally:
        torch.set_num_threads(threads)
