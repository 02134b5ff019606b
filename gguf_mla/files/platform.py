"""Every call that some operating systems lack, each with a portable way that does without it.

The portable way is taken where the call is missing, and for all calls when the environment variable GGUF_MLA_PORTABLE
is set. It gives the same bytes; what it gives up is said by each function. No other module calls such things itself.

Advice, locks, copies inside the OS and the sync of a directory are optional: where a file system refuses them, the run
goes on without. Reading, writing and syncing data raise OSError when they fail.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

PORTABLE = bool(os.environ.get("GGUF_MLA_PORTABLE"))
OPEN_FILES, MOST_FILES = 256, 1 << 14  # that a process may open when it does not say, and that are ever wanted
MEMORY = 8 << 30  # bytes of memory that a machine counts as having when it does not say
# What a file system answers to a call that it does not have. Network mounts, FUSE and shares of other systems differ.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
# A directory that may be written but not read cannot be opened to be synced, and some systems open none.
_NO_DIRECTORY_SYNC = _UNSUPPORTED | {errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}
_NO_HARD_LINKS = _UNSUPPORTED | {errno.EPERM, errno.EMLINK, errno.EXDEV}
Status = os.stat_result
_position = threading.Lock()  # the position of a descriptor, where reads and writes depend on one


def _native(name: str) -> Any:
    """Return a member of `os` that not every system has; None where it is missing or the portable way is wanted."""
    return None if PORTABLE else getattr(os, name, None)


def _module(name: str) -> Any:
    """Return a module that not every system has; None like `_native`."""
    if PORTABLE:
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _flags(*names: str) -> int:
    """Return these flags for `os.open`, without those that are missing; Windows needs one to leave bytes alone."""
    return sum(_native(name) or 0 for name in names) | getattr(os, "O_BINARY", 0)


# ------------------------------------------------------------------------------------------------------- the machine


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def pages(nbytes: int) -> Any:
    """Return writable memory that goes back to the OS when it is let go of; from the heap where that cannot be had."""
    module = _module("mmap")
    return bytearray(nbytes) if module is None else module.mmap(-1, nbytes)


def return_large_blocks() -> None:
    """Let memory of large arrays go back to the OS when it is free; glibc only, others decide for themselves.

    glibc takes ever larger arrays from heaps, whose holes it keeps: a long run then holds twice what it uses.
    """
    module = _module("ctypes")
    if module is None or os.name != "posix":
        return
    mallopt = getattr(module.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2 << 20)
        mallopt(_M_TRIM_THRESHOLD, 32 << 20)


def cores() -> int:
    """Return the number of cores this process may use; portable: that the machine has."""
    affinity = _native("sched_getaffinity")
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def physical_memory() -> int:
    """Return the bytes of memory of this machine; portable: MEMORY."""
    sysconf = _native("sysconf")
    try:
        return int(sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")) if sysconf else MEMORY
    except (ValueError, OSError):
        return MEMORY


def open_files() -> int:
    """Return how many files this process may open, after asking for as many as it may ask for; portable: few.

    What a shell allows at first is often a small part of what the system does.
    """
    resource = _module("resource")
    if resource is None:
        return OPEN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return int(wanted if soft == resource.RLIM_INFINITY else min(soft, MOST_FILES))


def wait(process: subprocess.Popen[Any]) -> int:
    """Wait for the end of a process and return its largest resident set in bytes; portable: 0."""
    wait4 = _native("wait4")
    if not wait4:
        process.wait()
        return 0
    _, status, usage = wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return int(usage.ru_maxrss * 1024)


# ------------------------------------------------------------------------------------------------------ opening files


def open_input(path: Path | str) -> int:
    """Open a file for reading, without waiting for a writer if it is a pipe.

    Portable: a pipe that was not one when its path was looked at is waited for.
    """
    return os.open(path, os.O_RDONLY | _flags("O_NONBLOCK"))


def create(path: Path) -> int:
    """Create a file that is written beside an output and open it; FileExistsError if anything of that name is there."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _flags("O_NOFOLLOW"), 0o644)


def reopen(path: Path) -> int:
    """Open a file beside an output that is there already; a link that was put there is an OSError.

    Portable: a link or pipe that is put there between the look and the opening is followed or waited for.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return os.open(path, os.O_RDWR | _flags("O_NOFOLLOW", "O_NONBLOCK"))


def is_own(status: Status) -> bool:
    """Whether a file belongs to the user who runs this process; portable: always True."""
    geteuid = _native("geteuid")
    return geteuid is None or status.st_uid == geteuid()


def is_private(state: Status) -> bool:
    """Whether a file or directory is this user's and nobody else can write to it; portable: True."""
    return is_own(state) and (_native("geteuid") is None or not state.st_mode & 0o022)


def renames_open_files() -> bool:
    """Whether a file can be renamed and deleted while it is open.

    Portable: it cannot, so it is closed first, and its lock is gone a moment before its name.
    """
    return not PORTABLE and os.name == "posix"


