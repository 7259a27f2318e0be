"""The math, per token and unreduced: what a token's loss is, never what it is divided by (that is `reduce`).

All functions are pure and device-free, compute in float32 at least and keep float64. The batch is flat: values sit on
the N axis, the policy-written tokens of all samples laid end to end, so there is no padding and hardly a mask.
Losses are to be minimised; advantages and distillation signals are to be followed upwards.

    advantages  rewards of a group -> advantages             divergences  student and teacher -> KL, JSD, top-k
    policy      advantages -> policy-gradient losses         distill      DistillConfig -> the function that is meant
    importance  engine and learner -> token weights          weighting    place in a sample or batch -> weights
    balance     domains -> weights
    reduce      coefficients of the global batch: the only module that divides
"""
