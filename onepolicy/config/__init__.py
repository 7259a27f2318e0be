"""What a run is, as pydantic models, checked before anything runs; `file.py` reads them from YAML.

Defaults are the vetted setting. Unknown keys are errors with a suggestion. No torch here, so that a wrong file is
answered at once. `common.py` holds what all runs share, `loss.py` the loss, `recipes.py` one class per method.
"""

from onepolicy.config.common import (
    CheckpointConfig,
    DomainConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
    ScheduleConfig,
    ScratchConfig,
    TasksConfig,
    TeacherConfig,
)
from onepolicy.config.file import load_run
from onepolicy.config.loss import BalanceConfig, DistillConfig, ImportanceConfig, LossConfig, PolicyConfig
from onepolicy.config.recipes import (
    RECIPES,
    AnyRun,
    BranchMergeConfig,
    CheckConfig,
    CopdConfig,
    MixRlConfig,
    MopdConfig,
    ReinforcedConfig,
    RlvrConfig,
    SftConfig,
    parse_run,
)
from onepolicy.config.strict import ConfigError, Strict, did_you_mean, fault_line

__all__ = [
    "RECIPES",
    "AnyRun",
    "BalanceConfig",
    "BranchMergeConfig",
    "CheckConfig",
    "CheckpointConfig",
    "ConfigError",
    "CopdConfig",
    "DistillConfig",
    "DomainConfig",
    "EvalConfig",
    "ImportanceConfig",
    "LossConfig",
    "MixRlConfig",
    "ModelConfig",
    "MopdConfig",
    "OptimConfig",
    "PolicyConfig",
    "ReinforcedConfig",
    "RlvrConfig",
    "RolloutConfig",
    "RunConfig",
    "ScheduleConfig",
    "ScratchConfig",
    "SftConfig",
    "Strict",
    "TasksConfig",
    "TeacherConfig",
    "did_you_mean",
    "fault_line",
    "load_run",
    "parse_run",
]
