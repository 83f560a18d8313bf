# Frame A of docs/results.md: CamVid (11 classes), linear head. The other frames take its methods. Rates were chosen on
# the selection slice of this frame (camvid_search_lr.py, camvid_search_residual.py). In bfloat16: a CPU needs AVX-512.
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head = 1.6e-2
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
common = {
    'optim_wrapper.optimizer.lr': __head,
    __lr_mult: 2e-3 / __head,
}
__num = 'model.backbone.prompts.num'


def __unguided(tuning: object, num: int = 20) -> dict:
    return {'model.backbone.tuning': tuning, 'model.guidance': None, __num: num}


def __without_prompts(tuning: str) -> dict:
    return {'model.backbone.tuning': tuning, 'model.backbone.prompts': None, 'model.guidance': None}


methods = {
    'head only': __without_prompts('frozen'),
    'VPT-Deep': __unguided('vpt_deep'),
    'gated DA-VPT': {'model.backbone.tuning': 'davpt_gated'},
    'residual prompts': __unguided('vpt_residual'),
    'residual DA-VPT': {},
    'residual DA-VPT, a prompt per class': {__num: [20] * 11 + [11]},  # in the guided block
    'residual prompts + LoRA': __unguided(dict(_delete_=True, residual_prompts={}, lora=dict(rank=6)), num=10),
    'residual DA-VPT + LoRA': {
        'model.backbone.tuning': dict(_delete_=True, residual_prompts=dict(init='prototype'), lora=dict(rank=6)),
        __num: 10,
    },
    'bias': __without_prompts('bias'),
    'LoRA q,v': __without_prompts('lora'),
    'LoRA q,v, guided': {  # by prompts that do not act
        'custom_imports.imports': ['mmseg_davpt', 'benchmarks.trials.residual_values'],
        'model.backbone.tuning': dict(_delete_=True, residual_variant=dict(where='nowhere'), lora={}),
        'model.backbone.prompts.blocks': (-1,),
    },
    'AdaptFormer': __without_prompts('adaptformer'),
    'DoRA q,v': __without_prompts('dora'),
    'Convpass': __without_prompts('convpass'),
    'full': {**__without_prompts('full'), __lr_mult: 2e-5 / __head},
}
seeds = (0, 1, 2, 3, 4, 5)
baseline = 'LoRA q,v'
