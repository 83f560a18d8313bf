# VPT-Deep: the same prompts without guidance.
_base_ = './davpt_vit-l16_setr-pup_160k_ade20k-512x512.py'
model = dict(backbone=dict(tuning='vpt_deep'), guidance=None)
