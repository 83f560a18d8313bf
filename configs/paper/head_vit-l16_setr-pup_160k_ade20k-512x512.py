# Only the heads are trainable, on the frozen trunk.
_base_ = './davpt_vit-l16_setr-pup_160k_ade20k-512x512.py'
model = dict(backbone=dict(tuning='frozen', prompts=None), guidance=None)
