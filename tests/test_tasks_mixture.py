"""Domains side by side: what is held out stays out, shares are exact, and resume continues where it stopped."""

import json

import pytest

from onepolicy.config import DomainConfig
from onepolicy.tasks.mixture import Domain, Mixture, prompt_key
from onepolicy.types import Task

WORDS = {"kind": "letters", "task": "reverse", "min_length": 4, "max_length": 6}
TINY = {"kind": "letters", "task": "add", "min_length": 1, "max_length": 1}  # 100 distinct questions


def keys(tasks):
    return [prompt_key(task) for task in tasks]


def test_training_never_draws_a_held_out_prompt_even_from_a_tiny_question_space():
    domain = Domain("add", DomainConfig(tasks=TINY, eval_size=60), seed=0)
    held_out = set(keys(domain.eval_tasks))
    assert len(held_out) == 60
    drawn = set(keys(domain.draw() for _ in range(1000)))
    assert len(drawn) == 40 and not drawn & held_out


def test_all_seeds_share_one_held_out_set_and_differ_in_training():
    first, second = (Domain("w", DomainConfig(tasks=WORDS, eval_size=8), seed) for seed in (0, 1))
    assert first.eval_tasks == second.eval_tasks
    assert keys(first.draw() for _ in range(8)) != keys(second.draw() for _ in range(8))


def test_too_few_distinct_prompts_for_evaluation_are_refused_with_numbers():
    with pytest.raises(ValueError, match=r"'add' shows only 100 distinct prompts in \d+ draws, but eval_size is 101: "):
        Domain("add", DomainConfig(tasks=TINY, eval_size=101), seed=0)


def test_a_held_out_set_that_leaves_nothing_to_train_on_is_refused():
    domain = Domain("add", DomainConfig(tasks=TINY, eval_size=100), seed=0)
    with pytest.raises(ValueError, match=r"901 of the last 901 training draws were among its 100 held-out prompts"):
        domain.draw()
    domain = Domain("add", DomainConfig(tasks=TINY, eval_size=96), seed=0)
    with pytest.raises(ValueError, match=r"lower domains.add.eval_size or widen"):
        for _ in range(1000):
            domain.draw()


def mixture(seed=0):
    shares = {"a": 5, "b": 3, "c": 2}
    return Mixture({name: DomainConfig(tasks=WORDS, share=share, eval_size=4) for name, share in shares.items()}, seed)


def names(tasks):
    return "".join(task.domain for task in tasks)


def test_shares_are_exact_in_every_ten_draws_and_independent_of_the_batch_size():
    mixed = mixture()
    drawn = "".join(names(mixed.draw(n)) for n in (1, 9, 90))
    assert drawn == names(mixture().draw(100)) == drawn[:10] * 10
    assert [drawn[:10].count(name) for name in "abc"] == [5, 3, 2]
    assert mixed.drawn == {"a": 50, "b": 30, "c": 20}


def test_uneven_shares_stay_within_one_prompt_of_what_they_are_owed():
    domains = {str(i): DomainConfig(tasks=WORDS, share=share, eval_size=1) for i, share in enumerate((0.1, 1, 2.7, 7))}
    mixed = Mixture(domains, seed=0)
    for total in range(1, 200):
        mixed.draw(1)
        assert all(abs(mixed.shares[name] * total - mixed.drawn[name]) < 1 for name in domains)


def test_a_resumed_mixture_draws_what_the_interrupted_one_would_have():
    whole = mixture().draw(40)
    first, second = mixture(), mixture()
    assert first.draw(17) == whole[:17]
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.draw(23) == whole[17:]


def test_the_state_of_other_domains_is_refused():
    with pytest.raises(ValueError, match=r"of domains \['x'\], this run has \['a', 'b', 'c'\]"):
        mixture().load_state({"x": {"cursor": 0, "drawn": 0}})


def test_gold_and_demonstration_come_from_the_domain_of_the_task():
    mixed = Mixture({"add": DomainConfig(tasks=TINY, eval_size=1), "rev": DomainConfig(tasks=WORDS, eval_size=1)}, 0)
    for task in mixed.draw(4) + mixed.eval_tasks["add"] + mixed.eval_tasks["rev"]:
        assert mixed.gold(task) == mixed.demonstration(task) == task.reference


def test_prompts_are_equal_by_their_messages_alone_media_included():
    def task(name, content):
        return Task(name, "d", ({"role": "user", "content": content},), name)

    image = [{"type": "image", "image": b"pixels"}]
    assert prompt_key(task("1", "x")) == prompt_key(task("2", "x")) != prompt_key(task("1", "y"))
    assert prompt_key(task("1", image)) == prompt_key(task("2", image))
    assert prompt_key(task("1", image)) != prompt_key(task("1", [{"type": "image", "image": b"others"}]))
