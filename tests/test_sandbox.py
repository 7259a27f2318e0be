"""The sandbox, one property at a time, on every level that this machine has; what was tested is said at the end.

The thousand hostile programs in a row: `pytest -m slow tests/test_sandbox.py -s`.
"""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path

import pytest

from onepolicy.sandbox import Limits, Sandbox, SandboxError, UnitTests, pool, restarts_of_this_thread, strongest
from onepolicy.sandbox import level as levels
from onepolicy.sandbox.filter import _COMPUTE, _RULED, _WORLD
from onepolicy.sandbox.pool import MAX_REASON
from tests.attacks.programs import HOSTILE

FOUND: dict[str, str] = {}  # isolator → the level that was tested, or why there is none; `conftest` shows it
QUICK = Limits(wall_s=0.25, cpu_s=1, memory_mib=128)
TRACES = {*map(str, range(100)), "root", "a", "p", "l", "x", "y", "sda", "d", "left"}  # what HOSTILE writes to /tmp
PATIENT = Limits(wall_s=30, cpu_s=10, memory_mib=128)  # what has to end by itself may do so on a busy machine


FLAT = "bubblewrap alone"  # what is left of it where a kernel forbids namespaces within namespaces


@pytest.fixture(scope="module", params=[*levels.ISOLATORS, FLAT])
def sandbox(request):
    setup = levels.setup
    with pytest.MonkeyPatch.context() as patch:
        if request.param == FLAT:
            patch.setattr(levels, "setup", lambda *given: {**setup(*given), "nest": False})
        strongest.cache_clear()
        try:
            with Sandbox(2, isolator=request.param.split()[0]) as found:
                FOUND[request.param] = str(found.level)
                yield found
        except SandboxError as error:
            FOUND[request.param] = f"NOT TESTED ({error})"
            pytest.skip(str(error))
        finally:
            strongest.cache_clear()


def processes(roots=None):
    """Ids of all our descendants (or of `roots` and theirs), zombies included."""
    found = list(roots or ())
    frontier = list(found) if roots is not None else [os.getpid()]
    while frontier:
        pid = frontier.pop()
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                children = [int(child) for child in task.read_text().split()]
            except OSError:  # it ended meanwhile
                continue
            found += children
            frontier += children
    return found


def of(sandbox):
    """Ids of a sandbox's own processes: other tests have sandboxes and helpers of theirs in this process."""
    slots = sandbox.close.peek()[2][0]
    return processes([slot._process.pid for slot in slots if slot._process is not None])


def running(text):
    """The processes of the machine with `text` in their command line."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.add(path.parent.name)
        except OSError:
            continue
    return found


def spent():
    """Seconds of CPU time, of ours and of all our descendants, those that have ended included."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in (os.getpid(), *processes())]
    return sum(int(ticks) for stat in stats for ticks in stat[11:15]) / os.sysconf("SC_CLK_TCK")


