# Residual DA-VPT on generated scenes, with a pretrained frozen ViT-S/14. `make train` runs it. The settings are those
# that tools/init_project.py chooses for such images on two CPU cores.
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-s14.py',
    './_base_/datasets/miniscenes.py',
    './_base_/schedules/adamw_cpu_amp.py',
    './_base_/default_runtime.py',
]
# Mean 1, proportional to 1 / sqrt(share of the class in the training pixels): from 0.64 (wall) to 7.61 (lamp).
class_weight = [0.73, 3.3, 1.11, 1.08, 0.7, 1.59, 2.97, 3.38, 5.59, 6.51, 0.64, 0.92, 2.47, 2.82, 2.65, 7.61]
model = dict(
    data_preprocessor=dict(size=(224, 224)),
    guidance=dict(num_classes=16),
    decode_head=dict(num_classes=16, loss_decode=dict(class_weight=class_weight)),
)
train_cfg = dict(max_iters=500, val_interval=250)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=25),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=25, by_epoch=False),  # to the end of the training
]
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=1))
custom_hooks = [
    dict(hook, num_batches=50) if hook.type == 'PromptAssignmentHook' else hook for hook in _base_.custom_hooks
]
