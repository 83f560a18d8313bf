# Residual DA-VPT for ADE20K: frozen ViT-B/16, guided prompts, UPerNet. Start here: most configs change this one.
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-b16.py',  # trunk, prompts, guidance, heads
    './_base_/datasets/ade20k.py',  # files, pipelines, loaders, metric
    './_base_/schedules/adamw_160k.py',  # learning rates, iterations, checkpoints
    './_base_/default_runtime.py',  # hooks, seed, log
]
# Trainable: per block 20 prompts and their 20 values, and the heads. Patches attend to the prompts with the frozen
# queries of their block. The attention weights select values, which are added to the residual stream and start at zero.
# Before training, the prompts are set to prototypes of the classes in their block. PromptAssignmentHook
# (default_runtime.py) assigns each class to a prompt of the last block by clustering. The metric loss pulls the queries
# of a class's pixels to the key of its prompt and pushes those of other classes away.
#
# Residual values, prototype start, query-key pairing and centering are additions of this project, chosen on CamVid
# (docs/results.md). The paper's settings are in configs/paper.
#
# A config names its bases and the values that it changes. A config with 50 prompts per block would be:
#   _base_ = './davpt_upernet_ade20k.py'
#   model = dict(backbone=dict(prompts=dict(num=50)))
