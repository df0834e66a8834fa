"""Runs jobs in worker processes that end with their parent, and counts the images they have done.

A job is an object with `listings`; the function that does it takes the job and `tick`, which it calls after
each image. With more than one worker the calling script needs `if __name__ == "__main__":`, as Python's spawned
processes do.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tfdet.data.errors import DataError

_PATIENCE = 1.0  # seconds


def run_jobs(function, jobs, workers, where, progress=None, follow=None) -> list:
    """What `function(job, tick)` returns for each job, in their order.

    Args:
        function: of a module, so that a process can import it.
        workers: processes; 1 does everything in this one.
        where: what an error names.
        progress: called with (images done, images in all).
        follow: called here with (job, its result) when a job is done, in any order. It may return a function
            without arguments, such as a functools.partial, which a worker then runs before any job that waits.
    Raises:
        DataError: a worker process died.
    """
    total = sum(len(job.listings) for job in jobs)
    progress = progress or (lambda done, total: None)
    follow = follow or (lambda job, result: None)
    workers = min(workers, len(jobs))
    if workers > 1:
        return _run_in_processes(function, jobs, workers, where, progress, follow, total)
    done, results = itertools.count(1), []
    for job in jobs:
        results.append(function(job, lambda: progress(next(done), total)))
        more = follow(job, results[-1])
        if more:
            more()
    return results


def _run_in_processes(function, jobs, workers, where, progress, follow, total) -> list:
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads and locks of the caller
    done, stop = context.Value("q", 0), context.Value("b", 0, lock=False)
    waiting, running, results = deque(enumerate(jobs)), {}, [None] * len(jobs)
    with ProcessPoolExecutor(workers, context, _start_worker, (done, stop)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < 2 * workers:  # few, so that memory does not grow with the jobs
                    number, job = waiting.popleft()
                    call = (job,) if number is None else (_run_in_worker, function, job)
                    with _held_back(signal.SIGINT):  # for a process that starts here until `_start_worker`
                        running[pool.submit(*call)] = number
                finished, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
                progress(done.value, total)
                for future in finished:
                    number, result = running.pop(future), future.result()
                    if number is not None:
                        results[number] = result
                        more = follow(jobs[number], result)
                        waiting.extendleft([(None, more)] if more else [])
            return results
        except BrokenProcessPool as error:
            advice = "it may have run out of memory: take fewer --workers"
            raise DataError(where, "a worker process died", advice) from error
        finally:
            stop.value = 1  # after an error or Ctrl-C the workers end between two images
            for future in running:
                future.cancel()


@contextlib.contextmanager
def _held_back(number):
    """A signal arrives at the end of the block, and never at processes and threads that are started in it.

    A mask alone would not do: any thread may receive the signal, and Python then calls the handler in the main one.
    """
    came = []
    # None: of another language's making, which could not be put back
    can_wait = threading.current_thread() is threading.main_thread() and signal.getsignal(number) is not None
    handler = signal.signal(number, lambda *details: came.append(details)) if can_wait else None
    can_mask = hasattr(signal, "pthread_sigmask")  # not on Windows
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number}) if can_mask else None
    try:
        yield
    finally:
        if can_mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if can_wait:
            signal.signal(number, handler)
        if came and callable(handler):
            handler(*came[-1])


_done = _stop = None  # in a worker: the number of images done by all workers; whether to end


def _start_worker(done, stop):
    global _done, _stop
    _done, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Ends this process with its parent, and also where a pool that was interrupted while it ended calls it no more."""
    parent = multiprocessing.parent_process()
    while parent.is_alive() and not _stop.value:
        parent.join(_PATIENCE)
    parent.join(_PATIENCE)
    os._exit(1)


def _run_in_worker(function, job):
    return function(job, _count_one)


def _count_one():
    if _stop.value:
        raise InterruptedError("the conversion was stopped")
    with _done.get_lock():
        _done.value += 1
