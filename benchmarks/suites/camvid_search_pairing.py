# Attention of the last block's patches to prompts, before and after training, for each pairing. On the selection slice.
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head, __rate = 1.6e-2, 2e-3
common = {
    'optim_wrapper.optimizer.lr': __head,
    'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': __rate / __head,
    'model.backbone.tuning': 'davpt_gated',
    'custom_hooks': [
        dict(type='StepSeedHook'),
        dict(type='ParamReportHook'),
        dict(type='PromptAssignmentHook', num_batches=40),
        dict(type='AttentionMassHook'),
        dict(type='EMAHook', momentum=0.01),
    ],
}
# Sample space of the patch term, prompt space, sample space of the prototype term.
__pairings = {
    'attn_out - query': ('attn_out', 'query', 'query'),  # the paper's
    'query - key': ('query', 'key', 'query'),
    'token - token': ('token', 'token', 'token'),
}


def __guided(pairing: str, *, weight: float, gate: bool, paper: bool = False) -> dict:
    sample, prompt, proto = __pairings[pairing]
    return {
        'model.backbone.prompts.gate': gate,
        'model.backbone.prompts.init': 'xavier' if paper else 'prototype',
        'model.guidance.sample_space': sample,
        'model.guidance.prompt_space': prompt,
        'model.guidance.proto_space': proto,
        'model.guidance.weight_patch': weight,
        'model.guidance.weight_proto': weight,
        'model.guidance.center_prototypes': not paper,
    }


def __unguided(gate: bool) -> dict:
    return {
        'model.guidance': None,
        'model.backbone.tuning': 'vpt_deep',
        'model.backbone.prompts.init': 'xavier',
        'model.backbone.prompts.gate': gate,
    }


__few = {'model.backbone.prompts.num': [20] * 11 + [10]}  # 11 classes: every prompt of the guided block has a class
__weak = dict(weight=0.005, gate=True)
__strong = dict(weight=0.05, gate=True)
__paper = dict(weight=0.05, gate=False, paper=True)
methods = {
    'VPT-Deep': __unguided(False),
    'VPT-Deep, gates': __unguided(True),
    'prototype init, gates': __guided('attn_out - query', weight=0.0, gate=True),
    **{name: __guided(name, **__weak) for name in __pairings},
    **{f'{name}, 0.05': __guided(name, **__strong) for name in ('attn_out - query', 'query - key')},
    'attn_out - query, 0.05, none free': {**__guided('attn_out - query', **__strong), **__few},
    'query - key, 0.05, none free': {**__guided('query - key', **__strong), **__few},
    'query - key, 0.5': __guided('query - key', weight=0.5, gate=True),
    **{f'paper, {name}': __guided(name, **__paper) for name in ('attn_out - query', 'query - key')},
}
seeds = (0, 1, 2)
baseline = 'VPT-Deep, gates'
titles = {
    'paper, attn_out - query': 'DA-VPT',
    'paper, query - key': 'DA-VPT, query - key',
    'query - key, 0.05': 'gated DA-VPT',
}
select = True
