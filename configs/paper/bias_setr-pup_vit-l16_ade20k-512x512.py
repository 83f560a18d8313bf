# All biases of the trunk (BitFit).
_base_ = './davpt_setr-pup_vit-l16_ade20k-512x512.py'
model = dict(backbone=dict(tuning='bias'), guidance=None)
