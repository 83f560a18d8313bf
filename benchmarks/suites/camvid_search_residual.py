# The form of residual DA-VPT (docs/method.md): one change at a time, on the selection slice, with the rates of the
# methods that it is compared with. In bfloat16: a CPU needs AVX-512.
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head, __rate = 1.6e-2, 2e-3
__keys = 'optim_wrapper.paramwise_cfg.custom_keys'
common = {
    'optim_wrapper.optimizer.lr': __head,
    f'{__keys}.backbone.lr_mult': __rate / __head,
    'custom_imports.imports': ['mmseg_davpt', 'benchmarks.trials.residual_values'],
}
__num, __blocks = 'model.backbone.prompts.num', 'model.backbone.prompts.blocks'
__last_6, __last_4, __all = tuple(range(6, 12)), tuple(range(8, 12)), tuple(range(12))
__unguided = {'model.guidance': None, 'model.backbone.tuning': 'vpt_residual'}


def __rates(prompts: float, values: float, decay: float = 0.0) -> dict:
    """Learning rates of the prompts and of the values."""
    return {
        __keys: {
            'tuned.residual_prompts.tokens': dict(lr_mult=prompts / __head, decay_mult=0.0),
            'tuned.residual_prompts.values': dict(lr_mult=values / __head, decay_mult=decay),
        }
    }


def __all_at(rate: float) -> dict:
    return {f'{__keys}.backbone.lr_mult': rate / __head}


def __variant(**options: object) -> dict:
    return {'model.backbone.tuning': dict(_delete_=True, residual_variant=options)}


def __with(prompts: dict | None = None, **methods: object) -> dict:
    """Residual prompts together with other methods."""
    prompts = dict(init='prototype') if prompts is None else prompts
    return {'model.backbone.tuning': dict(_delete_=True, residual_prompts=prompts, **methods)}


def __proxies(**methods: object) -> dict:
    """Other methods, guided by prompts that do not act."""
    return {'model.backbone.tuning': dict(_delete_=True, residual_variant=dict(where='nowhere'), **methods)}


def __weight(weight: float) -> dict:
    return {'model.guidance.weight_patch': weight, 'model.guidance.weight_proto': weight}


methods = {
    'recipe': {},
    # Learning rates.
    'all at 5e-4': __all_at(5e-4),
    'all at 1e-3': __all_at(1e-3),
    'all at 4e-3': __all_at(4e-3),
    'all at 8e-3': __all_at(8e-3),
    'values at 5e-4': __rates(2e-3, 5e-4),
    'values at 8e-3': __rates(2e-3, 8e-3),
    'prompts at 5e-4': __rates(5e-4, 2e-3),
    'prompts at 8e-3': __rates(8e-3, 2e-3),
    'values decayed': __rates(2e-3, 2e-3, decay=1.0),
    'warm-up of 80': {'param_scheduler.0.end': 80, 'param_scheduler.1.begin': 80},
    # Where the values join, and how patches choose.
    'after the MLP': __variant(where='mlp'),
    'after both': __variant(where='both'),
    'sigmoid': __variant(choice='sigmoid'),
    'ReLU': __variant(choice='relu'),
    'top 4': __variant(choice='top'),
    'scaled scores and heads': __variant(scaled=True),
    'null prompt': __variant(null=True),
    'free keys': __variant(free_keys=True),
    'values of rank 16, shared': __variant(rank=16),
    # Guidance and start.
    'unguided, random prompts': __unguided,
    'unguided': __weight(0.0),
    'random prompts': {'model.backbone.prompts.init': 'xavier'},
    'weight 0.005': __weight(0.005),
    'weight 0.5': __weight(0.5),
    'last four blocks guided': {'model.guidance.blocks': (-4, -3, -2, -1)},
    'all blocks guided': {'model.guidance.blocks': __all},
    'attn_out - query': {'model.guidance.sample_space': 'attn_out', 'model.guidance.prompt_space': 'query'},
    'not centered': {'model.guidance.center_prototypes': False},
    # Numbers of prompts and blocks.
    '5 prompts': {__num: 5},
    '10 prompts': {__num: 10},
    '50 prompts': {__num: 50},
    'last 6 blocks': {__blocks: __last_6},
    'last 4 blocks': {__blocks: __last_4},
    # Mixtures.
    '+ LoRA 4': __with(lora=dict(rank=4)),
    '+ LoRA 8': __with(lora={}),
    '10 prompts + LoRA 6': __with(lora=dict(rank=6)) | {__num: 10},
    '+ AdaptFormer 8': __with(adaptformer=dict(dim=8)),
    '+ AdaptFormer': __with(adaptformer={}),
    '+ bias': __with(bias='all'),
    '+ bias and norm': __with(bias='all', norm=True),
    '+ LoRA 8, unguided': __with(dict(init='prototype'), lora={}) | __weight(0.0),
    '10 prompts + LoRA 6, unguided': __with(lora=dict(rank=6)) | {__num: 10} | __weight(0.0),
    'last 6 blocks + LoRA 6': __with(lora=dict(rank=6)) | {__blocks: __last_6},
    # Guidance with prompts that do not act.
    'LoRA 8, guided proxies': __proxies(lora={}),
    'AdaptFormer, guided proxies': __proxies(adaptformer={}),
}
__others = {'LoRA 8': 'lora', 'bias': 'bias', 'AdaptFormer': 'adaptformer', 'Convpass': 'convpass', 'DoRA 8': 'dora'}
methods |= {
    f'{__name} at {__r:g}': {
        **__all_at(__r),
        'model.backbone.tuning': __tuning,
        'model.backbone.prompts': None,
        'model.guidance': None,
    }
    for __name, __tuning in __others.items()
    for __r in (1e-3, 2e-3, 4e-3)
}
__hooks = [
    dict(type='StepSeedHook'),
    dict(type='ParamReportHook'),
    dict(type='PromptAssignmentHook', num_batches=40),
]
methods |= {
    f'semantic values, {__scale}': {
        'custom_hooks': [*__hooks, dict(type='SemanticValuesHook', scale=__scale), dict(type='EMAHook', momentum=0.01)]
    }
    for __scale in (0.03, 0.3)
}
seeds = (0, 1, 2)
baseline = 'recipe'
titles = {'recipe': 'residual DA-VPT'}
select = True
