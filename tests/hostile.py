"""A task source whose grader does as the answer says: what a grading process must survive."""

import os
import re
import signal
import time

from onepolicy.types import Task


class Hostile:
    def __init__(self, domain: str, seed: int) -> None:
        self.domain = domain

    def draw(self, index: int) -> Task:
        return Task(f"{self.domain}/{index}", self.domain, ({"role": "user", "content": str(index)},), index)

    def grade(self, task: Task, response: str):
        match response.split(" ", 1):
            case ["good"]:
                print("graders may print")
                return 1.0, "well done"
            case ["hang"]:
                while True:
                    pass
            case ["sleep", seconds]:
                time.sleep(float(seconds))
                return 1.0
            case ["memory"]:
                return float(len([bytearray(1 << 28) for _ in range(1000)]))
            case ["exit"]:
                os._exit(3)
            case ["segfault"]:
                os.kill(os.getpid(), signal.SIGSEGV)
            case ["recurse"]:
                return self.grade(task, response)
            case ["regex"]:
                return float(bool(re.match(r"(a+)+$", "a" * 64 + "b")))
            case ["eval", code]:
                return float(eval(code))
            case ["return", code]:
                return eval(code)
            case ["length"]:
                return 0.0
        return 0.5, f"{len(response)} characters, ends with {response[-3:]!r}"

    def gold(self, task: Task) -> str | None:
        return "good" if task.reference % 2 else None

    def demonstration(self, task: Task) -> str | None:
        return None