def until(true):
    """Wait for it, as long as a busy machine may take. Fails when it stays false."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, f"(processes, /tmp, files in /dev/shm, open files) are {left()}"
        time.sleep(0.02)


# --- levels ---


def test_the_strongest_level_is_found_and_told():
    level = strongest()
    assert level == strongest(level.isolator) or level.refused
    assert str(level).startswith(level.isolator)
    if os.getuid() == 0 and shutil.which("bwrap"):
        assert level.strong and level.own_user and level.nested and level.filter


def test_elsewhere_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="this is darwin: use a container"):
        levels.candidates()


def test_without_bubblewrap_the_next_level_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match=r"not installed \(Debian: apt-get install bubblewrap\)"):
        levels.command(levels.Level("bubblewrap", own_user=False))


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_of_system_calls_are_those_of_the_kernels_headers(machine):
    if not Path(HEADERS[machine]).exists():
        pytest.skip("no kernel headers here")
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(HEADERS[machine]).read_text()))
    defined.setdefault("newfstatat", defined.get("fstatat", ""))
    column = list(HEADERS).index(machine) + 1
    for entry in (_COMPUTE + _WORLD + _RULED).split():
        name, number = entry.split(":")[0], entry.split(":")[column]
        assert defined.get(name, "") == number, name


def test_the_filter_exists_for_this_machine():
    assert platform.machine() in HEADERS, "the sandbox is weaker here: say so in its docstring"


# --- programs ---


def test_a_program_has_arguments_input_output_files_and_an_exit_code(sandbox):
    program = "import sys\nprint(sys.argv, input(), open('data/a.txt').read(), __name__)\nprint('oh', file=sys.stderr)"
    found = sandbox.run(program, "one\ntwo\n", {"data/a.txt": "three"})
    assert (found.status, found.reason) == ("ok", "")
    assert (found.stdout, found.stderr) == ("['main.py'] one three __main__\n", "oh\n")
    assert 0 < found.cpu_s < 1 and 0 < found.wall_s < 5


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("", "ok", ""),
        ("exit()", "ok", ""),
        ("import sys; sys.exit(3)", "failed", "exit code 3"),
        ("import sys; sys.exit('no')", "failed", "exit code 1: no"),
        ("import os; os._exit(255)", "failed", "exit code 255"),
        ("1/0", "failed", "exit code 1: ZeroDivisionError: division by zero"),
        ("print(", "failed", "exit code 1: SyntaxError: '(' was never closed"),
        ("x = 1\x00", "failed", "exit code 1: "),
        ("class E(Exception):\n def __str__(s): 1/0\nraise E", "failed", "exit code 1: E: <exception str() failed>"),
        ("import ctypes; ctypes.string_at(0)", "killed", "killed by a signal: Segmentation fault"),
        ("while True: pass", "late", "not done after 0.25 s"),
        ("import time; time.sleep(9)", "late", "not done after 0.25 s"),
        ("import threading, time; threading.Thread(target=time.sleep, args=(9,)).start()", "late", "not done"),
        ("x = bytearray(10**9)", "failed", "exit code 1: MemoryError"),
        ("print('x' * 2**20)", "output", "more output than 1 MiB"),
        ("while True: print('x' * 9999)", "failed", "exit code 1: OSError: [Errno 27] File too large"),
        ("def f(): f()\nf()", "failed", "exit code 1: RecursionError"),
        ("import sys; sys.stdout = None", "failed", "exit code 1"),
    ],
)
def test_every_program_has_a_result(sandbox, program, status, reason):
    found = sandbox.run(program, limits=QUICK if status == "late" else PATIENT)
    assert (found.status, found.reason[: len(reason)]) == (status, reason)
    assert sandbox.run("print(6 * 7)").stdout == "42\n"


def test_what_a_program_leaves_to_the_end_is_still_done(sandbox):
    program = "import atexit, threading\natexit.register(print, 3)\nthreading.Thread(target=print, args=(2,)).start()"
    assert sandbox.run(f"{program}\nprint(1)").stdout.split() in (["1", "2", "3"], ["2", "1", "3"])


def test_cpu_time_is_limited_apart_from_time():
    with Sandbox(1) as sandbox:
        found = sandbox.run("while True: pass", limits=Limits(wall_s=60, cpu_s=1))
    assert (found.status, found.reason) == ("killed", "used up 1 s of CPU time")


def test_common_modules_are_there_and_installed_packages_are_not(sandbox):
    assert sandbox.run("import json, xml.dom.minidom, sqlite3, multiprocessing, asyncio").status == "ok"
    assert "No module named 'pydantic'" in sandbox.run("import pydantic").reason


def test_what_draws_lots_draws_the_same_every_time(sandbox):
    program = "import random; print(random.random(), hash('a'), list({'a', 'b', 'c'}))"
    assert len({sandbox.run(program).stdout for _ in range(4)}) == 1


def test_files_that_would_lie_elsewhere_are_refused(sandbox):
    for path in ("/etc/passwd", "../x", "a/../../x", ""):
        with pytest.raises(ValueError, match="is no path below the program's folder"):
            sandbox.run("", files={path: "x"})


# --- walls ---


def test_nobody_can_be_reached_over_the_network(sandbox):
    program = """
