"""The tutorial's code does what the tutorial says."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

from onepolicy.config import DomainConfig, load_run
from onepolicy.recipes import run
from onepolicy.tasks.check import check_domains

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(?:python|yaml) (\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every named block of docs/your-domain.md as a file."""
    folder = tmp_path_factory.mktemp("your-domain")
    for name, text in BLOCK.findall((ROOT / "docs" / "your-domain.md").read_text()):
        (folder / name).write_text(text)
    rows = [{"question": "It is 09:58. What time is it 3 minutes later?", "time": "10:01"}]
    (folder / "times.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def beside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working there, as its reader does."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_the_class_has_thirty_lines(folder: Path) -> None:
    text = (folder / "clock.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 30


def test_its_attack_test_passes_and_can_fail(beside: Path) -> None:
    attack = runpy.run_path("test_clock.py")["test_no_attack_scores"]
    attack()
    clock = (beside / "clock.py").read_text()
    weak = clock.replace("float(last == task.reference)", "float(task.reference in response)")
    assert weak != clock
    try:
        (beside / "clock.py").write_text(weak)  # which the grading process, a fresh one, will see
        with pytest.raises(AssertionError):
            attack()
    finally:
        (beside / "clock.py").write_text(clock)


def test_a_run_on_it_trains(beside: Path) -> None:
    config = load_run("run.yaml")
    assert check_domains(config.domains, 100)["clock"].ok
    run(config)
    final = json.loads((beside / "runs" / "clock" / "eval" / "final.json").read_text())
    assert len(final["domains"]["clock"]) == 8


def test_the_environment_and_the_function_work_too(beside: Path) -> None:
    adapted = yaml.safe_load((beside / "adapted.yaml").read_text())
    given = runpy.run_path("from_python.py")["domains"]["clock"]
    domains = {
        "given": DomainConfig.model_validate(given),
        **{name: DomainConfig.model_validate(domain) for name, domain in adapted.items()},
        "watch": DomainConfig.model_validate({"tasks": {"kind": "custom", "source": "watch:Watch"}}),
        "clock": DomainConfig.model_validate(yaml.safe_load((beside / "rows.yaml").read_text())["clock"]),
    }
    found = check_domains(domains, 20)
    assert found["watch"].ok and found["watch"].without_gold == 0 and found["watch"].constant_reward < 0.2
    assert found["clock"].ok and found["clock"].empty_reward == 0
    for name in ("trl", "verl", "both", "given"):
        assert found[name].ok and found[name].without_gold == 0, name
    assert found["verl"].empty_reward == 0 and found["both"].empty_reward == pytest.approx(0.2)
