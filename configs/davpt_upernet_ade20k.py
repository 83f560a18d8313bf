# DA-VPT (CVPR 2025) for ADE20K: frozen ViT-B/16 + guided prompts + UPerNet.
_base_ = [
    './_base_/models/davpt_upernet_vit-b16.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/default_runtime.py',
]
# What learns: 20 prompts a block and the heads. Prompts start as prototypes of the classes in their block, behind a
# gate that opens while they learn. Those of the last block stand for the classes: each class is assigned to one of them
# by clustering (PromptAssignmentHook in _base_/default_runtime.py), and the metric loss draws the queries of its pixels
# to its prompt's key and those of other classes away. Gate, start, pairing and centring are ours, chosen on CamVid
# (docs/evidence.md); the paper's own are in configs/paper.
model = dict(
    backbone=dict(tuning='davpt', prompts=dict(num=20, init='prototype', gate=True)),
    guidance=dict(
        blocks=(-1,),
        sample_space='query',
        prompt_space='key',
        weight_patch=0.05,
        weight_proto=0.05,
        center_prototypes=True,
    ),
)
