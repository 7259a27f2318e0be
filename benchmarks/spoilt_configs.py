"""Configurations that are wrong: types, unknown keys, options without effect, numbers that are none, contradictions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.cases import Case, Place

RECIPES = ("sft", "rlvr", "mix_rl", "cascade_rl", "mopd", "copd", "offpolicy", "merge")


class Wrong(NamedTuple):
    """Overrides that make a run of a recipe wrong; the error names all of `names` (by default the key given first)."""

    recipe: str
    overrides: str  # as on the command line, separated by spaces
    names: tuple[str, ...] = ()
    short: bool = False


WRONG: dict[str, Wrong] = {
    # types
    "steps a word": Wrong("sft", "steps=many", short=True),
    "steps 0": Wrong("rlvr", "steps=0"),
    "steps a fraction": Wrong("rlvr", "steps=2.5"),
    "steps missing": Wrong("mopd", "steps=null"),
    "steps a boolean": Wrong("sft", "steps=true"),
    "seed negative": Wrong("mopd", "seed=-1"),
    "seed a boolean": Wrong("mopd", "seed=true"),
    "seed beyond 64 bits": Wrong("rlvr", f"seed={2**70}"),
    "threads 0": Wrong("mix_rl", "threads=0"),
    "batch_size a list": Wrong("sft", "batch_size=[4]"),
    "output a list": Wrong("sft", "output=[a]"),
    "output missing": Wrong("copd", "output=null"),
    "model a number": Wrong("rlvr", "model=3"),
    "model missing": Wrong("cascade_rl", "model=null"),
    "model empty": Wrong("rlvr", "model={}"),
    "domains empty": Wrong("rlvr", "domains={}"),
    "domains a list": Wrong("mopd", "domains=[early]"),
    "tasks missing": Wrong("rlvr", "domains={early: {share: 1}}", ("tasks",)),
    "eval_size 0": Wrong("rlvr", "domains.early.eval_size=0"),
    "share negative": Wrong("mix_rl", "domains.early.share=-1"),
    "learning_rate a word": Wrong("sft", "optim.learning_rate=fast"),
    "learning_rate 0": Wrong("sft", "optim.learning_rate=0"),
    "optim a list": Wrong("sft", "optim=[]", ("optim",)),
    "beta1 1": Wrong("sft", "optim.beta1=1"),
    "device unknown": Wrong("sft", "device=tpu"),
    "device that is not here": Wrong("sft", "device=cuda:99"),
    "teachers empty": Wrong("mopd", "teachers={}"),
    "teachers a list": Wrong("offpolicy", "teachers=[early]"),
    "models empty": Wrong("merge", "models={}"),
    "method unknown": Wrong("merge", "method=soup"),
    "recipe unknown": Wrong("mopd", "recipe=mopdd", ("mopdd", "did you mean 'mopd'"), True),
    "kind unknown": Wrong("rlvr", "domains.early.tasks.kind=maths", ("maths", "did you mean 'math'")),
    "source missing": Wrong("rlvr", "domains.early.tasks.source=tests.early:Nobody", ("Nobody",)),
    "source's options wrong": Wrong("rlvr", "domains.early.tasks.options={half: early, quarter: 1}", ("quarter",)),
    # unknown keys
    **{
        f"unknown key, {recipe}": Wrong(recipe, "learning_rte=1e-5", ("learning_rte",), recipe == "mopd")
        for recipe in RECIPES
    },
    "unknown key of optim": Wrong("sft", "optim.learning_rte=1", ("optim.learning_rte", "learning_rate")),
    "unknown key of a domain": Wrong("rlvr", "domains.early.shares=1", ("shares", "share")),
    "unknown key of a source": Wrong("rlvr", "domains.early.tasks={kind: letters,tsk: sort}", ("tsk",)),
    "unknown key of distill": Wrong("mopd", "loss.distill.estimater=full", ("estimater", "estimator")),
    "key of another recipe": Wrong("sft", "teachers={early: x}", ("teachers",)),
    "key of rlvr in mopd": Wrong("mopd", "reference_kl=0.1"),
    # numbers that are none
    **{
        f"{key} {value}": Wrong(recipe, f"{key}={value}", (key.rpartition(".")[2],), number in (1, 3))
        for number, (recipe, key, value) in enumerate(
            [
                ("sft", "optim.learning_rate", ".inf"),
                ("sft", "optim.learning_rate", ".nan"),
                ("sft", "optim.weight_decay", ".inf"),
                ("sft", "optim.clip_norm", ".nan"),
                ("sft", "optim.clip_norm", ".inf"),
                ("sft", "optim.beta2", ".nan"),
                ("rlvr", "rollout.temperature", ".inf"),
                ("rlvr", "rollout.engine_noise", ".nan"),
                ("rlvr", "reference_kl", ".inf"),
                ("rlvr", "turn_weight", ".nan"),
                ("rlvr", "loss.policy.clip_high", ".inf"),
                ("rlvr", "loss.importance.high", ".inf"),
                ("rlvr", "eval.temperature", ".inf"),
                ("mix_rl", "domains.early.share", ".nan"),
                ("mix_rl", "domains.early.share", ".inf"),
                ("mopd", "loss.distill.max_signal", ".inf"),
                ("mopd", "loss.distill.max_signal", ".nan"),
                ("mopd", "loss.distill.power", ".nan"),
                ("mopd", "check.warn_reverse_kl", ".nan"),
                ("mopd", "loss.distill.weighting.position", ".inf"),
                ("copd", "exchange.beta", ".inf"),
            ]
        )
    },
    "distill_weight .nan": Wrong("mopd", "distill_weight={start: .nan, end: 1, steps: 3}", ("distill_weight",)),
    "alpha .nan": Wrong("mix_rl", "balance.kind=gap balance.alpha=.nan", ("alpha",)),
    "targets .inf": Wrong("mix_rl", "balance.kind=share balance.targets={early: .inf,late: 1}", ("targets",)),
    "scale .nan": Wrong("copd", "merge={method: task_arithmetic,scale: .nan}", ("scale",)),
    "lambdas .nan": Wrong("merge", "method=task_arithmetic lambdas=.nan", ("lambdas",)),
    "weights .inf": Wrong("merge", "weights={early: .inf,late: 1}", ("weights",)),
    "sweep .nan": Wrong("merge", "method=task_arithmetic sweep=[.nan,1]", ("sweep",)),
    "architecture .nan": Wrong("sft", "model.scratch.architecture.rms_norm_eps=.nan", ("rms_norm_eps",)),
    # options without effect
    "top_p": Wrong("rlvr", "rollout.top_p=0.9", ("top_p",)),
    "top_k": Wrong("mopd", "rollout.top_k=20", ("top_k",)),
    "k of full": Wrong("mopd", "loss.distill.estimator=full loss.distill.k=32", ("k",)),
    "max_signal of power": Wrong("mopd", "loss.distill.transform=power loss.distill.max_signal=3", ("max_signal",)),
    "power of clip": Wrong("mopd", "loss.distill.power=2", ("power",)),
    "jsd_beta without jsd": Wrong("mopd", "loss.distill.jsd_beta=0.3", ("jsd_beta",)),
    "refresh of topk": Wrong("mopd", "loss.distill.estimator=topk loss.distill.refresh=true", ("refresh",)),
    "dual_clip of cispo": Wrong("rlvr", "loss.policy.kind=cispo loss.policy.dual_clip=3", ("dual_clip",)),
    "alpha of share": Wrong("mix_rl", "balance.kind=share balance.alpha=2", ("alpha",)),
    "targets of none": Wrong("mix_rl", "balance.targets={early: 1,late: 2}", ("targets",)),
    "targets of a domain that is none": Wrong("mix_rl", "balance.kind=share balance.targets={sort: 1}", ("sort",)),
    "scale of average": Wrong("copd", "merge.scale=0.5", ("scale",)),
    "max_disagreement of rlvr": Wrong("rlvr", "loss.distill.weighting.max_disagreement=1", ("max_disagreement",)),
    "max_disagreement with one teacher": Wrong(
        "mopd",
        "teachers={self: {model: self,domains: [early,late]}} loss.distill.weighting.max_disagreement=1",
        ("max_disagreement",),
    ),
    "density of average": Wrong("merge", "density=0.5", ("density",)),
    "t of average": Wrong("merge", "t=0.5", ("t belongs",)),
    "lambdas and a sweep": Wrong("merge", "method=task_arithmetic lambdas=1 sweep=[1,2]", ("sweep",)),
    "plateau of constant weights": Wrong("mopd", "plateau={patience: 3}", ("plateau",)),
    # what cannot work together
    "k1 as a loss": Wrong("mopd", "loss.distill.estimator=k1", ("k1",)),
    "topk as an advantage": Wrong("mopd", "loss.distill.estimator=topk loss.distill.apply=advantage", ("topk",)),
    "renormalised with k 1": Wrong(
        "mopd", "loss.distill.estimator=topk loss.distill.topk=renormalised loss.distill.k=1", ("renormalised",)
    ),
    "k beyond the vocabulary": Wrong("mopd", "loss.distill.estimator=topk loss.distill.k=5000", ("5000",)),
    "jsd over topk": Wrong("mopd", "loss.distill.estimator=topk loss.distill.divergence=jsd", ("jsd",)),
    "one rollout in a group": Wrong("rlvr", "rollout.n=1", ("rollout.n",)),
    "outcome weight with n 1": Wrong("mopd", "outcome_weight=1", ("outcome_weight",)),
    "both weights 0": Wrong("mopd", "distill_weight=0", ("distill_weight",)),
    "more updates than prompts": Wrong("rlvr", "inner_updates=9", ("inner_updates",)),
    "inner_updates of copd": Wrong("copd", "inner_updates=2", ("inner_updates",)),
    "no steps in a cycle": Wrong("copd", "rl_steps=0 opd_steps=0", ("rl_steps",)),
    "hub that is no branch": Wrong("copd", "exchange.hub=sort", ("sort",)),
    "beta for one branch": Wrong("copd", "exchange.beta={early: 1}", ("late",)),
    "branch with share 0": Wrong("copd", "domains.late.share=0", ("late", "share")),
    "every share 0": Wrong("mix_rl", "domains.early.share=0 domains.late.share=0", ("share",)),
    "teacher of no domain": Wrong("mopd", "teachers.sort=x", ("sort",)),
    "domain without a teacher": Wrong("mopd", "teachers={early: x}", ("late",)),
    "domain with two teachers": Wrong("mopd", "teachers.late.domains=[early,late]", ("early",)),
    "teacher from scratch": Wrong(
        "mopd", "teachers.early={model: {scratch: {architecture: {},alphabet: ab}}}", ("path",)
    ),
    "order without a domain": Wrong("cascade_rl", "order=[early]", ("late",)),
    "order twice": Wrong("cascade_rl", "order=[early,early,late]", ("early",)),
    "order of no domain": Wrong("cascade_rl", "order=[early,later]", ("later",)),
    "rollouts not whole": Wrong("offpolicy", "rollouts_per_domain=7 rollout.n=2", ("rollouts_per_domain",)),
    "dn of offpolicy": Wrong("offpolicy", "balance.kind=dn", ("dn",)),
    "slerp of one": Wrong("merge", "method=slerp t=0.5 models={a: x}", ("slerp",)),
    "ties without density": Wrong("merge", "method=ties", ("density",)),
    "weights all 0": Wrong("merge", "weights={early: 0,late: 0}", ("weights",)),
    "lambdas of other models": Wrong("merge", "method=task_arithmetic lambdas={a: 1}", ("lambdas",)),
    "min above max": Wrong("rlvr", "rollout.min_new_tokens=9", ("min_new_tokens",)),
    "domain that cannot end": Wrong("rlvr", "rollout.min_new_tokens=3 domains.early.max_new_tokens=2", ("early",)),
    "answers beyond the context": Wrong("rlvr", "rollout.max_new_tokens=500", ("500",)),
    "student in float16": Wrong("rlvr", "model.dtype=float16", ("float16",)),
    "path and scratch": Wrong("sft", "model.path=x", ("scratch",)),
    "reference of a model from scratch": Wrong(
        "rlvr", "reference_kl=1 model={scratch: {architecture: {model_type: qwen3},alphabet: ab}}", ("reference_kl",)
    ),
    "architecture without a type": Wrong("sft", "model.scratch.architecture={}", ("model_type",)),
    "architecture that does not divide": Wrong(
        "sft", "model.scratch.architecture.num_key_value_heads=3", ("architecture",)
    ),
    "alphabet of one": Wrong("sft", "model.scratch.alphabet=a", ("alphabet",)),
    "attention unknown": Wrong("rlvr", "model.attention=magic", ("magic",)),
    "template argument unknown": Wrong("rlvr", "model.chat_template_kwargs={thinking: true}", ("thinking",)),
    "template arguments a word": Wrong("rlvr", "model.chat_template_kwargs=no", ("chat_template_kwargs",)),
    "stop string empty": Wrong("rlvr", "rollout.stop=['']", ("stop",)),
    # names
    "domain with a slash": Wrong("rlvr", "domains={'a/b': {tasks: {kind: letters}}}", ("a/b",)),
    "domain that leaves the folder": Wrong("rlvr", "domains={'..': {tasks: {kind: letters}}}", ("..",)),
    "domain without a name": Wrong("rlvr", "domains={'': {tasks: {kind: letters}}}", ("''",)),
    "domain with a line break": Wrong("rlvr", 'domains={"a\\nb": {tasks: {kind: letters}}}', ("a\\nb",)),
    "domain with a sign of metrics": Wrong("copd", "domains={'a<b': {tasks: {kind: letters}}}", ("a<b",)),
    "domain with a NUL": Wrong("rlvr", 'domains={"a\\0b": {tasks: {kind: letters}}}', ("a\\x00b",)),
    "domain with 300 letters": Wrong("rlvr", "domains={%s: {tasks: {kind: letters}}}" % ("a" * 300), ("aaa",)),
    "teacher with a slash": Wrong("mopd", "teachers={'a/b': {model: self,domains: [early,late]}}", ("a/b",)),
    # overrides
    "override without a value": Wrong("sft", "steps", ("steps",)),
    "override below a number": Wrong("sft", "steps.more=1", ("steps",)),
    "override that is no YAML": Wrong("sft", "steps=[1", ("steps=[1",), True),
}


def overridden(wrong: Wrong, place: Place) -> list[str]:
    return [*place.run(place.settings(wrong.recipe)), *re.split(r" (?=[a-z_.]+=)", wrong.overrides)]


# -- files -------------------------------------------------------------------------------------------------------------


def text(content: str | bytes, place: Place) -> list[str]:
    file = place.folder / "run.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return ["run", str(file)]


def bomb(place: Place) -> list[str]:
    """2**40 strings by aliases."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    return text("\n".join([*lines, "recipe: sft", "model: *a39", "output: run", "steps: 1"]), place)


