# Residual DA-VPT on street images: frozen ViT-S/14, 11 classes; minutes on two CPU cores.
# python tools/train.py configs/davpt-residual_vit-s14_upernet_300it_camvid-210x280.py --cfg-options data_root=PATH
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-s14.py',
    './_base_/datasets/camvid.py',
    './_base_/schedules/adamw_cpu.py',
    './_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(210, 280)),
    guidance=dict(num_classes=11),
    decode_head=dict(num_classes=11),
)
