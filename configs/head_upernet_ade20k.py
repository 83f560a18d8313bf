# The heads alone on the frozen trunk: the floor that every tuning method must beat.
_base_ = './davpt_upernet_ade20k.py'
model = dict(backbone=dict(tuning='frozen'), guidance=None)
