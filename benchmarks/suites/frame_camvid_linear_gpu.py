# Frame A at full size, for a GPU: crops of 350x476, 8 per iteration, 4000 iterations, whole images, ten seeds.
# In pieces of ten minutes: docs/compare.md.
_base_ = './frame_camvid_linear.py'
__size = (350, 476)  # whole patches of 14; the images are 360x480
common = {
    'optim_wrapper.type': 'AmpOptimWrapper',
    'optim_wrapper.dtype': 'bfloat16',
    'test_cfg.fp16': True,
    'train_dataloader.batch_size': 8,
    'train_dataloader.num_workers': 8,
    'train_dataloader.persistent_workers': True,
    'train_dataloader.dataset.pipeline.4.crop_size': __size,
    'model.data_preprocessor.size': __size,
    'model.test_cfg.mode': 'whole',
    'train_cfg.max_iters': 4000,
    'param_scheduler.0.end': 200,
    'param_scheduler.1.begin': 200,
    'param_scheduler.1.end': 4000,
    'default_hooks.checkpoint.interval': 500,
}
seeds = tuple(range(10))
