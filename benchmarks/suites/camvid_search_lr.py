# Learning rates of the trainable parameters in the trunk: three per method, on the selection slice, one seed. The rate
# of the head is the same for all methods; three rates of the head are tried without tuning the trunk.
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head = 1.6e-2
common = {'model.guidance': None, 'optim_wrapper.optimizer.lr': __head}
__no_prompts = {'model.backbone.prompts': None}
__rates = (5e-4, 2e-3, 8e-3)
__tried = {
    'VPT-Deep': ('vpt_deep', __rates),
    'full': ('full', (6e-6, 2e-5, 6e-5)),
    'LoRA q,v': ('lora', __rates),
    'bias': ('bias', __rates),
    'VPT + bias': ('vpt_bias', __rates),
    'AdaptFormer': ('adaptformer', __rates),
    'LoRA qkv+proj': ('lora_all', __rates),
    # Not run yet.
    'DoRA': ('dora', __rates),
    'SSF': ('ssf', __rates),
    'Convpass': ('convpass', __rates),
    'parallel adapter': ('parallel_adapter', __rates),
    'parallel adapter, LoRA': ('parallel_adapter_lora', __rates),
}
methods = {
    f'head only, {__rate:g}': {'model.backbone.tuning': 'frozen', **__no_prompts, 'optim_wrapper.optimizer.lr': __rate}
    for __rate in (4e-3, __head, 6.4e-2)
}
for __name, (__tuning, __method_rates) in __tried.items():
    for __rate in __method_rates:
        methods[f'{__name}, {__rate:g}'] = {
            'model.backbone.tuning': __tuning,
            **({} if __tuning.startswith('vpt') else __no_prompts),
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': __rate / __head,
        }
seeds = (0,)
baseline = 'head only, 0.016'
select = True
