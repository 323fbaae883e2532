"""The package on systems without POSIX."""

import subprocess
import sys

import numpy as np

# In a process of its own: what only POSIX has is hidden, once the packages of others are imported.
ELSEWHERE = """
import importlib, os, pkgutil, signal, sys, types
import rich.console
import scipy.spatial, scipy.stats, sklearn.cluster, sklearn.manifold, threadpoolctl, timm, torch._dynamo, torchvision
class msvcrt(types.ModuleType):
    LK_UNLCK, LK_NBLCK, held = 0, 2, []
    def locking(self, descriptor, mode, count):
        if mode == self.LK_UNLCK:
            return self.held.remove(os.fstat(descriptor).st_ino)
        if os.fstat(descriptor).st_ino in self.held:
            raise PermissionError(13, "Permission denied")
        self.held.append(os.fstat(descriptor).st_ino)
sys.modules["msvcrt"] = msvcrt("msvcrt")
for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix", "syslog"):
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "getgid", "getpgid", "killpg", "sched_getaffinity", "sysconf", "mkfifo",
             "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "chown", "statvfs", "register_at_fork", "sendfile", "pread"):
    vars(os).pop(name, None)
for name in ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "setitimer", "ITIMER_REAL", "pthread_sigmask"):
    vars(signal).pop(name, None)
threadpoolctl.sys = types.SimpleNamespace(**vars(sys))  # it looks for the libraries of the system that is there
sys.platform = "win32"
import deepcluster
for module in pkgutil.walk_packages(deepcluster.__path__, "deepcluster."):
    importlib.import_module(module.name)
from pathlib import Path
from deepcluster.commands.cli import run_command
from deepcluster.errors import DiskError
from deepcluster.storage.run_folder import locked
with locked(Path("locked"), make=True):
    try:
        with locked(Path("locked"), make=True):
            sys.exit("two have the lock")
    except DiskError as error:
        assert "locked" in str(error), error
with locked(Path("locked"), make=True):
    pass
for line in ("fit images.npy -k 3 --rounds 0 --image-size 16 -o run --quiet", "predict run images.npy -o new.csv"):
    assert run_command(line.split()) == 0, line
"""


def test_nothing_needs_posix(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "new.csv").read_text().splitlines()) == 31
