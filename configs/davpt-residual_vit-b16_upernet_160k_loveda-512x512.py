# Residual DA-VPT for LoveDA (aerial): frozen ViT-B/16, guided prompts, UPerNet.
# python tools/prepare_dataset.py loveda
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-b16.py',
    './_base_/datasets/loveda.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    guidance=dict(num_classes=7),
    decode_head=dict(num_classes=7),
    auxiliary_head=dict(num_classes=7),
)
