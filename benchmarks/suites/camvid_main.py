# The main table: validation images, every method at the rate that the selection slice chose (docs/evidence.md).
config = 'configs/davpt_linear_camvid.py'
__head = 1.6e-2
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
__num, __gate = 'model.backbone.prompts.num', 'model.backbone.prompts.gate'
common = {'optim_wrapper.optimizer.lr': __head, __lr_mult: 2e-3 / __head, __gate: False}
__paper, __scores = ('attn_out', 'query'), ('query', 'key')  # samples - prompts


def __alone(tuning: str) -> dict:
    return {'model.backbone.tuning': tuning, 'model.guidance': None, 'model.backbone.prompts.init': 'xavier'}


def __guided(tuning: str, pairing: tuple[str, str], weight: float, gate: bool) -> dict:
    return {
        'model.backbone.tuning': tuning,
        'model.backbone.prompts.init': 'prototype',
        __gate: gate,
        'model.guidance.sample_space': pairing[0],
        'model.guidance.prompt_space': pairing[1],
        'model.guidance.weight_patch': weight,
        'model.guidance.weight_proto': weight,
        'model.guidance.center_prototypes': True,
    }


methods = {
    'VPT-Deep': __alone('vpt_deep'),
    'VPT-Deep, prototype init': __guided('davpt', __paper, 0.0, gate=False),
    'VPT-Deep, gates': {**__alone('vpt_deep'), __gate: True},
    'VPT-Deep, prototype init, gates': __guided('davpt', __paper, 0.0, gate=True),
    'DA-VPT, attn_out - query, 0.005, no gates': __guided('davpt', __paper, 0.005, gate=False),
    'DA-VPT+, attn_out - query, 0.005, no gates': __guided('davpt_plus', __paper, 0.005, gate=False),
    'DA-VPT, attn_out - query, 0.005': __guided('davpt', __paper, 0.005, gate=True),
    'DA-VPT+, attn_out - query, 0.005': __guided('davpt_plus', __paper, 0.005, gate=True),
    'DA-VPT, attn_out - query, 0.05': __guided('davpt', __paper, 0.05, gate=True),
    'DA-VPT': __guided('davpt', __scores, 0.05, gate=True),
    'DA-VPT+': __guided('davpt_plus', __scores, 0.05, gate=True),
    'DA-VPT, all biases': __guided('vpt_bias', __scores, 0.05, gate=True),
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
