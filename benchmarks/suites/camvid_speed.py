# mIoU of the ways to a cheaper step: frozen weights in bfloat16, and methods in late blocks only (docs/speed.md). Head,
# rates and data are those of frame_camvid_linear.py, whose rows are the references with all blocks.
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head = 1.6e-2
common = {
    'optim_wrapper.optimizer.lr': __head,
    'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': 2e-3 / __head,
}
__blocks = {'last half': [6, 7, 8, 9, 10, 11], 'last third': [8, 9, 10, 11]}


def __method(name: str, blocks: list) -> dict:
    return {
        'model.backbone.tuning': {name: dict(blocks=blocks)},
        'model.backbone.prompts': None,
        'model.guidance': None,
    }


methods = {
    'residual DA-VPT, bfloat16 trunk': {'model.backbone.trunk_dtype': 'bfloat16'},
    **{f'residual DA-VPT, {part}': {'model.backbone.prompts.blocks': b} for part, b in __blocks.items()},
    **{f'LoRA q,v, {part}': __method('lora', b) for part, b in __blocks.items()},
    **{f'AdaptFormer, {part}': __method('adaptformer', b) for part, b in __blocks.items()},
}
seeds = (0, 1, 2)
baseline = 'residual DA-VPT, bfloat16 trunk'
