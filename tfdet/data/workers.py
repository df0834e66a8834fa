"""Runs jobs in worker processes that end with their parent, and counts the images they have done.

A job is an object with `listings`; the function that does it takes the job and `tick`, which it calls after
each image. With more than one worker the calling script needs `if __name__ == "__main__":`, as Python's spawned
processes do.
"""

import itertools
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tfdet.data.errors import DataError


def run_jobs(function, jobs, workers, where, progress=None) -> list:
    """What `function(job, tick)` returns for each job, in their order.

    Args:
        function: of a module, so that a process can import it.
        workers: processes; 1 does everything in this one.
        where: what an error names.
        progress: called with (images done, images in all).
    Raises:
        DataError: a worker process died.
    """
    total = sum(len(job.listings) for job in jobs)
    progress = progress or (lambda done, total: None)
    workers = min(workers, len(jobs))
    if workers > 1:
        return _run_in_processes(function, jobs, workers, where, progress, total)
    done = itertools.count(1)
    return [function(job, lambda: progress(next(done), total)) for job in jobs]


def _run_in_processes(function, jobs, workers, where, progress, total) -> list:
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads and locks of the caller
    done = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _start_worker, (done,)) as pool:
        futures = []
        try:
            for job in jobs:
                futures.append(pool.submit(_run_in_worker, function, job))
            pending = futures
            while pending:
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                progress(done.value, total)
                for future in finished:
                    future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            advice = "it may have run out of memory: take fewer --workers"
            raise DataError(where, "a worker process died", advice) from error
        finally:
            for future in futures:  # after an error or Ctrl-C nothing new is begun
                future.cancel()


_done = None  # in a worker: the number of images done by all workers


def _start_worker(done):
    global _done
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_in_worker(function, job):
    return function(job, _count_one)


def _count_one():
    with _done.get_lock():
        _done.value += 1
