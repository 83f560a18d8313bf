# A comparison of a few minutes: a tiny random trunk on generated scenes. It shows only that the runner works.
config = 'configs/davpt_upernet_miniscenes.py'
common = {
    'model.data_preprocessor.size': (96, 96),
    'model.backbone.arch': 'test_vit',
    'model.backbone.pretrained': False,
    'model.backbone.allow_random': True,
    'model.backbone.out_indices': (1, 2, 3, 5),
    'model.neck.embed_dim': 64,
    'model.decode_head.in_channels': [64, 64, 64, 64],
    'model.decode_head.channels': 16,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'train_cfg.max_iters': 20,
    'param_scheduler': [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=20, by_epoch=False)],
    'default_hooks.checkpoint.interval': 10,
}
__num = {'model.backbone.prompts.num': 4}
__no_prompts = {'model.backbone.prompts': None, 'model.guidance': None}
methods = {
    'head only': {'model.backbone.tuning': 'frozen', **__no_prompts},
    'VPT-Deep': {'model.backbone.tuning': 'vpt_deep', **__num, 'model.guidance': None},
    'residual DA-VPT': __num,
    'full': {'model.backbone.tuning': 'full', **__no_prompts, 'optim_wrapper.optimizer.lr': 1e-4},
}
seeds = (0, 1)
baseline = 'VPT-Deep'
