"""How the suite is shared out (`pytest -n 2 --dist loadgroup`), and what a run of it says beside its results."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

SANDBOXED = ("test_sandbox", "test_code", "test_tasks_code", "test_repo", "test_tasks_repo", "test_docs")
LEVELS: dict[str, str] = {}  # of the sandbox: what was tested, from whichever process has tested it


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[None]:
    """The cache of hashes and converted weights, also for the processes that tests start: never the user's."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONEPOLICY_CACHE"] = folder
        yield
        del os.environ["ONEPOLICY_CACHE"]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """What has sandboxes is together: some of it counts what they leave behind on the machine."""
    for item in items:
        name = item.path.stem
        item.add_marker(pytest.mark.xdist_group("sandbox" if name in SANDBOXED else name))


def pytest_sessionfinish(session: pytest.Session) -> None:
    tests = sys.modules.get("tests.test_sandbox")
    LEVELS.update(tests.FOUND if tests else {})
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["levels"] = LEVELS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    LEVELS.update(getattr(node, "workeroutput", {}).get("levels", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """On which levels of the sandbox and on which disks tests ran: a missing one is no failure, but must be noticed."""
    for isolator, found in LEVELS.items():
        terminalreporter.write_line(f"sandbox {isolator}: {found}")
    reasons = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if "NOT TESTED on a file system" in reason):
        terminalreporter.write_line(reason.removeprefix("Skipped: "))
