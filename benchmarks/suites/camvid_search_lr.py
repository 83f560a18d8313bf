# Learning rates of what learns in the trunk: three a method, on the selection slice, one seed. The head's rate is the
# same for all; its three are tried with the head alone. (A first round had 4e-3 for the head, docs/evidence.md.)
config = 'configs/davpt_linear_camvid.py'
__head = 1.6e-2
common = {
    'model.guidance': None,
    'model.backbone.prompts.init': 'xavier',
    'model.backbone.prompts.gate': False,
    'optim_wrapper.optimizer.lr': __head,
}
__rates = (5e-4, 2e-3, 8e-3)
__tried = {
    'VPT-Deep': ('vpt_deep', __rates),
    'full': ('full', (6e-6, 2e-5, 6e-5)),
    'LoRA q,v': ('lora', __rates),
    'bias': ('bias', __rates),
    'VPT + bias': ('vpt_bias', __rates),
    'AdaptFormer': ('adaptformer', __rates),
    'LoRA qkv+proj': ('lora_all', __rates),
}
methods = {
    f'head only, {__rate:g}': {'model.backbone.tuning': 'frozen', 'optim_wrapper.optimizer.lr': __rate}
    for __rate in (4e-3, __head, 6.4e-2)
}
for __name, (__tuning, __own) in __tried.items():
    for __rate in __own:
        methods[f'{__name}, {__rate:g}'] = {
            'model.backbone.tuning': __tuning,
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': __rate / __head,
        }
seeds = (0,)
baseline = 'head only, 0.016'
select = True
