"""What a run of the suite says beside its results."""

import sys

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """On which levels of the sandbox its tests ran: a missing one is no failure, and must not go unnoticed."""
    tests = sys.modules.get("tests.test_sandbox")
    for isolator, found in tests.FOUND.items() if tests else ():
        terminalreporter.write_line(f"sandbox {isolator}: {found}")
