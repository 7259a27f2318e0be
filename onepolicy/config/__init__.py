"""What a run is, as pydantic models, checked before anything runs; `file.py` reads them from YAML.

Defaults are the vetted setting. Unknown keys are errors with a suggestion. No torch here, so that a wrong file is
answered at once. `common.py` holds what all runs share, `loss.py` the loss, `recipes.py` and `methods.py` one class per
recipe, `registry.py` their names; `study.py`, `budget.py` and `plan.py` a comparison of many runs.
"""

from onepolicy.config.common import (
    CheckpointConfig,
    DomainConfig,
    EvalConfig,
    FolderConfig,
    ModelConfig,
    OptimConfig,
    PlateauConfig,
    RolloutConfig,
    RunConfig,
    ScheduleConfig,
    ScratchConfig,
    TasksConfig,
    TaughtConfig,
    TeacherConfig,
)
from onepolicy.config.file import load_run
from onepolicy.config.loss import (
    BalanceConfig,
    DistillConfig,
    ImportanceConfig,
    LossConfig,
    PolicyConfig,
    WeightingConfig,
)
from onepolicy.config.methods import CascadeConfig, MergeConfig, OffpolicyConfig
from onepolicy.config.recipes import (
    BranchMergeConfig,
    CheckConfig,
    CopdConfig,
    DiagnosedConfig,
    MixRlConfig,
    MopdConfig,
    ProbeConfig,
    ReinforcedConfig,
    RlvrConfig,
    SftConfig,
)
from onepolicy.config.registry import RECIPES, AnyRun, parse_run
from onepolicy.config.strict import ConfigError, Strict, did_you_mean, fault_line, listed
from onepolicy.config.study import BudgetConfig, ExpertsConfig, StudyConfig, load_study

__all__ = [
    "RECIPES",
    "AnyRun",
    "BalanceConfig",
    "BranchMergeConfig",
    "BudgetConfig",
    "CascadeConfig",
    "CheckConfig",
    "CheckpointConfig",
    "ConfigError",
    "CopdConfig",
    "DiagnosedConfig",
    "DistillConfig",
    "DomainConfig",
    "EvalConfig",
    "ExpertsConfig",
    "FolderConfig",
    "ImportanceConfig",
    "LossConfig",
    "MergeConfig",
    "MixRlConfig",
    "ModelConfig",
    "MopdConfig",
    "OffpolicyConfig",
    "OptimConfig",
    "PlateauConfig",
    "PolicyConfig",
    "ProbeConfig",
    "ReinforcedConfig",
    "RlvrConfig",
    "RolloutConfig",
    "RunConfig",
    "ScheduleConfig",
    "ScratchConfig",
    "SftConfig",
    "Strict",
    "StudyConfig",
    "TasksConfig",
    "TaughtConfig",
    "TeacherConfig",
    "WeightingConfig",
    "did_you_mean",
    "fault_line",
    "listed",
    "load_run",
    "load_study",
    "parse_run",
]