def itself(place: Place) -> list[str]:
    """Domains that contain themselves."""
    (_, file) = place.run({key: value for key, value in place.settings("sft").items() if key != "domains"})
    return text(Path(file).read_text() + "domains: &a {b: *a}\n", place)


def keys(place: Place) -> list[str]:
    return text("recipe: sft\n" + "\n".join(f"key{n}: {n}" for n in range(100_000)), place)


def pipe(place: Place) -> list[str]:
    os.mkfifo(place.folder / "run.yaml")
    return ["run", str(place.folder / "run.yaml")]


def with_output(make: Callable[[Path], Any], place: Place) -> list[str]:
    made = make(place.folder)
    return place.run(place.settings("sft", output=str(made)))


def thesis(folder: Path) -> Path:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.tex").write_text("years of work")
    return folder / "run"


def a_file(folder: Path) -> Path:
    (folder / "occupied").write_text("")
    return folder / "occupied"


def other_run(place: Place) -> list[str]:
    """A folder in which another run has taken a step."""
    there = place.settings("sft", seed=5)
    (place.output / "checkpoints").mkdir(parents=True)
    (place.output / "config.yaml").write_text(yaml.safe_dump(there))
    return place.run(place.settings("sft"))


def extending(place: Place) -> list[str]:
    (place.folder / "other.yaml").write_text("extends: run.yaml\n")
    return text("extends: other.yaml\n", place)


