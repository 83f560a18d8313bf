# Whom the last block's patches attend to, before and after training, under each pairing: on the selection slice.
config = 'configs/davpt_linear_camvid.py'
__head, __rate = 1.6e-2, 2e-3
common = {
    'optim_wrapper.optimizer.lr': __head,
    'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': __rate / __head,
    'model.backbone.prompts.gate': False,
    'custom_hooks': [
        dict(type='StepSeedHook'),
        dict(type='ParamReportHook'),
        dict(type='PromptAssignmentHook', num_batches=40),
        dict(type='AttentionMassHook'),
        dict(type='EMAHook', momentum=0.01),
    ],
}


def __guided(sample: str, prompt: str, proto: str, init: str, weight: float, centre: bool) -> dict:
    return {
        'model.backbone.prompts.init': init,
        'model.guidance.sample_space': sample,
        'model.guidance.prompt_space': prompt,
        'model.guidance.proto_space': proto,
        'model.guidance.weight_patch': weight,
        'model.guidance.weight_proto': weight,
        'model.guidance.centre': centre,
    }


__paper, __scores = ('attn_out', 'query', 'query'), ('query', 'key', 'query')
__random, __ours = ('xavier', 0.05, False), ('prototype', 0.005, True)
methods = {
    'VPT-Deep': {
        'model.guidance': None,
        'model.backbone.tuning': 'vpt_deep',
        'model.backbone.prompts.init': 'xavier',
    },
    'random init, attn_out - query': __guided(*__paper, *__random),
    'random init, query - key': __guided(*__scores, *__random),
    'prototype init': __guided(*__paper, 'prototype', 0.0, False),
    'recipe, attn_out - query': __guided(*__paper, *__ours),
    'recipe, query - key': __guided(*__scores, *__ours),
    'recipe, token - token': __guided('token', 'token', 'token', *__ours),
    'recipe, key - key': __guided('key', 'key', 'key', *__ours),
}
seeds = (0,)
baseline = 'VPT-Deep'
select = True
