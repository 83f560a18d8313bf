# All biases of the trunk are trainable (BitFit).
_base_ = './davpt_vit-l16_setr-pup_160k_ade20k-512x512.py'
model = dict(backbone=dict(tuning='bias', prompts=None), guidance=None)
