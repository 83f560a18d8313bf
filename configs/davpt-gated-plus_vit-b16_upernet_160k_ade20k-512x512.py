# Gated DA-VPT+: the key and value biases of the attention are trainable, too (paper 3.5).
_base_ = './davpt_upernet_ade20k.py'
model = dict(backbone=dict(tuning='davpt_gated_plus'))