# ---------------------------------------------------------------------------------------------- reading and writing


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Fill a buffer from a position on, at least in part; return how many bytes were read, 0 at the end of the file.

    Portable: threads read and write one after the other, and bytes are copied once more.
    """
    preadv = _native("preadv")
    if preadv:
        return int(preadv(fd, [view], offset))
    with _position:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(fd: int, view: memoryview, offset: int) -> int:
    """Write bytes at a position, at least some; return how many. Portable: threads take turns."""
    pwrite = _native("pwrite")
    if pwrite:
        return int(pwrite(fd, view, offset))
    with _position:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, view)


def append(fd: int, data: bytes | memoryview) -> None:
    """Write bytes after the end of a file that this thread alone writes."""
    os.lseek(fd, 0, os.SEEK_END)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy_range(source: int, start: int, target: int, offset: int, count: int) -> int:
    """Copy bytes from file to file inside the OS; return how many, fewer where it refuses. Portable: none."""
    copy: Callable[..., int] | None = _native("copy_file_range")
    done, copied = 0, 1
    with contextlib.suppress(OSError):  # reading and writing the rest will say what is wrong
        while copy and copied and done < count:
            copied = copy(source, target, count - done, start + done, offset + done)
            done += copied
    return done


def sync_data(fd: int) -> None:
    """Wait until what was written to a file is on the disk, where its file system can say so.

    Portable: the time of the last change is brought to the disk too, which takes longer.
    """
    sync = _native("fdatasync") or os.fsync
    try:
        sync(fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def sync_directory(directory: Path) -> None:
    """Wait until a new name is on the disk, where directories can be synced.

    Where they cannot, and portable, a power cut may bring back the old name of a file; it is complete under either.
    """
    if not _native("O_DIRECTORY"):
        return
    try:
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


# ------------------------------------------------------------------------------------------------ names of files


def truncate(fd: int, size: int) -> None:
    """Give a file its size."""
    os.ftruncate(fd, size)


def name_new(path: Path, final: Path) -> None:
    """Give a file another name, one that nothing has; FileExistsError, and no change, if something has it.

    For an instant the file has both names. Portable, and on file systems without hard links: a file that takes the name
    between the look and the renaming is replaced where the OS does not say no itself.
    """
    link = _native("link")
    try:
        if link:
            link(path, final)
            _unlink_twin(path, final)
            return
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    if os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    os.rename(path, final)  # noqa: PTH104


def _unlink_twin(path: Path, final: Path) -> None:
    """Take the first of a file's two names away, unless another file has it by now."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), os.lstat(final)):
            os.unlink(path)  # noqa: PTH108 - all calls of this module are those of `os`


def replace(path: Path, final: Path) -> None:
    """Give a file another name, and take it from the file that has it."""
    os.replace(path, final)  # noqa: PTH105


def remove(path: Path) -> None:
    """Take a file's name away, where it has it; a directory that has it by now keeps it."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(path)  # noqa: PTH108


# ------------------------------------------------------------------------------------------------- advice and locks


def will_read(fd: int, offset: int, count: int) -> None:
    """Ask the OS to fetch a range in the background; portable: it is fetched when it is read."""
    _advise(fd, offset, count, "POSIX_FADV_WILLNEED")


def was_read(fd: int, offset: int, count: int) -> None:
    """Let the OS forget a range that will not be wanted again; portable: it forgets what it likes."""
    _advise(fd, offset, count, "POSIX_FADV_DONTNEED")


def start_sync(fd: int) -> None:
    """Let the OS begin to write what it holds of a file, and drop what is on the disk already; does not wait.

    Portable: more is left for `sync_data` to wait for.
    """
    _advise(fd, 0, 0, "POSIX_FADV_DONTNEED")


def _advise(fd: int, offset: int, count: int, advice: str) -> None:
    advise = _native("posix_fadvise")
    if advise:
        with contextlib.suppress(OSError):
            advise(fd, offset, count, getattr(os, advice))


def lock(fd: int) -> bool:
    """Lock a file until it is closed; False if another process has it locked.

    Portable, and on file systems without locks: always True, so two processes may write the same file at once.
    """
    return _locked(fd, "LOCK_EX")


def lock_shared(fd: int) -> bool:
    """Lock a file against those who `lock` it, and not against others like this; otherwise as `lock`."""
    return _locked(fd, "LOCK_SH")


def _locked(fd: int, kind: str) -> bool:
    fcntl = _module("fcntl")
    try:
        if fcntl:
            fcntl.flock(fd, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


# ------------------------------------------------------------------------------------------------------------- space


def allocated_bytes(fd: int) -> int:
    """Return how many bytes of the disk a file takes; portable: its size, as if it had no holes."""
    status = os.fstat(fd)
    blocks = None if PORTABLE else getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else blocks * 512


def may_grow_to(fd: int, size: int) -> bool:
    """Whether the process and the file system allow a file of that size, as far as they say; portable: always True.

    FAT ends at 4 GiB. Linux does not let a position lie beyond what the file system can hold.
    """
    resource = _module("resource")
    if resource is None:
        return True
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    try:
        os.lseek(fd, size, os.SEEK_SET)  # reads and writes have positions of their own
    except OSError:
        return False
    return bool(limit == resource.RLIM_INFINITY or size <= limit)


def file_limit() -> int | None:
    """Return how large a file this process may write, None for any size; portable: None."""
    resource = _module("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource else -1
    return None if resource is None or limit == resource.RLIM_INFINITY else int(limit)


def free_bytes(directory: Path) -> int:
    """Return how many bytes an ordinary user may still write to a directory."""
    return shutil.disk_usage(directory).free
