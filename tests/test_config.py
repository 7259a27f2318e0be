"""What a configuration says by default, what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onepolicy.config import ConfigError, MopdConfig, RlvrConfig, SftConfig, load_study, parse_run
from onepolicy.config.file import load_run, read_yaml, set_dotted
from onepolicy.config.plan import plan

MATH = {"tasks": {"kind": "letters", "task": "add"}}
BASE: dict[str, Any] = {"output": "runs/x", "model": "origin", "domains": {"math": MATH}, "steps": 10}
SFT = BASE | {"recipe": "sft"}
RLVR = BASE | {"recipe": "rlvr"}
MOPD = BASE | {"recipe": "mopd", "teachers": {"math": "expert"}}


def faults(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_run(data)
    return str(caught.value)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


COMMON_DEFAULTS = {
    "output": "runs/x",
    "seed": 0,
    "model.path": "origin",
    "model.revision": None,
    "model.scratch": None,
    "model.dtype": "float32",
    "model.attention": None,
    "model.chat_template_kwargs": None,
    "domains.math.tasks.kind": "letters",
    "domains.math.tasks.task": "add",
    "domains.math.share": 1.0,
    "domains.math.max_new_tokens": None,
    "domains.math.system_prompt": None,
    "domains.math.eval_size": 64,
    "system_prompt": None,
    "steps": 10,
    "rollout.prompts": 64,
    "rollout.n": 8,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "rollout.max_new_tokens": 256,
    "rollout.min_new_tokens": 0,
    "rollout.stop": [],
    "rollout.batch_size": 256,
    "optim.learning_rate": 1e-6,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0.0,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.clip_norm": 1.0,
    "optim.tokens_per_batch": 16384,
    "optim.gradient_checkpointing": False,
    "eval.n": 4,
    "eval.every": 0,
    "eval.temperature": 1.0,
    "eval.at_end": True,
    "checkpoint.every": 50,
    "checkpoint.keep": 2,
    "too_long": "error",
    "device": "auto",
    "threads": 1,
}
LOSS_DEFAULTS = {
    "diagnose_every": 0,
    "rollout.engine_noise": 0.0,
    "check.samples": 16,
    "check.warn_starved": 0.5,
    "check.warn_contrast": 0.1,
    "loss.reduction": "sequence",
    "loss.length": None,
    "loss.importance.level": "token",
    "loss.importance.states": "ignore",
    "loss.policy.kind": "ppo",
    "loss.policy.clip_low": 0.2,
    "loss.policy.clip_high": 0.28,
    "loss.policy.dual_clip": None,
    "loss.distill.estimator": "sampled",
    "loss.distill.apply": None,
    "loss.distill.divergence": "reverse_kl",
    "loss.distill.signal": "reverse",
    "loss.distill.k": 64,
    "loss.distill.topk": "corrected",
    "loss.distill.jsd_beta": 0.5,
    "loss.distill.transform": "clip",
    "loss.distill.max_signal": 5.0,
    "loss.distill.power": 5.0,
    "loss.distill.refresh": False,
    "loss.distill.weighting.position": 0.0,
    "loss.distill.weighting.turn_cap": None,
    "loss.distill.weighting.max_disagreement": None,
    "loss.importance.mode": "gate",
    "loss.importance.low": 0.5,
    "loss.importance.high": 2.0,
}


def test_the_defaults_of_sft_are_the_vetted_ones() -> None:
    assert flat(parse_run(SFT).model_dump(mode="json")) == COMMON_DEFAULTS | {"recipe": "sft", "batch_size": 64}


def test_the_defaults_of_rlvr_are_the_vetted_ones() -> None:
    own = {
        "recipe": "rlvr",
        "advantage": "grpo",
        "turn_weight": 0.0,
        "max_draws": 1,
        "overlong": "keep",
        "overlong_cache": None,
        "reference_kl": 0.0,
        "inner_updates": 1,
    }
    assert flat(parse_run(RLVR).model_dump(mode="json")) == COMMON_DEFAULTS | LOSS_DEFAULTS | own


def test_the_defaults_of_mopd_are_the_vetted_ones() -> None:
    teacher = {
        f"teachers.math.{key}": value
        for key, value in {
            "model.path": "expert",
            "model.revision": None,
            "model.scratch": None,
            "model.dtype": "auto",
            "model.attention": None,
            "model.chat_template_kwargs": None,
            "domains": None,
        }.items()
    }
    own = {
        "recipe": "mopd",
        "rollout.prompts": 256,
        "rollout.n": 1,
        "distill_weight.start": 1,
        "distill_weight.end": 1,
        "distill_weight.steps": 1,
        "outcome_weight.start": 0,
        "outcome_weight.end": 0,
        "outcome_weight.steps": 1,
        "plateau": None,
        "advantage": "grpo",
        "turn_weight": 0.0,
        "inner_updates": 1,
        "check.warn_reverse_kl": 0.15,
        "check.warn_overlap": 0.6,
        "check.overlap_k": None,
        "check.warn_disagreement": 1.0,
        "check.max_invalid_share": 0.01,
        "balance.kind": "none",
        "balance.targets": None,
        "balance.alpha": 1.0,
        "balance.decay": 0.9,
    }
    assert flat(parse_run(MOPD).model_dump(mode="json")) == COMMON_DEFAULTS | LOSS_DEFAULTS | teacher | own


@pytest.mark.parametrize("data", [SFT, RLVR, MOPD], ids=lambda data: data["recipe"])
def test_what_is_written_to_the_run_folder_reads_back_as_the_same(data: dict[str, Any]) -> None:
    config = parse_run(data)
    assert parse_run(config.model_dump(mode="json")) == config


def test_reduction_constant_divides_by_the_longest_response_unless_told_otherwise() -> None:
    def length(rollout: dict[str, Any] | None = None, **loss: Any) -> int | None:
        run = parse_run(RLVR | {"loss": loss, "rollout": rollout or {}})
        assert isinstance(run, RlvrConfig)
        return run.loss.length

    assert length({"max_new_tokens": 40}, reduction="constant") == 40
    assert length(reduction="constant") == 256, "the default of rollout.max_new_tokens"
    assert length(reduction="constant", length=100) == 100
    assert length() is None
    assert "length=9 belongs to reduction constant" in faults(RLVR | {"loss": {"length": 9}})


def test_dr_grpo_is_refused_with_a_reduction_that_keeps_its_bias() -> None:
    assert "use loss.reduction: constant" in faults(RLVR | {"advantage": "dr_grpo"})
    for reduction in ("constant", "token"):
        parse_run(RLVR | {"advantage": "dr_grpo", "loss": {"reduction": reduction}})
    parse_run(MOPD | {"advantage": "dr_grpo"})  # without outcome rewards nothing is made of it


def test_a_soft_punishment_of_length_needs_a_cache_below_the_limit() -> None:
    soft = {"overlong": "soft", "overlong_cache": 20, "rollout": {"max_new_tokens": 100}}
    parse_run(RLVR | soft)
    assert "overlong: soft needs a cache" in faults(RLVR | soft | {"overlong_cache": None})
    assert "overlong: soft needs a cache" in faults(RLVR | {"overlong_cache": 20})
    assert "at most 100 tokens: lower it" in faults(RLVR | soft | {"overlong_cache": 100})
    assert "maxrl needs rewards >= 0" in faults(RLVR | soft | {"advantage": "maxrl"})


def test_demonstrations_are_learnt_at_temperature_1() -> None:
    hot = {"rollout": {"temperature": 0.7}}
    assert parse_run(SFT | hot).learning_temperature == 1.0
    assert parse_run(RLVR | hot).learning_temperature == 0.7
    assert parse_run(MOPD | hot | {"recipe": "offpolicy"}).learning_temperature == 1.0


def test_gspo_clips_as_its_paper_does_unless_told_otherwise() -> None:
    def clips(**policy: Any) -> tuple[float, float]:
        config = parse_run(RLVR | {"loss": {"policy": policy}})
        assert isinstance(config, RlvrConfig)
        return config.loss.policy.clip_low, config.loss.policy.clip_high

    assert clips(kind="gspo") == (3e-4, 4e-4)
    assert clips(kind="gspo", clip_low=0.1) == (0.1, 4e-4)
    assert clips(kind="cispo") == (0.2, 0.28)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SFT | {"stepz": 1}, "stepz: unknown key: did you mean 'steps'?"),
        (SFT | {"optim": {"lerning_rate": 1}}, "optim.lerning_rate: unknown key: did you mean 'learning_rate'?"),
        (SFT | {"domains": {"sft": {"share": 1}}}, "domains.sft.tasks: Field required"),
        (SFT | {"domains": {"sft": {"tasks": {}}}}, "domains.sft.tasks.kind: Field required"),
        (SFT | {"domains": {"sft": MATH | {"shar": 1}}}, "domains.sft.shar: unknown key: did you mean 'share'?"),
        (SFT | {"domains": {}}, "domains: Dictionary should have at least 1 item"),
        (SFT | {"steps": "many"}, "unable to parse string as an integer (got 'many')"),
        (SFT | {"steps": 0}, "steps: Input should be greater than 0 (got 0)"),
        (SFT | {"recipe": "rlvrr"}, "recipe: 'rlvrr' is not a recipe: did you mean 'rlvr'?"),
        (SFT | {"recipe": ["sft"]}, "recipe: ['sft'] is not a recipe: did you mean 'sft'?"),
        (BASE, "recipe: None is not a recipe: known are cascade_rl, copd, merge, mix_rl, mopd, offpolicy, rlvr, sft"),
        (SFT | {"model": {}}, "model: give either `path` (a folder or hub id) or `scratch`"),
        (SFT | {"rollout": {"top_p": 0.9}}, "use top_p 1 and top_k 0"),
        (SFT | {"rollout": {"top_k": 50}}, "use top_p 1 and top_k 0"),
        (RLVR | {"rollout": {"n": 1}}, "the run: rollout.n is 1: a group of one has no baseline"),
        (RLVR | {"inner_updates": 65}, "lower inner_updates or raise rollout.prompts"),
        (
            RLVR | {"reference_kl": 0.1, "model": {"scratch": {"architecture": {}, "alphabet": "ab"}}},
            "reference_kl > 0 needs a starting model with a `path`",
        ),
        (RLVR | {"loss": {"policy": {"kind": "cispo", "dual_clip": 3}}}, "loss.policy: dual_clip=3.0 belongs to "),
        (RLVR | {"loss": {"importance": {"low": 2, "high": 3}}}, "loss.importance: low=2.0 and high=3.0 must bracket"),
        (MOPD | {"teachers": {}}, "teachers: Dictionary should have at least 1 item"),
        (MOPD | {"teachers": {"maths": "expert"}}, "did you mean 'math'? (or set teachers.maths.domains)"),
        (MOPD | {"teachers": {"math": {"model": "expert", "domains": []}}}, "teacher 'math' has no domains"),
        (
            MOPD | {"teachers": {"math": "a", "b": {"model": "b", "domains": ["math"]}}},
            "domain 'math' has two teachers, 'math' and 'b': keep one",
        ),
        (
            MOPD | {"domains": {"math": MATH, "code": MATH}},
            "no teacher for code: add the domain to a teacher's `domains`",
        ),
        (
            MOPD | {"teachers": {"math": {"model": {"scratch": {"architecture": {}, "alphabet": "ab"}}}}},
            "teachers.math: a teacher is a checkpoint: give its `path`",
        ),
        (MOPD | {"outcome_weight": 0.5}, "use rollout.n >= 2, or outcome_weight 0"),
        (MOPD | {"distill_weight": 0}, "nothing trains: raise one of them"),
        (MOPD | {"outcome_weight": -1}, "outcome_weight.start: Input should be greater than or equal to 0 (got -1)"),
        (MOPD | {"plateau": {}}, "distill_weight (1) and outcome_weight (0) never change: give one of them as {start"),
        (
            MOPD | {"plateau": {}, "distill_weight": {"start": 0, "end": 1, "steps": 9}},
            "distill_weight starts at 0, so it would wait for ever: raise distill_weight.start, or remove plateau",
        ),
        (MOPD | {"plateau": {"patience": 0}}, "plateau.patience: Input should be greater than 0 (got 0)"),
        (MOPD | {"plateau": {"tolerance": 1}}, "plateau.tolerance: Input should be less than 1 (got 1)"),
        (MOPD | {"plateau": {"patient": 3}}, "plateau.patient: unknown key: did you mean 'patience'?"),
        (MOPD | {"inner_updates": 300}, "lower inner_updates or raise rollout.prompts"),
    ],
)
def test_nonsense_is_refused_in_words_that_name_the_fix(data: dict[str, Any], message: str) -> None:
    assert message in faults(data)


@pytest.mark.parametrize(
    ("distill", "fix"),
    [
        ({"estimator": "k1"}, "use estimator: sampled with apply: advantage, or estimator: k2"),
        ({"estimator": "sampled", "apply": "loss"}, "use estimator: sampled with apply: advantage, or estimator: k2"),
        ({"estimator": "topk", "apply": "advantage"}, "use apply: loss, or estimator: sampled"),
        ({"estimator": "full", "apply": "advantage"}, "use apply: loss, or estimator: sampled"),
        ({"estimator": "k2", "apply": "advantage"}, "use apply: loss, or sampled"),
        ({"estimator": "k3", "apply": "advantage"}, "use apply: loss, or sampled"),
        ({"estimator": "topk", "topk": "renormalised", "k": 1}, "use k > 1 or topk: corrected"),
        ({"divergence": "forward_kl"}, "needs estimator: topk or full, not sampled"),
        ({"estimator": "k2", "divergence": "jsd"}, "needs estimator: topk or full, not k2"),
        ({"estimator": "topk", "divergence": "jsd"}, "use estimator: full"),
        ({"estimator": "topk", "divergence": "forward_kl", "topk": "tail"}, "drop topk: tail"),
        ({"divergence": "jsd"}, "the sampled advantage has signal: forward or jsd"),
        ({"estimator": "argmax", "apply": "advantage"}, "use apply: loss, or sampled"),
        ({"estimator": "argmax", "divergence": "forward_kl"}, "needs estimator: topk or full, not argmax"),
        ({"estimator": "trust_region", "apply": "advantage"}, "drop apply"),
        ({"estimator": "trust_region", "topk": "tail"}, "drop topk: tail"),
        ({"estimator": "trust_region", "signal": "jsd"}, "use estimator: sampled, not trust_region"),
        ({"estimator": "full", "signal": "forward"}, "use estimator: sampled, not full"),
        ({"signal": "forward", "transform": "power"}, "drop signal: forward, or use another transform"),
        ({"estimator": "topk", "transform": "normalise"}, "use estimator: sampled, not topk"),
        ({"estimator": "k2", "refresh": True}, "k2 looks at the student's current log-probs anyway: remove it"),
        ({"estimator": "full", "refresh": True}, "or use estimator: sampled"),
        (
            {"transform": "none", "max_signal": 3},
            "max_signal=3 has no effect on transform none: remove it, or use clip",
        ),
        ({"power": 2}, "power=2 has no effect on transform clip: remove it, or use power"),
        ({"estimator": "topk", "max_signal": 3}, "max_signal shape the sampled signal, which topk does not use"),
        (
            {"estimator": "k3", "transform": "power", "power": 2},
            "transform shape the sampled signal, which k3 does not",
        ),
        ({"weighting": {"turn_cap": 0.5}}, "weighting.turn_cap: Input should be greater than or equal to 1"),
    ],
)
def test_a_distillation_that_cannot_work_is_refused(distill: dict[str, Any], fix: str) -> None:
    message = faults(MOPD | {"loss": {"distill": distill}})
    assert message.startswith("loss.distill") and fix in message


@pytest.mark.parametrize(
    "distill",
    [
        {"refresh": True},
        {"estimator": "trust_region", "refresh": True},
        {"estimator": "trust_region", "max_signal": 3},
        {"transform": "normalise", "max_signal": 3},
        {"transform": "power", "power": 2},
        {"estimator": "full", "transform": "log_compress", "weighting": {"position": 0.5}},
        {"estimator": "topk", "max_signal": 3, "weighting": {"position": 0.5}},
    ],
)
def test_options_that_have_an_effect_are_taken(distill: dict[str, Any]) -> None:
    config = parse_run(MOPD | {"loss": {"distill": distill}})
    assert isinstance(config, MopdConfig)
    assert config.loss.distill.model_dump(include=set(distill), exclude_unset=True) == distill


@pytest.mark.parametrize(
    ("balance", "fault"),
    [
        ({"alpha": 0.5}, "alpha=0.5 belongs to kind gap, not to none: remove it"),
        ({"kind": "share", "alpha": -1}, "alpha=-1.0 belongs to kind gap, not to share: remove it"),
        ({"kind": "dn", "alpha": 2}, "alpha=2.0 belongs to kind gap, not to dn: remove it"),
        ({"targets": {"math": 1}}, "targets belong to kinds share and gap, not to none: remove them"),
        ({"kind": "dn", "targets": {"math": 1}}, "targets belong to kinds share and gap, not to dn: remove them"),
    ],
)
def test_an_option_of_another_balance_is_refused(balance: dict[str, Any], fault: str) -> None:
    assert faults(MOPD | {"balance": balance}) == f"balance: {fault}"


@pytest.mark.parametrize("method", ["average", "none"])
def test_a_scale_is_refused_where_branches_are_not_added_up(method: str) -> None:
    copd = BASE | {"recipe": "copd", "merge": {"method": method, "scale": 0.5}}
    assert faults(copd) == f"merge: scale=0.5 belongs to method task_arithmetic, not to {method}: remove it"


@pytest.mark.parametrize(
    "own",
    [
        {"balance": {"kind": "share", "targets": {"math": 1}}},
        {"balance": {"kind": "gap", "targets": {"math": 1}, "alpha": -1}},
        {"recipe": "copd", "merge": {"method": "task_arithmetic", "scale": 0.5}},
        {"recipe": "copd", "merge": {"method": "none"}},
    ],
)
def test_options_where_they_belong_are_read_and_read_back(own: dict[str, Any]) -> None:
    config = parse_run(BASE | {"recipe": "mix_rl"} | own)
    assert parse_run(config.model_dump(mode="json")) == config


def test_every_fault_gets_a_line_of_its_own() -> None:
    data = MOPD | {"stepz": 1, "steps": 0, "optim": {"beta1": 2}, "check": {"sample": 1}}
    assert sorted(faults(data).splitlines()) == [
        "check.sample: unknown key: did you mean 'samples'?",
        "optim.beta1: Input should be less than 1 (got 2)",
        "steps: Input should be greater than 0 (got 0)",
        "stepz: unknown key: did you mean 'steps'?",
    ]


def test_a_teacher_serves_the_domain_of_its_name_or_those_it_names() -> None:
    config = parse_run(
        MOPD
        | {
            "domains": {"math": MATH, "code": MATH, "logic": MATH},
            "teachers": {"math": "a", "both": {"model": "b", "domains": ["code", "logic"]}},
        }
    )
    assert isinstance(config, MopdConfig)
    assert config.routes == {"math": "math", "code": "both", "logic": "both"}


def test_a_weight_follows_its_schedule() -> None:
    config = parse_run(MOPD | {"rollout": {"n": 2}, "outcome_weight": {"start": 1, "end": 0, "steps": 4}})
    assert isinstance(config, MopdConfig)
    assert [config.outcome_weight.at(step) for step in (0, 1, 2, 4, 9)] == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert config.distill_weight.at(7) == 1.0


FILE = """
recipe: mopd
output: runs/x
model: origin
domains:
  math: {tasks: {kind: letters, task: add}}