import socket
def attempt(*address, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    try:
        with socket.socket(family, kind) as link:
            link.settimeout(0.2)
            link.connect(address[0] if len(address) == 1 else address)
        print('connected', address)
    except OSError as error:
        pass
attempt('1.1.1.1', 53)
attempt('127.0.0.1', PORT)
attempt('169.254.169.254', 80)
attempt('::1', PORT, family=socket.AF_INET6)
attempt('8.8.8.8', 53, kind=socket.SOCK_DGRAM)
attempt(2, 1024, family=40)
attempt('\\0/tmp/.X11-unix/X0', family=socket.AF_UNIX)
print('done')
"""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert sandbox.run(program.replace("PORT", str(server.getsockname()[1]))).stdout == "done\n"


def test_nothing_outside_can_be_written_or_removed(sandbox, tmp_path):
    tmp_path.chmod(0o777)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    mine.chmod(0o666)
    program = """
import os, sys
for path in ('/usr/x', '/x', '/etc/x', '/root/x', '/home/x', '/var/tmp/x', '/proc/self/comm', '/sys/x', '/dev/x',
             os.__file__, 'OUT/x', 'OUT/mine'):
    for deed in (lambda: open(path, 'w').write('x'), lambda: open(path, 'a').write('x'), lambda: os.unlink(path),
                 lambda: os.mkdir(path), lambda: os.symlink('/', path), lambda: os.chmod(path, 0o777),
                 lambda: os.truncate(path, 0), lambda: os.rename(path, '/tmp/y'), lambda: os.chroot('/')):
        try:
            deed()
            print('did', path)
        except OSError:
            pass
for path in ('/dev/null', '/dev/zero', '/dev/urandom', '/usr', os.__file__, 'OUT', 'OUT/mine'):
    for deed in (lambda: os.utime(path), lambda: os.utime(path, (0, 0)), lambda: os.chmod(path, 0)):
        try:
            deed()
            print('did', path)
        except OSError:
            pass
print(open('/dev/null', 'r+b', 0).write(b'x') if MAY_WRITE else 1)  # a device is one still
""".replace("OUT", str(tmp_path)).replace("MAY_WRITE", str(sandbox.level.nested))
    times = [os.stat(path).st_mtime_ns for path in ("/dev/null", "/dev/zero", "/dev/urandom")]
    assert sandbox.run(program).stdout == "1\n"
    assert times[1:] == [os.stat(path).st_mtime_ns for path in ("/dev/zero", "/dev/urandom")]
    assert os.listdir(tmp_path) == ["mine"] and mine.read_text() == "mine" and mine.stat().st_mode & 0o777 == 0o666


def test_a_strong_level_shows_neither_files_nor_processes_nor_the_environment(sandbox, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "token")
    (tmp_path / "tests.jsonl").write_text("expected")
    program = f"""
import os
print(sorted(os.environ))
paths = '{tmp_path}/tests.jsonl', '/etc/passwd', '{__file__}', '/sys/kernel', '/proc/{os.getpid()}/cmdline'
print([path for path in paths if os.path.exists(path)])
print(os.getpid(), os.getppid(), os.listdir('/tmp'), os.listdir('/dev/shm'), os.path.exists('/proc/1'))
"""
    environment, seen, own = sandbox.run(program).stdout.splitlines()
    assert "SECRET" not in environment
    assert (seen == "[]") == sandbox.level.strong == ("WEAK" not in str(sandbox.level))
    assert (own == "1 0 [] [] False") == sandbox.level.nested


def test_privileges_are_gone_and_cannot_be_regained(sandbox):
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
attempts = dict(unshare=(0x10000000,), mount=(b'x', b'/tmp', b'tmpfs', 0, None), setuid=(0,), umount=(b'/tmp',),
                ptrace=(0, 0, 0, 0), sethostname=(b'x', 1), setns=(0, 0), chroot=(b'/',), swapon=(b'/x', 0),
                personality=(8,), memfd_create=(b'x', 0), process_vm_readv=(1, 0, 0, 0, 0, 0))
for name, arguments in attempts.items():
    if getattr(libc, name)(*arguments) != -1:
        print('succeeded:', name)
for name, number in dict(io_uring_setup=425, pidfd_open=434, mount_setattr=442).items():  # the same everywhere
    if libc.syscall(number, 1, 0, 0, 0, 0) != -1:
        print('succeeded:', name)
print(open('/proc/self/status').read() if os.path.exists('/proc/self/status') else 'no /proc')
"""
    found = sandbox.run(program)
    assert "succeeded" not in found.stdout and found.stdout, found
    if "CapEff" in found.stdout:
        assert re.findall(r"Cap(?:Inh|Prm|Eff|Amb):\s*(\w+)", found.stdout) == ["0" * 16] * 4
        assert "NoNewPrivs:\t1" in found.stdout and "Seccomp:\t2" in found.stdout


def test_sockets_are_of_few_families_kinds_and_protocols(sandbox):
    program = """
import itertools, socket
for parts in itertools.product((1, 2, 10, 16, 17, 29, 31, 38, 40), (1, 2, 3, 5), (0, 1, 6, 17, 58, 132, 262)):
    try:
        socket.socket(*parts)
        print(*parts)
    except OSError:
        pass
"""  # families: UNIX, Internet twice, netlink, packet, CAN, bluetooth, ALG, vsock; kind 3: raw; ICMP, SCTP, MPTCP
    found = sandbox.run(program)
    allowed = ["1 1 0", "1 2 0", "1 5 0", "2 1 0", "2 1 6", "2 2 0", "2 2 17", "10 1 0", "10 1 6", "10 2 0", "10 2 17"]
    assert (found.status, found.stdout.split("\n")[:-1]) == ("ok", allowed if sandbox.level.filter == "full" else [])


def test_nothing_runs_as_root_where_no_walls_are(sandbox):
    user = sandbox.run("import os; print(os.getuid(), os.geteuid(), os.getgid(), os.getgroups())").stdout.split()
    assert sandbox.level.isolator != "limits" or "0" not in user[:3]
    assert os.getuid() != 0 or sandbox.level.own_user


@pytest.mark.skipif(os.getuid() != 0, reason="for root alone")
def test_a_root_that_cannot_become_another_user_gets_no_weak_sandbox():
    assert [level.own_user for level in levels.candidates() if level.isolator == "limits"] == [True]
    script = "from onepolicy.sandbox import strongest\nprint(strongest('limits'))"
    without = ["setpriv", "--bounding-set", "-setuid,-setgid", "--inh-caps", "-all"]
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([*without, sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    last = ended.stderr.strip().split("\n")[-1]
    assert ended.returncode == 1 and re.search(
        "SandboxError: no sandbox works here: limits with a user of its own", last
    )


def test_strong_walls_may_be_asked_for(sandbox, monkeypatch):
    monkeypatch.setattr(pool, "strongest", lambda: sandbox.level)
    pool.require("code", "any")
    if sandbox.level.strong:
        pool.require("code", "strong")
    else:
        with pytest.raises(SandboxError, match="domain 'code' asks for sandbox: strong, and this machine has: limits"):
            pool.require("code", "strong")


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_an_interpreter_may_lie_in_a_private_or_in_the_temporary_folder(sandbox, mode):
    """A copy of this one, below the folder whose place the programs' own /tmp takes."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, mode)
        binary = Path(folder, "python", "bin", version)
        binary.parent.mkdir(parents=True)
        shutil.copy(levels.interpreter(), binary)
        ignored = shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib", "config-*", "__pycache__")
        shutil.copytree(sysconfig.get_path("stdlib"), binary.parents[1] / "lib" / version, ignore=ignored)
        script = f"""
from onepolicy.sandbox import Sandbox
with Sandbox(1, isolator={sandbox.level.isolator!r}) as sandbox:
    print(sandbox.level.strong, sandbox.run("import wave; print(wave.Wave_read.__name__)").stdout)
"""
        library = binary.parents[1] / "lib"
        for shared in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython*.so*"):  # where it is not built in
            shutil.copy(shared, library)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LD_LIBRARY_PATH": str(library)}
        if subprocess.run([binary, "-c", "import ctypes, json"], env=environment, capture_output=True).returncode:
            pytest.skip("this interpreter cannot be moved")
        ended = subprocess.run([binary, "-c", script], env=environment, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == (f"{sandbox.level.strong} Wave_read\n\n", "")


def test_programs_know_nothing_of_one_another(sandbox):
    def around(i):
        program = f"""
import os, time, sys
open('/tmp/left', 'w').write('{i}')
print(os.listdir('/tmp'))
time.sleep(0.05)
"""
        return sandbox.run(program).stdout

    with ThreadPoolExecutor(4) as threads:
        seen = set(threads.map(around, range(12)))
    assert seen == ({"['left']\n"} if sandbox.level.nested else {""})


def test_the_whole_tree_dies_with_its_first_process(sandbox):
    mark = f"{os.getpid()}-{sandbox.level.isolator}"
    program = f"""
import os, subprocess, sys
ends, up = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(1, b'up ')
            os.write(up, b'.')
            os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(1000)', '{mark}'])
        os._exit(0)
for _ in range(3):
    os.read(ends, 1)
"""
    found = sandbox.run(program)
    assert found.stdout == ("up up up " if sandbox.level.nested else "")  # elsewhere it cannot fork at all
    assert not running(mark)


def test_a_fork_bomb_and_a_flood_of_threads_are_over_when_their_time_is(sandbox):
    bombs = [
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        "import threading, time\nwhile True:\n try: threading.Thread(target=time.sleep, args=(9,)).start()\n"
        " except RuntimeError: pass",
    ]
    start = time.monotonic()
    for bomb in bombs:
        assert sandbox.run(bomb, limits=QUICK).status in ("late", "killed")
    assert time.monotonic() - start < 10
    assert sandbox.run("print(1)").status == "ok"


def test_processes_are_counted(sandbox):
    program = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(9)
        count += 1
except OSError as error:
    print(count, error.strerror)
"""
    found = sandbox.run(program, limits=Limits(processes=4)).stdout
    assert found == ("4 Resource temporarily unavailable\n" if sandbox.level.nested else "0 Operation not permitted\n")


def test_scratch_space_is_small(sandbox):
    program = """
import os
written = 0
try:
    for i in range(999):
        with open(f'/tmp/{i}', 'wb') as file:
            written += file.write(b'x' * 2**20)
except OSError as error:
    print(error.strerror)
print(written >> 20)
"""
    found = sandbox.run(program, limits=Limits(scratch_mib=4)).stdout.split("\n")
    assert found[:2] == (["No space left on device", "4"] if sandbox.level.nested else ["Operation not permitted", "0"])


# --- tests of programs ---

SQUARE = UnitTests(("assert f(2) == 4", "assert f(3) == 9"), names=("f",))


@pytest.mark.parametrize(
    ("program", "passed", "reason"),
    [
        ("def f(x): return x * x", 2, ""),
        ("f = lambda x: x ** 2.0", 2, ""),
        ("def f(x): return x + 2", 1, "assert f(3) == 9"),
        ("def f(x): return str(x * x)", 0, "assert f(2) == 4"),
        ("def f(x): raise KeyError(x)", 0, "assert f(2) == 4 (KeyError: '2')"),
        ("def f(x): exit()", 0, "assert f(2) == 4 (ProgramError: SystemExit: None)"),
        ("import os\ndef f(x): os._exit(0)", 0, "assert f(2) == 4 (ProgramError: no answer from the program: it has"),
        ("def g(x): return x * x", 0, "assert f(2) == 4 (AttributeError: module 'solution' has no attribute 'f')"),
        ("def f(x) return", 0, "the program does not load: SyntaxError: expected ':' (solution.py, line 1)"),
        ("exit()", 0, "the program does not load: ProgramError: SystemExit: None"),
        ("", 0, "assert f(2) == 4 (AttributeError: module 'solution' has no attribute 'f')"),
        ("while True: pass", 0, "not done after 0.25 s"),
        ("def f(x):\n while x > 2: pass\n return x * x", 1, "not done after 0.25 s"),
        ("def f(x): return [0] * 10**8", 0, "assert f(2) == 4 (MemoryError)"),
        ("def f(x): return 'x' * 3 * 2**23", 0, "assert f(2) == 4 (ProgramError: no answer from the program: its"),
        ("def f(x): raise StopIteration('s')", 0, "assert f(2) == 4 (ProgramError: StopIteration: s)"),
        ("def f(x): raise ExceptionGroup('g', [OSError()])", 0, "assert f(2) == 4 (ProgramError: ExceptionGroup: g"),
    ],
)
def test_tests_tell_what_passed_and_what_failed_first(sandbox, program, passed, reason):
    verdict = sandbox.test(program, SQUARE, keep_going=True, limits=QUICK if "while" in program else PATIENT)
    assert (verdict.ok, verdict.passed, verdict.total) == (passed == 2, passed, 2)
    assert verdict.reason[: len(reason)] == reason and bool(verdict.reason) == bool(reason)


def test_the_first_failure_is_the_last_unless_tests_keep_going(sandbox):
    tests = UnitTests(("def check(f):\n assert f(1) == 0\n assert f(2) == 2\n assert True\ncheck(f)",), names=("f",))
    short, whole = (sandbox.test("def f(x): return x", tests, keep_going=going) for going in (False, True))
    assert (short.ok, short.passed, short.total) == (False, 0, 2)
    assert (whole.ok, whole.passed, whole.total) == (False, 1, 2)  # `assert True` proves nothing, and does not count


def test_nothing_that_a_program_raises_ends_an_iteration_of_the_tests(sandbox):
    stop = "def f(x): raise StopIteration"
    for code in ("assert all(map(lambda x: f(x) == 4, [2, 7]))", "assert [*filter(f, [1, 2])] == []"):
        verdict = sandbox.test(stop, UnitTests((code,), names=("f",)))
        assert (verdict.ok, verdict.reason) == (False, f"{code} (ProgramError: StopIteration)")


@pytest.mark.parametrize(
    ("program", "test", "passed", "total"),
    [
        ("def f(n): return [9] * 1000 + [0]", "for x in f(5): assert x > 5", 0, 1),
        ("def f(n): return [9] * 1000", "assert f(0) == []\nfor x in f(5): assert x > 5", 1, 2),
        ("def f(n): return [0] * 1000", "assert len(f(0)) == 1000\nfor x in f(5): assert x > 5", 1, 2),
        ("def f(n): return 1 if n else 1/0", "assert f(1) == 1\nf(0)\nassert f(2) == 1", 1, 2),
        ("def f(n): return 1 if n else 1/0", "assert f(1) == 1\nf(0)", 0, 1),  # failed, though not in its assertion
        ("def f(n): raise KeyError", "try:\n f(1)\n assert False\nexcept KeyError:\n assert f", 2, 2),
    ],
)
def test_an_assertion_counts_once_however_often_it_is_reached(sandbox, program, test, passed, total):
    verdict = sandbox.test(program, UnitTests((test,), names=("f",)), keep_going=True)
    assert (verdict.passed, verdict.total, verdict.ok) == (passed, total, passed == total)


SAME = "def f(x): return x"


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(*a, **k): return [a, k]", "assert f(1, 'é\\ud800', b=[None]) == [(1, 'é\\ud800'), {'b': [None]}]"),
        (SAME, "x = (1, {2: {3}}, frozenset([4]), b'5', 6j, bytearray(b'7'), True, None)\nassert f(x) == x"),
        (SAME, "assert f(float('inf')) == float('inf') and f(float('nan')) != f(0.0) and f(-0.0) == 0"),
        ("def f(x): return x ** 999", "assert f(10**9) == 10**8991"),
        ("from collections import *\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from collections import *\ndef f(): return namedtuple('P', 'x y')(1, 2)", "assert f() == (1, 2)"),
        ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2] and sorted(f(2)) == [0, 1]"),
        ("def f(n): return range(n)", "assert len(f(3)) == 3 and f(3)[1] == 1 and [x for x in f(2)] == [0, 1]"),
        ("def f(x):\n def g(y): return x + y\n return g", "assert f(2)(3) == 5"),
        (
            "class f:\n def __init__(s, x): s.x = x\n def up(s): s.x += 1; return s.x",
            "a = f(1)\na.x = 5\nassert a.up() == 6 == a.x",
        ),
        ("class P:\n def __init__(s, x): s.x = x\ndef f(p, q): return p.x + q.x", "assert f(P(1), P(2)) == 3"),
        (
            "def f(x): raise ValueError('no')",
            "try:\n f(1)\n assert False\nexcept ValueError as e:\n assert str(e) == 'no'",
        ),
        (
            "class E(Exception): pass\ndef f(x): raise E('no')",
            "try:\n f(1)\nexcept Exception as e:\n assert str(e) == 'E: no'",
        ),
        (SAME, "import math\nassert math.isclose(f(0.1) + f(0.2), 0.3)"),
        (SAME, "assert [f(x) for x in data['xs']] == data['xs']"),
    ],
)
def test_values_travel_and_objects_stay(sandbox, program, test):
    names = tuple(name for name in ("f", "P") if re.search(rf"\b{name}\b", program))
    verdict = sandbox.test(program, UnitTests((test,), names=names, data={"xs": [1, "a", None]}))
    assert verdict.ok, verdict


