"""Runs programs that nobody has read: many at once, each shut in, each with a result, whatever it does.

    with Sandbox() as sandbox:
        sandbox.run("print(int(input()) + 1)", stdin="41").stdout        # "42\\n"
        sandbox.test("def f(x): return x * x", UnitTests(("assert f(3) == 9",), names=("f",))).ok    # True
        sandbox.level                                                    # what is in force on this machine

How. A slot is a warm interpreter behind walls (`level.py`: bubblewrap where it is installed); it forks for every
program, so that a small one takes a few milliseconds. Every program has process and mount namespaces of its own, an
empty /tmp in memory, limits (`Limits`) and a system-call filter (`filter.py`). It is the first process of its
namespace: when it ends or its time is up, the kernel kills whatever it has left running, and then its files are gone
with it. The server that forked it is not in its namespace, holds nothing worth reading, and says only what the kernel
says of the program's end; output and verdicts are files in memory that the pool reads itself.

Tests run in a process of their own that the program cannot see (`inside/judge.py`): they call the program over a
socket and get plain values back. So exit codes, printed markers, patched builtins, equality that always holds and
searches through frames, memory or files find nothing: an answer counts by the values that it computes.

What it covers: network, files and other processes of the machine; CPU time and, far beyond, wall time; memory,
processes, file sizes, output. A slot that is gone is replaced, for it may have been shot from outside: its program runs
again, and has the result "broken" when the second slot is gone too.

What it does not cover:
- The level `limits`, used where the kernel refuses namespaces, leaves the machine's files readable and its processes
  visible. Its programs can neither write, fork, connect nor signal, and are never root, but `Level.strong` is false,
  and every report says so: put a container around it, or install bubblewrap. `sandbox: strong` in a domain refuses it.
- Faults of the kernel itself, side channels and timing. For determined attackers use a virtual machine.
- Memory counts per process: a program may hold `memory_mib` times `processes`. If the machine runs out of it, the
  kernel is told to kill inside the sandbox first.
- Several programs at once share cores: one that others slow down more than tenfold may hit its limit of wall time.
- Programs see the standard library and the system's read-only folders (/usr), and no installed packages.
- Programs and tests exchange values, not references: what changes its argument in place cannot be tested so.
- A test that asks the program's object for a verdict (`assert f(x).is_valid()`) believes it, even where the right
  answer were a plain value and the method one of Python's (`startswith`).
- Only Linux, from 5.3; the filter only on x86-64 and 64-bit ARM.
"""

from onepolicy.sandbox.level import Level, SandboxError, Walls
from onepolicy.sandbox.pool import (
    WALL,
    Limits,
    Outcome,
    Sandbox,
    UnitTests,
    Verdict,
    require,
    restarts_of_this_thread,
    shared,
    strongest,
)

__all__ = [
    "WALL",
    "Level",
    "Limits",
    "Outcome",
    "Sandbox",
    "SandboxError",
    "UnitTests",
    "Verdict",
    "Walls",
    "require",
    "restarts_of_this_thread",
    "shared",
    "strongest",
]
