"""A real file system without hard links, flushing of folders, and shared memory maps.

CIFS, 9p and FUSE may lack these three. It passes all else on to a folder below, in the language of
Linux's /dev/fuse: `python odd_disk.py BELOW MOUNTPOINT` serves until it is unmounted.
"""

import ctypes
import errno
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = 1
_DIRECT_IO = 1  # the kernel then refuses to share a map of the file
_NO_ANSWER = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET


def missing() -> str | None:
    """Why there can be none here, None where there can."""
    is_root = os.geteuid() == 0 and Path("/dev/fuse").exists()
    return None if is_root else "needs root, and a kernel with FUSE: modprobe fuse"


@contextmanager
def odd_disk(folder: Path) -> Iterator[Path]:
    """Have one mounted in a folder."""
    below, above = folder / "below", folder / "odd"
    below.mkdir()
    above.mkdir()
    server = subprocess.Popen([sys.executable, __file__, str(below), str(above)])
    try:
        while not os.path.ismount(above):
            assert server.poll() is None, "it cannot be mounted here"
            time.sleep(0.01)
        yield above
    finally:
        subprocess.run(["umount", "--lazy", above], check=False)
        server.kill()
        server.wait()


class Disk:
    """The kernel's questions by number, each answered from the folder below."""

    def __init__(self, below: Path) -> None:
        self._paths, self._ids, self._next = {_ROOT: below}, {below: _ROOT}, _ROOT + 1

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        """Return the answer; raises OSError, and KeyError for a question that is not known."""
        path = self._paths.get(node, Path("/nowhere"))
        return _QUESTIONS[opcode](self, path, body)

    def _entry(self, path: Path) -> bytes:
        facts = _facts(path)
        if path not in self._ids:
            self._ids[path], self._paths[self._next] = self._next, path
            self._next += 1
        return struct.pack("<QQQQII", self._ids[path], 0, 0, 0, 0, 0) + facts

    def init(self, _: Path, __: bytes) -> bytes:
        big_writes, most = 1 << 5, 1 << 17
        return struct.pack("<4I2H2I", 7, 31, most, big_writes, 12, 9, most, 1).ljust(64, b"\0")

    def look_up(self, path: Path, body: bytes) -> bytes:
        return self._entry(path / _name(body))

    def attributes(self, path: Path, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + _facts(path)

    def change(self, path: Path, body: bytes) -> bytes:
        valid, _, _, size, _, atime, mtime, _, *rest = struct.unpack("<2I6Q8I", body)
        if valid & 1 << 3:
            os.truncate(path, size)
        if valid & (1 << 4 | 1 << 5):
            now = valid & (1 << 7 | 1 << 8)
            os.utime(path, None if now else (atime, mtime), follow_symlinks=False)
        if valid & 1:
            path.chmod(rest[3] & 0o7777)
        return self.attributes(path, b"")

    def read_link(self, path: Path, _: bytes) -> bytes:
        return os.fsencode(path.readlink())

    def make_link(self, path: Path, body: bytes) -> bytes:
        name, target = map(os.fsdecode, body.split(b"\0")[:2])
        (path / name).symlink_to(target)
        return self._entry(path / name)

    def make_folder(self, path: Path, body: bytes) -> bytes:
        mode, umask = struct.unpack_from("<II", body)
        (path / _name(body[8:])).mkdir(mode & ~umask)
        return self._entry(path / _name(body[8:]))

    def unlink(self, path: Path, body: bytes) -> bytes:
        (path / _name(body)).unlink()
        return b""

    def remove_folder(self, path: Path, body: bytes) -> bytes:
        (path / _name(body)).rmdir()
        return b""

    def rename(self, path: Path, body: bytes, names_at: int = 8) -> bytes:
        to = self._paths[struct.unpack_from("<Q", body)[0]]
        old, new = map(os.fsdecode, body[names_at:].split(b"\0")[:2])
        before, after = path / old, to / new
        before.rename(after)
        self._ids.pop(after, None)
        for known in [one for one in self._ids if one.is_relative_to(before)]:
            node, moved = self._ids.pop(known), after / known.relative_to(before)
            self._ids[moved], self._paths[node] = node, moved
        return b""

    def rename_with_flags(self, path: Path, body: bytes) -> bytes:
        return self.rename(path, body, 16)

    def hard_link(self, _: Path, __: bytes) -> bytes:
        raise PermissionError(errno.EPERM, "no hard links")

    def open(self, path: Path, body: bytes) -> bytes:
        flags = struct.unpack_from("<I", body)[0] & ~os.O_DIRECT & ~os.O_NOFOLLOW
        return struct.pack("<QIi", os.open(path, flags), _DIRECT_IO, 0)

    def create(self, path: Path, body: bytes) -> bytes:
        flags, mode, umask, _ = struct.unpack_from("<4I", body)
        file = os.open(path / _name(body[16:]), flags, mode & ~umask)
        return self.look_up(path, body[16:]) + struct.pack("<QIi", file, _DIRECT_IO, 0)

    def read(self, _: Path, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(file, size, offset)

    def write(self, _: Path, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(file, body[40 : 40 + size], offset), 0)

    def space(self, path: Path, _: bytes) -> bytes:
        s = os.statvfs(path)
        counts = (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree)
        return struct.pack("<5Q4I", *counts, s.f_bsize, 255, s.f_frsize, 0).ljust(80, b"\0")

    def release(self, _: Path, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def flush_file(self, _: Path, body: bytes) -> bytes:
        os.fsync(struct.unpack_from("<Q", body)[0])
        return b""

    def flush_folder(self, _: Path, __: bytes) -> bytes:
        raise OSError(errno.EINVAL, "folders are not flushed")

    def nothing(self, _: Path, __: bytes) -> bytes:
        return b""

    def open_folder(self, _: Path, __: bytes) -> bytes:
        return bytes(16)

    def read_folder(self, path: Path, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        names = [".", "..", *sorted(entry.name for entry in path.iterdir())]
        found = b""
        for at, name in enumerate(map(os.fsencode, names), 1):
            entry = struct.pack("<QQII", at, at, len(name), 0) + name
            entry += bytes(-len(entry) % 8)
            if at > offset and len(found) + len(entry) <= size:
                found += entry
        return found


_QUESTIONS: dict[int, Callable[[Disk, Path, bytes], bytes]] = {
    1: Disk.look_up,
    3: Disk.attributes,
    4: Disk.change,
    5: Disk.read_link,
    6: Disk.make_link,
    9: Disk.make_folder,
    10: Disk.unlink,
    11: Disk.remove_folder,
    12: Disk.rename,
    13: Disk.hard_link,
    14: Disk.open,
    15: Disk.read,
    16: Disk.write,
    17: Disk.space,
    18: Disk.release,
    20: Disk.flush_file,
    25: Disk.nothing,
    26: Disk.init,
    27: Disk.open_folder,
    28: Disk.read_folder,
    29: Disk.nothing,
    30: Disk.flush_folder,
    35: Disk.create,
    38: Disk.nothing,
    45: Disk.rename_with_flags,
}


def _facts(path: Path) -> bytes:
    s = path.lstat()
    times = (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
    parts = [t // 10**9 for t in times] + [t % 10**9 for t in times]
    numbers = (s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, 4096, 0)
    return struct.pack("<6Q10I", s.st_ino, s.st_size, s.st_blocks, *parts, *numbers)


def _name(body: bytes) -> str:
    return os.fsdecode(body.split(b"\0")[0])


def serve(below: str, above: str) -> None:
    """Mount the folder `below` at `above`, and answer until it is unmounted."""
    kernel = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={kernel},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    mount = ctypes.CDLL(None, use_errno=True).mount
    if mount(b"odd", above.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    disk = Disk(Path(below))
    while True:
        try:
            asked = os.read(kernel, (1 << 17) + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            continue  # a question that was taken back
        _, opcode, unique, node = struct.unpack_from("<IIQQ", asked)
        if opcode in _NO_ANSWER:
            continue
        try:
            found, failure = disk.answer(opcode, node, asked[40:]), 0
        except KeyError:
            found, failure = b"", errno.ENOSYS
        except OSError as error:
            found, failure = b"", error.errno or errno.EIO
        try:
            os.write(kernel, struct.pack("<IiQ", 16 + len(found), -failure, unique) + found)
        except FileNotFoundError:  # nobody waits for it any longer
            continue


if __name__ == "__main__":
    os.umask(0)
    serve(*sys.argv[1:])
