# DA-VPT+: the key and value biases are trainable, too.
_base_ = './davpt_vit-l16_setr-pup_160k_ade20k-512x512.py'
model = dict(backbone=dict(tuning='davpt_plus'))