def test_tests_that_reach_no_assertion_prove_nothing(sandbox):
    assert sandbox.test("def f(): return []", UnitTests(("for x in f(): assert x",), names=("f",))).reason == (
        "no assertion was reached"
    )
    assert sandbox.test(
        "def f(): return []", UnitTests(("f()",), names=("f",))
    ).ok  # it has none: to get there is the test


ENDLESS = "def f(x):\n while True: pass"


def test_the_limit_of_tests_is_cpu_time(sandbox):
    limits = Limits(cpu_s=1, wall_s=60)
    verdict = sandbox.test(ENDLESS, UnitTests(("assert f(2) == 4",), names=("f",)), limits)
    assert not verdict.ok and not verdict.broken and 0.5 < verdict.cpu_s < 3
    why = "assert f(2) == 4 (ProgramError: no answer from the program: it has ended)"
    assert verdict.reason == (f"used up 1 s of CPU time: {why}" if sandbox.level.nested else why)
    slow = sandbox.test("import time\ndef f(x): time.sleep(1.5); return 4", UnitTests(("assert f(2) == 4",)), limits)
    assert slow.cpu_s < 1  # to sleep is to use none


@pytest.mark.parametrize(
    "says",
    ["raise KeyError('é' * 10**6)", "exec('é' * 10**6)", "import sys; sys.exit('é' * 10**6)", "1" + "😀" * 10**6],
)
def test_a_reason_is_short_whatever_a_program_says(sandbox, says):
    for reason in (
        sandbox.run(says).reason,
        sandbox.test(says, SQUARE).reason,
        sandbox.test(f"def f(x): {says}" if "import" not in says else says, SQUARE).reason,
    ):
        assert 0 < len(reason) <= MAX_REASON and len(reason.encode()) <= 4 * MAX_REASON


