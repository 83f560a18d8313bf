# The paper's protocol on ADE20K; docs/paper.md lists which settings are from the paper.
_base_ = [
    '../_base_/models/davpt_setr-pup_vit-l16.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_160k.py',
    '../_base_/default_runtime.py',
]
