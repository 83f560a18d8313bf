# VPT-Deep: prompts without gates and without guidance.
_base_ = './davpt_upernet_ade20k.py'
model = dict(backbone=dict(tuning='vpt_deep'), guidance=None)
