# Only the heads are trainable, on the frozen trunk: the baseline of every tuning method.
_base_ = './davpt_upernet_ade20k.py'
model = dict(backbone=dict(tuning='frozen', prompts=None), guidance=None)
