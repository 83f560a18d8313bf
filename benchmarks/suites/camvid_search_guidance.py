# Pairing, weight, guided blocks and initialization without gates, on the selection slice, at VPT-Deep's best rate.
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head, __rate = 1.6e-2, 2e-3
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
common = {
    'optim_wrapper.optimizer.lr': __head,
    __lr_mult: __rate / __head,
    'model.backbone.tuning': 'davpt',
    'model.backbone.prompts.init': 'xavier',
    'model.backbone.prompts.gate': False,
    'model.guidance.center_prototypes': False,
    'model.guidance.sample_space': 'attn_out',
    'model.guidance.prompt_space': 'query',
}
__last, __last_four, __all = (-1,), (-4, -3, -2, -1), tuple(range(12))
# Sample space of the patch term, prompt space, sample space of the prototype term; weight; guided blocks.
__tried = {
    'attn_out - query': ('attn_out', 'query', 'query', 0.05, __last),  # the paper's DA-VPT
    'query - key': ('query', 'key', 'query', 0.05, __last),
    'token - token': ('token', 'token', 'token', 0.05, __last),
    'query - key, all blocks': ('query', 'key', 'query', 0.05, __all),
    'attn_out - query, last four, 0.5': ('attn_out', 'query', 'query', 0.5, __last_four),
    'attn_out - query, 0.005': ('attn_out', 'query', 'query', 0.005, __last),
    'attn_out - query, 0.5': ('attn_out', 'query', 'query', 0.5, __last),
}
methods = {'VPT-Deep': {'model.guidance': None, 'model.backbone.tuning': 'vpt_deep'}}
for __name, (__sample, __prompt, __proto, __weight, __blocks) in __tried.items():
    methods[__name] = {
        'model.guidance.sample_space': __sample,
        'model.guidance.prompt_space': __prompt,
        'model.guidance.proto_space': __proto,
        'model.guidance.weight_patch': __weight,
        'model.guidance.weight_proto': __weight,
        'model.guidance.blocks': __blocks,
    }
__center = {'model.guidance.center_prototypes': True}
__init = {'model.backbone.prompts.init': 'prototype'}
__off = {'model.guidance.weight_patch': 0.0, 'model.guidance.weight_proto': 0.0}
methods |= {
    'prototype init': {**__init, **__off},
    'prototype init, 0.008': {**__init, **__off, __lr_mult: 8e-3 / __head},
    'prototype init, attn_out - query': {**methods['attn_out - query'], **__init},
    'prototype init, query - key': {**methods['query - key'], **__init},
    'prototype init, attn_out - query, 0.005': {**methods['attn_out - query, 0.005'], **__init},
    'prototype init, centered, 0.005': {**methods['attn_out - query, 0.005'], **__init, **__center},
    'prototype init, centered, 0.5': {**methods['attn_out - query, 0.5'], **__init, **__center},
}
seeds = (0, 1)
baseline = 'VPT-Deep'
titles = {'attn_out - query': 'DA-VPT'}
select = True
