"""What the server keeps from programs of its own user: tried as a user without privileges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has the call")

NOBODY = 65534

SERVER = """
import ctypes, os, subprocess, sys
sys.path[:0] = {path!r}
import session_http.hiding
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
    # As after a start under that user: to change it hides a process, too.
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
{hide}
me = os.getpid()
look = (
    "for file in environ mem maps; do cat /proc/%d/$file >/dev/null 2>&1 && echo read $file; done;"
    "ls /proc/%d/fd >/dev/null 2>&1 && echo read fd;"
    "cat /proc/self/environ | tr '\\\\0' '\\\\n' | grep ^OWN; echo done" % (me, me)
)
own = {{**os.environ, "OWN": "1"}}
print(subprocess.run(["sh", "-c", look], capture_output=True, text=True, env=own).stdout)
# What the server itself does with /proc goes on.
print("descriptors", len(os.listdir("/proc/self/fd")) > 0)
fd = os.open("/", os.O_PATH)
print("where", os.readlink("/proc/self/fd/%d" % fd))
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdin.write(b"x"); child.stdin.flush()
child.stdout.read(1)  # from here on it is surely cat, and no copy of us
try:
    print("child", open("/proc/%d/environ" % child.pid, "rb").read() != b"")
    print("memory", "Pss" in open("/proc/%d/smaps_rollup" % child.pid).read())
finally:
    child.kill()
print("limits", "open files" in open("/proc/self/limits").read())
"""


def served(hide: str) -> list[str]:
    code = SERVER.format(path=[str(Path(__file__).parents[2] / "http")], hide=hide, nobody=NOBODY)
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PATH": os.environ["PATH"], "SECRET": "canary"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_programs_of_the_same_user_cannot_look_into_the_server() -> None:
    said = served("assert session_http.hiding.hide_environment()")
    assert not [line for line in said if line.startswith("read")]
    # What it starts is no different, and neither is what it does itself.
    for line in ("OWN=1", "done", "descriptors True", "where /", "child True", "memory True"):
        assert line in said
    assert "limits True" in said


def test_without_it_they_can() -> None:
    assert {"read environ", "read maps", "read fd"} <= set(served("pass"))
