# Frame C of docs/results.md: CCP, 33 classes for 20 prompts, linear head.
_base_ = './frame_camvid_linear.py'
config = 'configs/davpt-residual_vit-s14_linear_400it_ccp-224x168.py'
__num = 'model.backbone.prompts.num'
methods = {  # how classes share the prompts of the guided block
    'residual DA-VPT, a prompt per class': {__num: [20] * 11 + [33]},
    'residual DA-VPT, 10 clusters': {__num: [20] * 11 + [10]},
    'residual DA-VPT, fixed assignment': {'custom_hooks.2.interval': 0},
    'residual DA-VPT, not centered': {'model.guidance.center_prototypes': False},
    'residual DA-VPT, balanced prototypes': {
        'model.guidance.type': 'BalancedGuidance',
        'custom_imports.imports': ['mmseg_davpt', 'benchmarks.trials.balanced_guidance'],
    },
}
seeds = (0, 1, 2, 3, 4, 5)
