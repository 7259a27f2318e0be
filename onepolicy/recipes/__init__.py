"""One readable file per method. `run` picks the one that a config names."""

from __future__ import annotations

from onepolicy.config import (
    AnyRun,
    CascadeConfig,
    CopdConfig,
    MergeConfig,
    MixRlConfig,
    MopdConfig,
    OffpolicyConfig,
    RlvrConfig,
    SftConfig,
)
from onepolicy.runfolder import is_finished


def run(config: AnyRun) -> None:
    """Run, or resume, what `config` describes. The result is in `config.output`; a finished run returns at once."""
    if is_finished(config):
        return
    match config:
        case SftConfig():
            from onepolicy.recipes.sft import sft

            sft(config)
        case RlvrConfig():
            from onepolicy.recipes.rlvr import rlvr

            rlvr(config)
        case MixRlConfig():
            from onepolicy.recipes.mix_rl import mix_rl

            mix_rl(config)
        case CascadeConfig():
            from onepolicy.recipes.cascade_rl import cascade_rl

            cascade_rl(config)
        case OffpolicyConfig():
            from onepolicy.recipes.offpolicy import offpolicy

            offpolicy(config)
        case MergeConfig():
            from onepolicy.recipes.merge import merge

            merge(config)
        case CopdConfig():
            from onepolicy.recipes.copd import copd

            copd(config)
        case MopdConfig():
            from onepolicy.recipes.mopd import mopd

            mopd(config)