def test_a_program_that_writes_to_its_tests_itself_says_no_more(sandbox):
    forged = """
import json, os
line = json.dumps({"raised": "E" * 10**6, "says": "x" * 10**6}).encode() + b"\\n"
for number in range(3, 64):
    try: os.write(number, line)
    except OSError: pass
"""
    assert len(sandbox.test(forged, SQUARE).reason) <= MAX_REASON


# --- the pool ---


@pytest.mark.parametrize("shots", [1, 2])
def test_a_slot_that_is_shot_is_replaced_and_its_program_runs_again_once(sandbox, shots):
    assert sandbox.run("print(1)").status == "ok"
    sandbox.start()
    of_slot, dead = len(of(sandbox)) // sandbox.slots, set()

    def run():
        before = restarts_of_this_thread()
        return sandbox.run("import time; time.sleep(1); print(3)"), restarts_of_this_thread() - before

    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(run)
        for shot in range(shots):
            enough = of_slot if shot else of_slot * sandbox.slots
            until(lambda enough=enough: len(set(of(sandbox)) - dead) > enough)
            for pid in of(sandbox):
                dead.add(pid)
                with suppress(ProcessLookupError):  # killed with its parent already
                    os.kill(pid, signal.SIGKILL)
        outcome, restarts = busy.result()
    found = (outcome.status, outcome.reason, outcome.stdout)
    assert found == (("ok", "", "3\n") if shots == 1 else ("broken", "the sandbox did not survive it", ""))
    assert restarts == 1
    assert sandbox.run("print(2)").stdout == "2\n"