FILES: dict[str, tuple[Callable[[Place], list[str]], tuple[str, ...]]] = {
    "no file": (lambda place: ["run", str(place.folder / "nowhere.yaml")], ("nowhere.yaml",)),
    "a folder without a run": (lambda place: ["run", str(place.models)], ("config.yaml",)),
    "an empty file": (partial(text, ""), ("run.yaml",)),
    "a list": (partial(text, "- recipe: sft\n"), ("run.yaml",)),
    "an open bracket": (partial(text, "steps: [1, 2\n"), ("run.yaml", "line 2")),
    "a key twice": (partial(text, "steps: 1\nsteps: 2\n"), ("'steps' twice", "line 2")),
    "a tab": (partial(text, "optim:\n\tlearning_rate: 1\n"), ("line 2",)),
    "a tag of Python's": (partial(text, "steps: !!python/object/apply:os.system [true]\n"), ("run.yaml", "line 1")),
    "bytes": (partial(text, bytes(range(256))), ("run.yaml",)),
    "Latin-1": (partial(text, b"recipe: sft # \xfc\n"), ("run.yaml", "UTF-8")),
    "nested 10,000 deep": (partial(text, "a: " + "[" * 10_000), ("run.yaml",)),
    "nested 900 deep": (partial(text, "recipe: sft\nsteps: " + "[" * 900 + "]" * 900), ("run.yaml",)),
    "an alias bomb": (bomb, ("run.yaml",)),
    "an alias of itself": (itself, ("domains|run.yaml",)),
    "100,000 keys": (keys, ("key0|run.yaml",)),
    "a pipe": (pipe, ("run.yaml",)),
    "extends itself": (extending, ("other.yaml", "extends")),
    "extends nothing": (partial(text, "extends: nowhere.yaml\nrecipe: sft\n"), ("nowhere.yaml",)),
    "extends a number": (partial(text, "extends: 3\nrecipe: sft\n"), ("no such file", "3")),
    "output a file": (partial(with_output, a_file), ("occupied",)),
    "output below a file": (partial(with_output, lambda folder: a_file(folder) / "run"), ("occupied",)),
    "output with other files": (partial(with_output, thesis), ("not empty",)),
    "output of a long name": (partial(with_output, lambda folder: folder / ("a" * 300)), ("aaa",)),
    "output with a NUL": (partial(with_output, lambda folder: f"{folder}/a\0b"), ("output",)),
    "output of another run": (other_run, ("seed: 5 there, 0 here",)),
}
LINES = {
    "100,000 keys": 30,
    "an alias bomb": 100,
    "an alias of itself": 2,
}  # lines that the error may have: each fault has its own
SHORT = ("a key twice", "an open bracket", "output with other files", "output a file")

CASES: dict[str, list[Case]] = {
    "configs": [
        *(
            Case(
                name, partial(overridden, wrong), wrong.names or (wrong.overrides.partition("=")[0],), short=wrong.short
            )
            for name, wrong in WRONG.items()
        ),
        *(
            Case(name, prepare, names, limit_s=30, short=name in SHORT, lines=LINES.get(name, 1))
            for name, (prepare, names) in FILES.items()
        ),
    ]
}
