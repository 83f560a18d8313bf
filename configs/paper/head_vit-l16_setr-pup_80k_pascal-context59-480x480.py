# Only the heads are trainable, on the frozen trunk.
_base_ = './davpt_vit-l16_setr-pup_80k_pascal-context59-480x480.py'
model = dict(backbone=dict(tuning='frozen', prompts=None), guidance=None)