@pytest.mark.parametrize("tested", [False, True])
def test_a_program_that_is_shot_from_outside_runs_again(sandbox, tested):
    sandbox.start()
    idle = set(of(sandbox))
    program = "import time\ntime.sleep(1)\ndef f(): return 3\nprint(f())"

    def run():
        before = restarts_of_this_thread()
        if tested:
            right = sandbox.test(program, UnitTests(("assert f() == 3",), names=("f",))).ok
        else:
            right = sandbox.run(program).stdout == "3\n"
        return right, restarts_of_this_thread() - before

    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(run)
        until(lambda: len(set(of(sandbox)) - idle) > tested)
        time.sleep(0.3)  # both are at work: a process that is killed before is another fault
        os.kill(max(set(of(sandbox)) - idle), signal.SIGKILL)
        right, restarts = busy.result()
    seen = sandbox.level.nested or not tested  # elsewhere the tests' process may not ask how the program has ended
    assert (right, restarts) == (seen, int(seen))


def test_many_threads_share_the_slots(sandbox):
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: sandbox.run(f"print({i})").stdout, range(64)))
    assert found == [f"{i}\n" for i in range(64)]


def test_closing_even_in_the_middle_leaves_nothing_behind(sandbox):
    before = set(processes())
    with ThreadPoolExecutor(1) as threads, Sandbox(1, isolator=sandbox.level.isolator) as other:
        assert other.level.isolator == sandbox.level.isolator
        other.start()
        idle = len(processes())
        running = threads.submit(other.run, "import time; time.sleep(20)", limits=Limits(wall_s=30))
        until(lambda: len(processes()) > idle)
        other.close()
        assert running.result().status == "broken"
    assert set(processes()) <= before
    with pytest.raises(SandboxError, match="closed"):
        other.run("")


