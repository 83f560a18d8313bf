# The main table: validation images, every method at the rate that the selection slice chose (docs/evidence.md).
config = 'configs/davpt_linear_camvid.py'
__head = 1.6e-2
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
__num, __gate = 'model.backbone.prompts.num', 'model.backbone.prompts.gate'
common = {'optim_wrapper.optimizer.lr': __head, __lr_mult: 2e-3 / __head, __gate: False}
__random, __prototypes = ({'model.backbone.prompts.init': init} for init in ('xavier', 'prototype'))
__weights = ('model.guidance.weight_patch', 'model.guidance.weight_proto')
__unguided, __guided = ({name: weight for name in __weights} for weight in (0.0, 0.005))
__guided['model.guidance.centre'] = True
__scores = {'model.guidance.sample_space': 'query', 'model.guidance.prompt_space': 'key', __gate: True}
__scores |= {**__guided, **__prototypes, **{name: 0.05 for name in __weights}}


def __alone(tuning: str) -> dict:
    return {'model.backbone.tuning': tuning, 'model.guidance': None, **__random}


methods = {
    'VPT-Deep': __alone('vpt_deep'),
    'VPT-Deep, prototype init': {'model.backbone.tuning': 'davpt', **__prototypes, **__unguided},
    'VPT-Deep, gates': {**__alone('vpt_deep'), __gate: True},
    'VPT-Deep, prototype init, gates': {'model.backbone.tuning': 'davpt', **__prototypes, **__unguided, __gate: True},
    'DA-VPT, no gates': {'model.backbone.tuning': 'davpt', **__prototypes, **__guided},
    'DA-VPT+, no gates': {'model.backbone.tuning': 'davpt_plus', **__prototypes, **__guided},
    'DA-VPT': {'model.backbone.tuning': 'davpt', **__prototypes, **__guided, __gate: True},
    'DA-VPT+': {'model.backbone.tuning': 'davpt_plus', **__prototypes, **__guided, __gate: True},
    'DA-VPT, query - key, 0.05': {'model.backbone.tuning': 'davpt', **__scores},
    'DA-VPT+, query - key, 0.05': {'model.backbone.tuning': 'davpt_plus', **__scores},
    'full': {**__alone('full'), __lr_mult: 2e-5 / __head},
    'LoRA q,v': __alone('lora'),
    'bias': __alone('bias'),
    'VPT + bias': __alone('vpt_bias'),
    'head only': __alone('frozen'),
    'AdaptFormer': __alone('adaptformer'),
    'LoRA qkv+proj': {**__alone('lora_all'), __lr_mult: 5e-4 / __head},
    # At VPT-Deep's rate: their own were not searched.
    'VPT-Shallow': __alone('vpt_shallow'),
    **{f'VPT-Deep, {num} prompts': {**__alone('vpt_deep'), __num: num} for num in (10, 50, 100)},
}
seeds = (0, 1, 2)
baseline = 'VPT-Deep'
