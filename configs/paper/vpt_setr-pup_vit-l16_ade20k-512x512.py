# VPT-Deep: the same prompts, nobody guides them.
_base_ = './davpt_setr-pup_vit-l16_ade20k-512x512.py'
model = dict(backbone=dict(tuning='vpt_deep'), guidance=None)
