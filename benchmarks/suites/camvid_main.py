# The main table, on the validation images. Each method has the rate that was chosen on the selection slice
# (benchmarks/results/comparison.md).
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head = 1.6e-2
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
__num = 'model.backbone.prompts.num'
common = {'optim_wrapper.optimizer.lr': __head, __lr_mult: 2e-3 / __head}
__paper, __scores = ('attn_out', 'query'), ('query', 'key')  # sample space, prompt space


def __without_prompts(tuning: str) -> dict:
    return {'model.backbone.tuning': tuning, 'model.backbone.prompts': None, 'model.guidance': None}


def __unguided(tuning: str, **prompts: bool) -> dict:
    options = {f'model.backbone.prompts.{name}': value for name, value in prompts.items()}
    return {'model.backbone.tuning': tuning, 'model.guidance': None, **options}


def __guided(tuning: str, pairing: tuple[str, str], weight: float, gate: bool) -> dict:
    return {
        'model.backbone.tuning': tuning,
        'model.backbone.prompts.init': 'prototype',
        'model.backbone.prompts.gate': gate,
        'model.guidance.sample_space': pairing[0],
        'model.guidance.prompt_space': pairing[1],
        'model.guidance.weight_patch': weight,
        'model.guidance.weight_proto': weight,
        'model.guidance.center_prototypes': True,
    }


methods = {
    'VPT-Deep': __unguided('vpt_deep'),
    'VPT-Deep, prototype init': __guided('davpt', __paper, 0.0, gate=False),
    'VPT-Deep, gates': __unguided('vpt_deep', gate=True),
    'VPT-Deep, prototype init, gates': __guided('davpt', __paper, 0.0, gate=True),
    'DA-VPT, attn_out - query, 0.005, no gates': __guided('davpt', __paper, 0.005, gate=False),
    'DA-VPT+, attn_out - query, 0.005, no gates': __guided('davpt_plus', __paper, 0.005, gate=False),
    'DA-VPT, attn_out - query, 0.005': __guided('davpt', __paper, 0.005, gate=True),
    'DA-VPT+, attn_out - query, 0.005': __guided('davpt_plus', __paper, 0.005, gate=True),
    'DA-VPT, attn_out - query, 0.05': __guided('davpt', __paper, 0.05, gate=True),
    'DA-VPT': __guided('davpt', __scores, 0.05, gate=True),
    'DA-VPT+': __guided('davpt_plus', __scores, 0.05, gate=True),
    'DA-VPT, all biases': __guided('vpt_bias', __scores, 0.05, gate=True),
    'full': {**__without_prompts('full'), __lr_mult: 2e-5 / __head},
    'LoRA q,v': __without_prompts('lora'),
    'bias': __without_prompts('bias'),
    'VPT + bias': __unguided('vpt_bias'),
    'head only': __without_prompts('frozen'),
    'AdaptFormer': __without_prompts('adaptformer'),
    'LoRA qkv+proj': {**__without_prompts('lora_all'), __lr_mult: 5e-4 / __head},
    # At VPT-Deep's rate, because their rates were not searched.
    'VPT-Shallow': __unguided('vpt_shallow'),
    **{f'VPT-Deep, {num} prompts': {**__unguided('vpt_deep'), __num: num} for num in (10, 50, 100)},
}
seeds = (0, 1, 2)
baseline = 'VPT-Deep'
# Stored rows have the method's name. In tables DA-VPT is the paper's method, gated DA-VPT the recipe of this project.
titles = {
    'DA-VPT, attn_out - query, 0.005, no gates': 'DA-VPT, prototype init, centered, 0.005',
    'DA-VPT+, attn_out - query, 0.005, no gates': 'DA-VPT+, prototype init, centered, 0.005',
    'DA-VPT, attn_out - query, 0.005': 'gated DA-VPT, attn_out - query, 0.005',
    'DA-VPT+, attn_out - query, 0.005': 'gated DA-VPT+, attn_out - query, 0.005',
    'DA-VPT, attn_out - query, 0.05': 'gated DA-VPT, attn_out - query, 0.05',
    'DA-VPT': 'gated DA-VPT',
    'DA-VPT+': 'gated DA-VPT+',
    'DA-VPT, all biases': 'gated DA-VPT, all biases',
}
