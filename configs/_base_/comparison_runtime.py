# The runtime of the comparisons: a shorter warm-up of the assignment, and averaged weights.
_base_ = './default_runtime.py'
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='ParamReportHook'),
    dict(type='PromptAssignmentHook', num_batches=40),
    dict(type='EMAHook', momentum=0.01),
    dict(type='TrainingGuardHook'),
]
