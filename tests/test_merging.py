"""Merging: what the golden vectors leave out. Refusals, precision, trimming, dropping, LoRA."""

import pytest
import torch

from onepolicy.merging import average, check_mergeable, dare, lora_delta, slerp, slerp_tensor, task_arithmetic, ties


def model(*values, dtype=torch.float64):
    return {"w": torch.tensor(values, dtype=dtype)}


ALL = [
    lambda a, b: average([a, b]),
    lambda a, b: task_arithmetic(a, [b], [1.0]),
    lambda a, b: ties(a, [b], [1.0], 0.5),
    lambda a, b: dare(a, [b], [1.0], 0.5, seed=0),
    lambda a, b: slerp(a, b, 0.5),
]


@pytest.mark.parametrize("merge", ALL)
def test_models_that_do_not_fit_are_refused_by_name_with_both_values(merge):
    with pytest.raises(ValueError, match=r"'w' has shape \(2,\) in model 0 and \(3,\) in model 1"):
        merge(model(1, 2), model(1, 2, 3))
    with pytest.raises(ValueError, match=r"'w' is torch.float64 in model 0 and torch.float32 in model 1"):
        merge(model(1, 2), model(1, 2, dtype=torch.float32))
    with pytest.raises(ValueError, match="'v' is in model 0 but not in model 1"):
        merge({**model(1), "v": torch.ones(1)}, model(1))
    with pytest.raises(ValueError, match="'v' is in model 1 but not in model 0"):
        merge(model(1), {**model(1), "v": torch.ones(1)})
    with pytest.raises(ValueError, match=r"'n' .* differs between model 0 and model 1"):
        merge({"n": torch.tensor([1])}, {"n": torch.tensor([2])})


def test_the_third_model_is_checked_as_well():
    with pytest.raises(ValueError, match="in model 2"):
        check_mergeable([model(1, 2), model(3, 4), model(1)])


@pytest.mark.parametrize("merge", ALL)
def test_merging_a_model_with_itself_gives_it_back_as_new_tensors(merge):
    same = {**model(1.5, -2, 0), "steps": torch.tensor([3])}
    merged = merge(same, {name: x.clone() for name, x in same.items()})
    assert merged["w"].tolist() == [1.5, -2, 0] and merged["steps"].tolist() == [3]
    assert merged["w"].dtype == torch.float64
    assert all(merged[name].data_ptr() != same[name].data_ptr() for name in same)


def test_counts_of_models_and_weights_must_agree():
    with pytest.raises(ValueError, match="no models to merge"):
        average([])
    with pytest.raises(ValueError, match="1 weights for 2 models"):
        average([model(1), model(2)], [1.0])
    with pytest.raises(ValueError, match="2 lambdas for 1 models"):
        task_arithmetic(model(1), [model(2)], [1.0, 1.0])
    with pytest.raises(ValueError, match="positive sum"):
        average([model(1), model(2)], [1.0, -1.0])
    with pytest.raises(ValueError, match="density is 0"):
        ties(model(1), [model(2)], [1.0], 0)
    with pytest.raises(ValueError, match=r"density is 1.5"):
        dare(model(1), [model(2)], [1.0], 1.5, seed=0)


def test_a_weighted_average_normalises_its_weights():
    assert average([model(0), model(10)], [3, 1])["w"].tolist() == [2.5]


def test_an_average_in_half_precision_is_computed_in_float32():
    models = [model(x, dtype=torch.bfloat16) for x in (1.0, 1.0078125, 1.0078125, 1.0078125)]
    merged = average(models)["w"]  # bfloat16 additions would round on the way to 4.02
    assert merged.dtype == torch.bfloat16
    exact = torch.tensor((1.0 + 3 * 1.0078125) / 4)
    assert merged.item() == exact.bfloat16().item()


def test_inputs_are_left_alone():
    base, teacher = model(1, 2, 3), model(3, 2, 1)
    for merge in ALL:
        merge(base, teacher)
    assert base["w"].tolist() == [1, 2, 3] and teacher["w"].tolist() == [3, 2, 1]


def test_ties_trims_before_it_elects():
    base = model(0, 0, 0, 0)
    merged = ties(base, [model(4, 1, -3, 0.5), model(-1, 2, -5, 0.1)], [1, 1], density=0.5)
    assert merged["w"].tolist() == [4, 2, -4, 0]  # the second model's -1 and .1, the first one's 1 and .5 are trimmed


