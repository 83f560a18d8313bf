# Gated prompts: effect of initialization, guidance, biases and rates. On the selection slice.
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head = 1.6e-2
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
common = {
    'optim_wrapper.optimizer.lr': __head,
    __lr_mult: 2e-3 / __head,
    'model.backbone.tuning': 'davpt_gated',
    'model.backbone.prompts.gate': True,
    # The recipe before pairings were tried with gates (camvid_search_pairing.py).
    'model.guidance.sample_space': 'attn_out',
    'model.guidance.prompt_space': 'query',
    'model.guidance.weight_patch': 0.005,
    'model.guidance.weight_proto': 0.005,
}
__weights = ('model.guidance.weight_patch', 'model.guidance.weight_proto')


def __rates(prompts: float, gates: float) -> dict:
    rates = {'tuned.prompts.tokens': prompts, 'tuned.prompts.gates': gates}
    keys = {name: dict(lr_mult=rate / __head, decay_mult=0.0) for name, rate in rates.items()}
    return {'optim_wrapper.paramwise_cfg.custom_keys': keys}


methods = {
    'VPT-Deep, gates': {
        'model.guidance': None,
        'model.backbone.tuning': 'vpt_deep',
    },
    'prototype init, gates': dict.fromkeys(__weights, 0.0),
    'recipe': {},
    'recipe, 0.05': dict.fromkeys(__weights, 0.05),
    'recipe, all biases': {'model.backbone.tuning': 'davpt_gated_bias'},
    'recipe, DA-VPT+': {'model.backbone.tuning': 'davpt_gated_plus'},
    'recipe, rate 5e-4': {__lr_mult: 5e-4 / __head},
    'recipe, rate 8e-3': {__lr_mult: 8e-3 / __head},
    'recipe, gates at 8e-3': __rates(2e-3, 8e-3),
    'recipe, gates at 3.2e-2': __rates(2e-3, 3.2e-2),
    'recipe, prompts at 1.6e-2': __rates(1.6e-2, 2e-3),
    'recipe, prompts at 1.6e-2, gates at 8e-3': __rates(1.6e-2, 8e-3),
}
seeds = (0,)
baseline = 'recipe'
select = True