teachers: {math: expert}
steps: 10
optim:
"""


def read(tmp_path: Path, *overrides: str, text: str = FILE.replace("optim:\n", "")) -> Any:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_run(path, overrides)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("steps=20", "steps", 20),
        ("steps=1e3", "steps", 1000),
        ("optim.learning_rate=1e-5", "optim.learning_rate", 1e-5),
        ("outcome_weight=0", "outcome_weight.start", 0),
        ("distill_weight=1e-2", "distill_weight.end", 0.01),
        ("distill_weight={start: 1, end: 0, steps: 5}", "distill_weight.steps", 5),
        ("model=other", "model.path", "other"),
        ("model.path=other", "model.path", "other"),
        ("model.dtype=bfloat16", "model.path", "origin"),
        ("teachers.math=other", "teachers.math.model.path", "other"),
        ("teachers.math.model=other", "teachers.math.model.path", "other"),
        ("teachers.math.model.dtype=bfloat16", "teachers.math.model.path", "expert"),
        ("teachers.math.domains=[math]", "teachers.math.domains", ["math"]),
        ("domains.math.tasks.max_length=2", "domains.math.tasks.max_length", 2),
        ("domains.math.max_new_tokens=null", "domains.math.max_new_tokens", None),
        ("loss.policy.dual_clip=3", "loss.policy.dual_clip", 3.0),
        ("output=a=b", "output", "a=b"),
    ],
)
def test_a_dotted_override_reaches_its_place(tmp_path: Path, override: str, place: str, value: Any) -> None:
    assert flat(read(tmp_path, override).model_dump(mode="json"))[place] == value


@pytest.mark.parametrize("override", ["steps", "=3", "optim..beta1=0", ".steps=1", "steps.=1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form key"):
        set_dotted({}, override)


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'steps' holds 3, which has no keys"):
        set_dotted({"steps": 3}, "steps.x=1")


def test_an_override_fills_an_empty_section(tmp_path: Path) -> None:
    assert read(tmp_path, "optim.beta1=0.5", text=FILE).optim.beta1 == 0.5


def test_an_override_with_a_bad_key_is_answered_like_one_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim.lr: unknown key"):
        read(tmp_path, "optim.lr=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "cannot be read as YAML"),
        ("- a\n- b\n", "holds no mapping at its top level"),
        ("", "holds no mapping at its top level"),
        ("steps: 1\nsteps: 2\n", "'steps' twice"),
        ("domains:\n  math: {}\n  math: {}\n", "'math' twice"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml.*") as caught:
        read(tmp_path, text=text)
    assert message in str(caught.value)


def test_a_bad_value_in_an_override_names_the_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"override 'steps=\[1' cannot be read as YAML"):
        read(tmp_path, "steps=[1")


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file: "):
        load_run(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match=r"no such file: .*config\.yaml"):
        load_run(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not text"):
        load_run(tmp_path / "binary.yaml")


def test_a_run_folder_stands_for_its_configuration_wherever_it_lies(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(parse_run(SFT).model_dump(mode="json")))
    config = load_run(tmp_path, ["steps=11"])
    assert isinstance(config, SftConfig)
    assert (config.output, config.steps) == (tmp_path, 11)


def test_the_example_of_the_readme_is_a_valid_run() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example = readme.split("```yaml\n")[1].split("```")[0]

    config = parse_run(read_yaml(example, "README.md"))

    assert isinstance(config, MopdConfig)
    assert config.routes == {"math": "math", "extract": "text", "logic": "text"}
    assert config.optim.learning_rate == 3e-6
    assert len(example.splitlines()) <= 20


@pytest.mark.parametrize("teacher", ["self", {"model": "self", "domains": ["math"]}])
def test_the_teacher_self_is_the_model_that_the_run_starts_from(teacher: object) -> None:
    config = parse_run(MOPD | {"teachers": {"math": teacher}})
    assert isinstance(config, MopdConfig) and config.teachers["math"].model == config.model
    half = parse_run(MOPD | {"model": {"path": "origin", "dtype": "bfloat16"}, "teachers": {"math": teacher}})
    assert isinstance(half, MopdConfig) and half.teachers["math"].model == half.model
    with pytest.raises(ConfigError, match="a teacher is a checkpoint"):
        scratch = {"scratch": {"architecture": {}, "alphabet": "ab"}}
        parse_run(MOPD | {"model": scratch, "teachers": {"math": teacher}})


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_a_student_computes_in_a_dtype_that_trains(dtype: str) -> None:
    assert f"model.dtype is {dtype}, which is for teachers" in faults(SFT | {"model": {"path": "m", "dtype": dtype}})
    teacher = {"model": {"path": "expert", "dtype": dtype}}
    config = parse_run(MOPD | {"teachers": {"math": teacher}})
    assert isinstance(config, MopdConfig) and config.teachers["math"].model.dtype == dtype


STUDIES = Path(__file__).parent.parent / "studies"


@pytest.mark.parametrize("name", ["apart", "clash", "coevolve", "real", "tune_apart", "tune_clash", "tune_coevolve"])
def test_our_studies_are_valid_and_say_which_of_several_updates_refresh(name: str) -> None:
    found = {
        run.name.rpartition("/")[2]: run.config.loss.distill.refresh
        for run in plan(load_study(STUDIES / f"{name}.yaml"))
        if isinstance(run.config, MopdConfig) and run.config.inner_updates > 1
    }
    fresh, stale = ["updates_2", "updates_4", "updates_8", "ladder_refresh"], ["updates_4_stale", "updates_8_stale"]
    stale += ["ladder_naive", "ladder_share", "ladder_gap"]
    assert found == (dict.fromkeys(fresh, True) | dict.fromkeys(stale, False) if name == "clash" else {})
