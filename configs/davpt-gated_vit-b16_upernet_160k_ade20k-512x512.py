# Gated DA-VPT: half the parameters; the prompts' values come from the frozen projection, behind a gate.
_base_ = './davpt_upernet_ade20k.py'
model = dict(backbone=dict(tuning='davpt_gated'))
