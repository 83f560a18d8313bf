# DA-VPT+: also the key and value biases.
_base_ = './davpt_setr-pup_vit-l16_pascal-context59-480x480.py'
model = dict(backbone=dict(tuning='davpt_plus'))