def test_whoever_forgets_to_close_leaves_nothing_behind(sandbox):
    script = f"""
import os, signal, threading, time
from onepolicy.sandbox import Limits, Sandbox
sandbox = Sandbox(1, isolator={sandbox.level.isolator!r})
threading.Thread(target=sandbox.run, args=("import time\\nwhile True: time.sleep(1)",)).start()
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    alive = running("onepolicy.sandbox.inside.server")
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as process:
        assert process.wait() == -signal.SIGKILL
    until(lambda: running("onepolicy.sandbox.inside.server") <= alive)
    until(lambda: not any(f"-{process.pid}-" in name for name in os.listdir("/tmp")))


def left():
    """What programs might leave behind: processes, files, open files of ours."""
    ours = f"onepolicy-sandbox-{os.getpid()}-"
    names = [name for name in os.listdir("/tmp") if name in TRACES or name.startswith(ours)]
    return len(processes()), names, len(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))


def settled():
    """`left`, once it has stayed the same for a second: a slot that was just used may still start its next process."""
    found, since = left(), time.monotonic()
    while time.monotonic() < since + 1:
        time.sleep(0.05)
        if (now := left()) != found:
            found, since = now, time.monotonic()
    return found


def nothing_new(before):
    """What is left is part of what was; a sandbox of an earlier test may have gone meanwhile."""
    return all(set(a) <= set(b) if isinstance(a, list) else a <= b for a, b in zip(left(), before, strict=True))


def storm(sandbox, programs):
    """Hostile programs in a row. What is left before and after, and how long each tenth of them took."""
    quick, tenth = Limits(wall_s=0.25, cpu_s=1, memory_mib=128), len(programs) // 10
    sandbox.start()
    before, times = settled(), []
    with ThreadPoolExecutor(sandbox.slots) as threads:
        for part in range(10):
            start = time.monotonic()
            some = programs[part * tenth : (part + 1) * tenth]
            list(threads.map(lambda program: sandbox.run(program, limits=quick), some))
            assert sandbox.run("print(6 * 7)").stdout == "42\n"
            times.append(time.monotonic() - start)
    return before, left(), times


def test_hostile_programs_in_a_row_leave_nothing_behind(sandbox):
    before, _, _ = storm(sandbox, HOSTILE[::12])
    until(lambda: nothing_new(before))


@pytest.mark.slow
def test_a_thousand_hostile_programs_in_a_row_leave_nothing_behind(sandbox):
    def cost():
        """Milliseconds of CPU time that a program takes, its server's included."""
        sandbox.start()
        before = spent()
        for _ in range(100):
            assert sandbox.run("print(1)").status == "ok"
        return 10 * (spent() - before)

    first = cost()
    before, after, times = storm(sandbox, list(islice(cycle(HOSTILE), 1000)))
    last = cost()
    print(f"\n{sandbox.level}\n(processes, /tmp, files in /dev/shm, open files) before {before}, after {after}")
    print(f"seconds per hundred: {' '.join(f'{t:.1f}' for t in times)}; CPU ms a program: {first:.1f}, then {last:.1f}")
    assert after == before
    assert last < 2 * first
