# VPT-Deep: the same prompts without guidance.
_base_ = './davpt_vit-l16_setr-pup_80k_pascal-context59-480x480.py'
model = dict(backbone=dict(tuning='vpt_deep'), guidance=None)
