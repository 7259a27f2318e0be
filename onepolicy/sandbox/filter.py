"""The system-call filter that every program runs under: a list of what is allowed, all else answers "not implemented".

Two lists. `full` is for programs in namespaces of their own: files, child processes and sockets (UNIX, TCP and UDP;
their network is empty) work, and what could reach the kernel's less trodden parts does not: no namespaces,
mounts, ptrace, io_uring, bpf, keyrings, memory files, vsock. `compute` is for programs without namespaces: read files,
compute, start threads. No child processes, no sockets, no change to the file system, no signal to anybody.

A filter is classic BPF as `seccomp(2)` takes it, built here and installed by `inside/confine.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

# name:x86_64:aarch64, empty where an architecture has no such call; from Linux 6.1's unistd.h
_COMPUTE = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70 lseek:8:62
close:3:57 close_range:436:436 fstat:5:80 newfstatat:262:79 stat:4: lstat:6: statx:332:291 access:21: faccessat:269:48
faccessat2:439:439 readlink:89: readlinkat:267:78 getcwd:79:17 getdents64:217:61 dup:32:23 dup2:33: dup3:292:24
pipe:22: pipe2:293:59 poll:7: ppoll:271:73 select:23: pselect6:270:72 epoll_create:213: epoll_create1:291:20
epoll_ctl:233:21 epoll_wait:232: epoll_pwait:281:22 eventfd2:290:19 fadvise64:221:223 mmap:9:222 munmap:11:215
mprotect:10:226 mremap:25:216 madvise:28:233 brk:12:214 mincore:27:232 msync:26:227 membarrier:324:283
rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigsuspend:130:133 rt_sigpending:127:136
rt_sigtimedwait:128:137 sigaltstack:131:132 restart_syscall:219:128 pause:34: alarm:37: getitimer:36:102
setitimer:38:103 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114
gettimeofday:96:169 time:201: times:100:153 timer_create:222:107 timer_settime:223:110 timer_gettime:224:108
timer_getoverrun:225:109 timer_delete:226:111 futex:202:98 futex_waitv:449:449 set_robust_list:273:99
get_robust_list:274:100 set_tid_address:218:96 rseq:334:293 arch_prctl:158: sched_yield:24:124
sched_getaffinity:204:123 getpid:39:172 gettid:186:178 getppid:110:173 getpgrp:111: getpgid:121:155 getsid:124:156
getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158
getrlimit:97:163 getrusage:98:165 uname:63:160 sysinfo:99:179 getcpu:309:168 umask:95:166 getrandom:318:278
exit:60:93 exit_group:231:94 sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 shutdown:48:210
getsockopt:55:209 setsockopt:54:208 getsockname:51:204 getpeername:52:205
"""
_WORLD = """
fork:57: vfork:58: execve:59:221 wait4:61:260 waitid:247:95 kill:62:129 tkill:200:130 tgkill:234:131 setsid:112:157
setpgid:109:154 creat:85: mkdir:83: mkdirat:258:34 rmdir:84: unlink:87: unlinkat:263:35 rename:82: renameat:264:38
renameat2:316:276 link:86: linkat:265:37 symlink:88: symlinkat:266:36 chmod:90: fchmod:91:52 fchmodat:268:53
truncate:76:45 ftruncate:77:46 fallocate:285:47 utime:132: utimes:235: utimensat:280:88 futimesat:261: chdir:80:49
fchdir:81:50 fsync:74:82 fdatasync:75:83 flock:73:32 copy_file_range:326:285 sendfile:40:71 splice:275:76 tee:276:77
statfs:137:43 fstatfs:138:44 getdents:78: getxattr:191:8 listxattr:194:11 connect:42:203 bind:49:200 listen:50:201
accept:43:202 accept4:288:242 setrlimit:160:164 inotify_init1:294:26 inotify_add_watch:254:27
"""
_RULED = """
open:2: openat:257:56 clone:56:220 socket:41:198 socketpair:53:199 ioctl:16:29 fcntl:72:25 prctl:157:167
prlimit64:302:261
"""
_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column above, AUDIT_ARCH

_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
_LOAD, _AND, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, ALU|AND|K, JMP|JEQ, JMP|JSET, RET

