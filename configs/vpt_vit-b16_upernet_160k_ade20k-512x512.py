# VPT-Deep: the same prompts without guidance.
_base_ = './davpt_upernet_ade20k.py'
model = dict(backbone=dict(tuning='vpt_deep', prompts=dict(init='xavier', gate=False)), guidance=None)
