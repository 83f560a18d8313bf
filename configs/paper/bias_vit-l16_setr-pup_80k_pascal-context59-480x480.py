# All biases of the trunk are trainable (BitFit).
_base_ = './davpt_vit-l16_setr-pup_80k_pascal-context59-480x480.py'
model = dict(backbone=dict(tuning='bias', prompts=None), guidance=None)