_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME
_A_THREAD = 0x00010000  # CLONE_THREAD
_WRITES = 0o3 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC; O_TMPFILE needs one of the first two
_UNIX, _FAMILIES = (1,), (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: no netlink, packet, vsock, alg, bluetooth
_KINDS, _KIND = (1, 2, 5), 0xF  # SOCK_STREAM, DGRAM, SEQPACKET: not RAW; above the mask there are flags
_PROTOCOLS = (0, 6, 17)  # the family's own, TCP, UDP: not ICMP, SCTP, MPTCP
_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # duplicate, flags. Not F_SETOWN and F_SETSIG: they send signals
_PRCTLS = (15, 16)  # the name of a thread

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def build(machine: str) -> dict[str, bytes]:
    """Both filters for a machine as `platform.machine` names it; empty for one whose calls are not listed here."""
    if machine not in _MACHINES:
        return {}
    column, architecture = _MACHINES[machine]
    compute, world, ruled = (_numbers(text, column) for text in (_COMPUTE, _WORLD, _RULED))
    common = {"ioctl": _one_of(1, _IOCTLS), "prctl": _one_of(0, _PRCTLS), "prlimit64": _one_of(0, (0,))}
    narrow = {
        "open": _without(1, _WRITES),
        "openat": _without(2, _WRITES),
        "clone": _with(0, _A_THREAD),
        "socketpair": _one_of(0, _UNIX),
        "fcntl": _one_of(1, _FCNTLS),
    }
    wide = {
        "clone": _without(0, _NEW_NAMESPACES),
        "socket": _socket(),
        "socketpair": _one_of(0, _UNIX),
        **dict.fromkeys(("open", "openat", "fcntl"), _return(_ALLOW)),
    }
    return {
        "compute": _program(architecture, compute, ruled, {**common, **narrow}),
        "full": _program(architecture, {**compute, **world}, ruled, {**common, **wide}),
    }


def _numbers(text: str, column: int) -> dict[str, int]:
    entries = (entry.split(":") for entry in text.split())
    return {entry[0]: int(entry[column]) for entry in entries if entry[column]}


def _program(
    architecture: int, free: dict[str, int], ruled: dict[str, int], rules: dict[str, list[_Instruction]]
) -> bytes:
    program: list[_Instruction] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _ENOSYS)]
    program.append((_LOAD, 0, 0, 0))
    for number in free.values():
        program += [(_EQUAL, 0, 1, number), *_return(_ALLOW)]
    for name, number in ruled.items():
        if name in rules:
            program += [(_EQUAL, 0, len(rules[name]), number), *rules[name]]
    program += _return(_ENOSYS)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _return(verdict: int) -> list[_Instruction]:
    return [(_RETURN, 0, 0, verdict)]


def _argument(index: int) -> _Instruction:
    """Load the low word: all arguments judged here are ints to the kernel, or flags below bit 32."""
    return (_LOAD, 0, 0, 16 + 8 * index)


def _one_of(index: int, values: Sequence[int]) -> list[_Instruction]:
    program = [_argument(index)]
    for value in values:
        program += [(_EQUAL, 0, 1, value), *_return(_ALLOW)]
    return program + _return(_EPERM)


def _socket() -> list[_Instruction]:
    """Family, kind and protocol are each one of a few."""
    program: list[_Instruction] = []
    for index, mask, values in ((0, None, _FAMILIES), (1, _KIND, _KINDS), (2, None, _PROTOCOLS)):
        program += [_argument(index)] + ([(_AND, 0, 0, mask)] if mask else [])
        # a match jumps over the others and the refusal; the last comparison falls into it
        program += [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)] + _return(_EPERM)
    return program + _return(_ALLOW)


def _without(index: int, bits: int) -> list[_Instruction]:
    return [_argument(index), (_ANY_BIT, 1, 0, bits), *_return(_ALLOW), *_return(_EPERM)]


def _with(index: int, bits: int) -> list[_Instruction]:
    return [_argument(index), (_AND, 0, 0, bits), (_EQUAL, 0, 1, bits), *_return(_ALLOW), *_return(_EPERM)]
