"""Files on this machine, and files at addresses with a scheme (gs://, s3://, hdfs://) through tf.io.gfile.

TensorFlow is imported only for the latter, so that worker processes on local files start at once.
"""

import contextlib
import errno
import glob
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

try:
    import fcntl
except ImportError:  # not on Windows: there nothing keeps two conversions apart
    fcntl = None

from tfdet import quiet
from tfdet.data.errors import RecordError

LOCK = ".lock"
_EARLY = 1 << 24  # bytes
_LOADING = threading.Lock()  # TensorFlow, by one thread


def is_remote(path) -> bool:
    return "://" in str(path)


def join(folder, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


@contextlib.contextmanager
def opened(path, mode: str = "rb"):
    """An open file; all errors are OSErrors."""
    if is_remote(path):
        with _explained(path), _gfile().GFile(str(path), mode) as file:
            yield file
    else:
        with open(path, mode) as file:
            yield file


def read_bytes(path) -> bytes:
    if is_remote(path):
        with opened(path) as file:
            return file.read()
    with open(path, "rb", buffering=0) as file:  # an image is read at once
        return file.read()


def exists(path) -> bool:
    if is_remote(path):
        with _explained(path):
            return _gfile().exists(str(path))
    return os.path.exists(path)


def names(folder) -> list[str]:
    """Names in a folder, sorted; none where there is no such folder."""
    if not is_remote(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    with _explained(folder):
        return sorted(name.rstrip("/") for name in _gfile().listdir(str(folder))) if exists(folder) else []


def is_folder(path) -> bool:
    if is_remote(path):
        with _explained(path):
            return _gfile().isdir(str(path))
    return os.path.isdir(path)


def matching(pattern) -> list[str]:
    """The paths that a pattern such as "folder/*.txt" stands for, sorted."""
    if is_remote(pattern):
        with _explained(pattern):
            return sorted(_gfile().glob(str(pattern)))
    return sorted(glob.glob(str(pattern), recursive=True))


def walk(folder):
    """The paths of all files in a remote folder and below it."""
    with _explained(folder):
        for place, _, found in _gfile().walk(str(folder)):
            yield from (join(place, name) for name in found)


def size(path) -> int:
    """In bytes. Raises OSError where there is no such file."""
    if is_remote(path):
        with _explained(path):
            return _gfile().stat(str(path)).length
    return os.path.getsize(path)


def ask(function, paths) -> list:
    """What a function says of each path; all at once where they are remote, since each question travels."""
    if any(map(is_remote, paths)):
        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(function, paths))
    return [function(path) for path in paths]


def stamps(paths) -> list[tuple[int, int] | None]:
    """Bytes and time of the last change (nanoseconds) of each file, None where there is none."""
    return ask(stamp, paths)


def stamp(path) -> tuple[int, int] | None:
    try:
        if is_remote(path):
            with _explained(path):
                found = _gfile().stat(str(path))
            return found.length, found.mtime_nsec
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    except (OSError, TypeError):  # a path may be anything that was read
        return None


def make_folder(folder):
    if is_remote(folder):
        with _explained(folder):
            _gfile().makedirs(str(folder))
    else:
        os.makedirs(folder, exist_ok=True)


def remove(path):
    """Removes a file, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            with _explained(path):
                _gfile().remove(str(path))
        else:
            os.unlink(path)


def remove_tree(folder):
    """Removes a folder with all that is in it, as far as that can be."""
    if is_remote(folder):
        with contextlib.suppress(OSError), _explained(folder):
            _gfile().rmtree(str(folder))
    else:
        shutil.rmtree(folder, ignore_errors=True)


# --- whole or not at all ------------------------------------------------------------------------


def write_whole(path, content: bytes, temporary):
    """Writes a file that is there whole or not at all, also after a power cut. `temporary`: on the same disk."""
    with opened(temporary, "wb") as file:
        file.write(content)
        sync(file)
    move(temporary, path)


def move(source, target):
    """Renames a file, over another if there is one."""
    if is_remote(target):
        with _explained(target):
            _gfile().rename(str(source), str(target), overwrite=True)
    else:
        os.replace(source, target)
        _sync_folder(os.path.dirname(target))


def place(source, target):
    """Puts a file under a second name, whole or not at all, and keeps the first where the file system has links."""
    if not is_remote(target):
        with contextlib.suppress(OSError):
            linked = f"{source}.link"
            remove(linked)
            os.link(source, linked)
            source = linked
    move(source, target)


@contextlib.contextmanager
def writer(path, synced: bool):
    """A function that writes bytes into a new file; with `synced` they are on the disk at the end of the block.

    A thread brings them there while more is made, so that the end need not wait for all of them.
    """
    with opened(path, "wb") as file, ThreadPoolExecutor(1) as pool:
        early, left = None, _EARLY

        def write(data):
            nonlocal early, left
            file.write(data)
            left -= len(data)
            if synced and left <= 0 and not is_remote(path):
                if early:
                    early.result()  # raises what it met: the system tells a fault of the disk once
                early, left = pool.submit(os.fsync, file.fileno()), _EARLY

        yield write
        if early:
            early.result()
        if synced:
            sync(file)


def sync(file):
    """Brings what was written to the disk."""
    file.flush()
    if hasattr(file, "fileno"):
        os.fsync(file.fileno())


def _sync_folder(folder):
    """Makes renames survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- one at a time ------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder):
    """Keeps a second process out of a local folder.

    The system takes the lock from a process that ends, however it ends, so a lock file that was left behind locks
    nothing. It holds the process's id for the message alone.

    Raises:
        RecordError: another process is at work there.
    """
    if fcntl is None or is_remote(folder):
        yield
        return
    path = os.path.join(folder, LOCK)
    file = _lock(folder, path)
    try:
        yield
    finally:
        remove(path)  # before it is unlocked, so that nobody holds a lock on a file without a name
        file.close()


def _lock(folder, path):
    while True:
        file = open(path, "a+")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            reason = f"another conversion (process {owner}) writes into this folder"
            raise RecordError(folder, reason, "wait until it ends, or choose another --out") from error
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
                return file
        except FileNotFoundError:
            pass
        file.close()  # its owner removed it in between


# --- elsewhere ----------------------------------------------------------------------------------


def _tensorflow():
    with _LOADING:
        if "tensorflow" not in sys.modules:
            quiet.import_tensorflow()
    import tensorflow as tf

    return tf


def _gfile():
    return _tensorflow().io.gfile


@contextlib.contextmanager
def _explained(path):
    """Turns TensorFlow's errors into OSErrors."""
    tf = _tensorflow()
    known = {
        tf.errors.NotFoundError: errno.ENOENT,
        tf.errors.PermissionDeniedError: errno.EACCES,
        tf.errors.ResourceExhaustedError: errno.ENOSPC,
    }
    try:
        yield
    except (tf.errors.OpError, tf.errors.UnimplementedError) as error:
        raise OSError(known.get(type(error), errno.EIO), error.message, str(path)) from error
