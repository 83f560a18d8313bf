"""Small task files, and the trunk that they belong to."""

import timm
import torch
from conftest import segmentor_cfg, spread
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from safetensors.torch import save_file

from mmseg_davpt.tasks import TaskFileError, describe_task, read_task, task_backbone, task_state, write_task

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def save_trunk(path, seed=0, arch='test_vit'):
    """Write a trunk with random weights as a file of timm."""
    torch.manual_seed(seed)
    trunk = timm.create_model(arch, num_classes=0)
    spread(trunk)
    save_file(trunk.state_dict(), path)
    return path


def task_cfg(trunk, num_classes=5, guidance=False, test_cfg=None, **backbone):
    """Config of a segmentor on a trunk file."""
    model = segmentor_cfg(num_classes, guidance, pretrained=str(trunk), allow_random=False, **backbone)
    model.test_cfg = test_cfg or dict(mode='whole')
    return Config(dict(model=model, test_pipeline=PIPELINE))


def make_task(path, trunk, seed=0, num_classes=5, **options):
    """Write a task file of an untrained model with random values; returns its config and the model."""
    cfg = task_cfg(trunk, num_classes, **options)
    init_default_scope('mmseg')  # fixtures of a module run before those of a test
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    spread(model.backbone.tuned)
    with torch.no_grad():
        for parameter in model.backbone.trunk.parameters():
            if parameter.requires_grad:  # trained in place
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for buffer in model.decode_head.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
        images = torch.randn(2, 3, 64, 64)
        logits = model.eval().encode_decode(images, [dict(img_shape=(64, 64))] * 2)
        model.decode_head.conv_seg.bias.sub_(logits.mean((0, 2, 3)))  # no class wins everywhere
    write_task(path, describe(cfg, model), state_of(model))
    return cfg, model


def describe(cfg, model, **meta):
    number = cfg.model.decode_head.num_classes
    meta = (
        dict(classes=[f'class {index}' for index in range(number)], palette=[[index] * 3 for index in range(number)])
        | meta
    )
    return describe_task(cfg, meta, model, model.backbone.fingerprint())


def state_of(model):
    return task_state(task_backbone(model), model.state_dict(), model.backbone.fingerprint())


def outcome(path, original):
    """'refused', or 'same' if the damage changed nothing that is read."""
    try:
        info, tensors = read_task(path)
    except TaskFileError as error:
        assert str(path) in str(error)
        return 'refused'
    assert info == original[0]
    assert tensors.keys() == original[1].keys()
    assert all(torch.equal(tensors[name], original[1][name]) for name in tensors)
    return 'same'


def damage(path, source, positions, seed=0):
    """Outcomes of one changed bit at each position."""
    data, original = source.read_bytes(), read_task(source)
    draw = torch.Generator().manual_seed(seed)
    counts = dict(refused=0, same=0)
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= 1 << int(torch.randint(8, (1,), generator=draw))
        path.write_bytes(changed)
        counts[outcome(path, original)] += 1
    return counts
