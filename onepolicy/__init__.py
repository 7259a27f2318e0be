"""Many RL experts in, one policy out. Distillation of experts from Python, in a dozen lines:

    import onepolicy

    config = onepolicy.parse_run({
        "recipe": "mopd",
        "output": "runs/student",
        "model": "models/origin",
        "domains": {
            "math": {"tasks": {"kind": "records", "path": "math.jsonl", "grader": "number"}},
            "logic": {"tasks": {"kind": "reasoning_gym", "name": "knights_knaves"}},
        },
        "teachers": {"math": "models/math-expert", "logic": "models/logic-expert"},
        "steps": 200,
    })
    onepolicy.run(config)  # resumes, if it was stopped; the student is runs/student/model

Importing this costs no torch: that comes with the first thing that computes.
"""

from onepolicy.config import ConfigError, MopdConfig, RlvrConfig, SftConfig, load_run, parse_run
from onepolicy.recipes import run

__all__ = ["ConfigError", "MopdConfig", "RlvrConfig", "SftConfig", "load_run", "parse_run", "run"]
