# The learning rate of neck and UPerNet, on the selection slice: with a frozen trunk and with LoRA, one seed.
config = 'configs/davpt-residual_vit-s14_upernet_400it_camvid-168x224.py'
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
common = {
    'optim_wrapper.type': 'OptimWrapper',
    'test_cfg.fp16': False,
    'model.backbone.prompts': None,
    'model.guidance': None,
}
methods = {
    f'{__name}, {__rate:g}': {
        'model.backbone.tuning': __tuning,
        'optim_wrapper.optimizer.lr': __rate,
        __lr_mult: 2e-3 / __rate,
    }
    for __name, __tuning in (('head only', 'frozen'), ('LoRA q,v', 'lora'))
    for __rate in (1e-3, 4e-3, 1.6e-2)
}
seeds = (0,)
baseline = 'head only, 0.004'
select = True