def test_ties_weighs_votes_and_leaves_a_draw_at_the_base():
    merged = ties(model(10, 10), [model(11, 12), model(9, 9)], [1, 1], density=1)
    assert merged["w"].tolist() == [10, 12]
    merged = ties(model(0), [model(2), model(4)], [3, 1], density=1)
    assert merged["w"].tolist() == [2.5]


def test_dare_drops_and_rescales_without_bias_and_by_seed_alone():
    base = {"a": torch.zeros(20_000), "b": torch.zeros(5)}
    teacher = {"a": torch.ones(20_000), "b": torch.ones(5)}
    merged = dare(base, [teacher], [1.0], density=0.25, seed=7)
    assert set(merged["a"].tolist()) == {0.0, 4.0}
    assert merged["a"].mean().item() == pytest.approx(1.0, abs=0.05)
    backwards = dare(dict(reversed(base.items())), [teacher], [1.0], density=0.25, seed=7)
    assert all(torch.equal(merged[name], backwards[name]) for name in base)
    assert not torch.equal(merged["a"], dare(base, [teacher], [1.0], density=0.25, seed=8)["a"])


def test_dare_draws_another_mask_for_each_teacher_and_is_task_arithmetic_at_full_density():
    base, teachers = {"w": torch.zeros(100)}, [{"w": torch.ones(100)}, {"w": torch.ones(100)}]
    assert set(dare(base, teachers, [0.5, 0.5], 0.5, seed=0)["w"].tolist()) == {0.0, 1.0, 2.0}
    full, arithmetic = dare(base, teachers, [0.5, 1], 1.0, seed=0), task_arithmetic(base, teachers, [0.5, 1])
    assert torch.equal(full["w"], arithmetic["w"])


def test_slerp_of_matrices_is_that_of_the_flattened_tensors():
    first, second = torch.tensor([[1.0, 2], [0, -1]]), torch.tensor([[0.5, -1], [2, 0]])
    merged = slerp({"w": first}, {"w": second}, 0.3)["w"]
    torch.testing.assert_close(merged.flatten(), slerp_tensor(first.flatten(), second.flatten(), 0.3))


def test_slerp_of_zero_and_opposite_tensors_is_linear():
    assert slerp_tensor(torch.zeros(2), torch.tensor([2.0, 4]), 0.5).tolist() == [1, 2]
    assert slerp_tensor(torch.tensor([1.0, 0]), torch.tensor([-1.0, 0]), 0.5).tolist() == [0, 0]


def test_lora_experts_are_merged_on_the_product_with_the_scaling_once():
    lora_a, lora_b = torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0], [-1]])
    assert lora_delta(lora_a, lora_b, scaling=2.0).tolist() == [[2, 4, 6], [-2, -4, -6]]
    base = {"w": torch.zeros(2, 3)}
    experts = [{"w": base["w"] + lora_delta(sign * lora_a, sign * lora_b, 2.0)} for sign in (1, -1)]
    merged = average(experts)["w"]  # the mean of the factors would be 0
    assert merged.tolist() == [[2, 4, 6], [-2, -4, -6]]


def test_lora_factors_of_different_rank_are_refused():
    with pytest.raises(ValueError, match=r"lora_A \(1, 3\) and lora_B \(2, 4\) do not share a rank"):
        lora_delta(torch.ones(1, 3), torch.ones(2, 4), 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_in_a_model_and_in_the_result(value: float) -> None:
    good, sick = {"w": torch.ones(3)}, {"w": torch.tensor([1.0, value, 0.0])}
    for call in (
        lambda: average([good, sick]),
        lambda: task_arithmetic(sick, [good], [1.0]),
        lambda: ties(good, [sick], [1.0], 0.5),
        lambda: slerp(good, sick, 0.5),
    ):
        with pytest.raises(ValueError, match=r"tensor 'w' in model [01] is not finite \(it holds NaN or inf\)"):
            call()
    half = {"w": torch.full((2,), 6e4, dtype=torch.float16)}
    none = {"w": torch.zeros(2, dtype=torch.float16)}
    with pytest.raises(ValueError, match=r"tensor 'w' of the merge is beyond the range of torch\.float16: use smaller"):
        task_arithmetic(none, [half, half], [1.0, 1.0])
