"""Guidance bound to the stock EncoderDecoder."""

import copy

import oracles
import pytest
import torch
from conftest import DEPTH, batch, segmentor_cfg
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS

from mmseg_davpt import class_prototypes, patch_class_fractions

C = 5


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(segmentor_cfg(C, **options)).train()


def assigned(model, classes=C):
    for part in model.guidance.assignments:
        part.assignment[:classes] = torch.arange(classes) % len(part.centroids)
    return model


def total(losses):
    return sum(value for name, value in losses.items() if 'loss' in name)


def step(model, data, lr=1e-2):
    """One training step from a fixed random state; returns the state after it."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = model(*data, mode='loss')
    total(losses).backward()
    optimizer.step()
    return losses, {name: value for name, value in model.state_dict().items() if not name.startswith('guidance')}


@pytest.mark.parametrize('guidance', [dict(type='MetricGuidance', weight_patch=0, weight_proto=0), False])
def test_weight_zero_is_vpt_deep_bit_for_bit(guidance):
    data = batch(C)
    reference = MODELS.build(
        dict({k: v for k, v in segmentor_cfg(C).items() if k != 'guidance'}, type='EncoderDecoder')
    )
    model = build(guidance=guidance)
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('guidance')})
    losses, state = step(model, data)
    expected_losses, expected = step(reference.train(), data)
    assert losses.keys() == expected_losses.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize('centre', [False, True])
def test_losses_are_the_formula(centre):
    """Both terms against the loop over the formula, on tokens tapped from the model; one class is absent."""

    def centred(rows):
        mean = torch.stack([z for z, _ in rows]).mean(dim=0)
        return [(z - mean if centre else z, c) for z, c in rows]

    model = assigned(build(guidance=dict(type='MetricGuidance', center_prototypes=centre))).double()
    for parameter in model.backbone.trunk.parameters():  # biases too: projected, an absent class is not zero
        parameter.data.normal_(std=0.3)
    x, samples = batch(C)
    for sample in samples:
        sample.gt_sem_seg.data[sample.gt_sem_seg.data == 2] = 255
    with model.backbone.record((DEPTH - 1,)) as activations:
        model.backbone(x.double())
    tap, part = activations[DEPTH - 1], model.guidance.assignments[0]
    gt = torch.stack([sample.gt_sem_seg.data for sample in samples])
    fractions = torch.from_numpy(oracles.class_fractions(gt[:, 0], (16, 16), C))
    losses = model.guidance(activations, fractions.float())
    prompts = tap.project(tap.prompts, 'query').detach()
    rows = [(z, c) for image in oracles.prototypes(tap.attn_out.detach(), fractions) for c, z in enumerate(image)]
    rows = centred([(torch.from_numpy(z), c) for z, c in rows if z is not None])
    expected = oracles.proxy_anchor(
        torch.stack([z for z, _ in rows]), torch.tensor([c for _, c in rows]), prompts, part.assignment
    )
    assert losses['loss_guide_patch'].item() == pytest.approx(0.05 * expected, rel=1e-5)
    queries = tap.project(tap.tokens, 'query').flatten(0, 1)[None].detach()  # every token projected, then averaged
    rows = [
        (torch.from_numpy(z), c)
        for c, z in enumerate(oracles.prototypes(queries, fractions.flatten(0, 1)[None])[0])
        if z is not None
    ]
    rows = centred(rows)
    expected = oracles.proxy_anchor(
        torch.stack([z for z, _ in rows]), torch.tensor([c for _, c in rows]), prompts, part.assignment
    )
    assert losses['loss_guide_proto'].item() == pytest.approx(0.05 * expected, rel=1e-5)


@pytest.mark.parametrize('sample_space', ['attn_out', 'query', 'key', 'token'])
@pytest.mark.parametrize('prompt_space', ['query', 'key', 'token'])
def test_every_pairing_trains_the_prompts(sample_space, prompt_space):
    guidance = dict(
        type='MetricGuidance', sample_space=sample_space, proto_space=sample_space, prompt_space=prompt_space
    )
    model = assigned(build(guidance=guidance))
    losses = model(*batch(C), mode='loss')
    (losses['loss_guide_patch'] + losses['loss_guide_proto']).backward()
    assert model.backbone.prompts.tokens[str(DEPTH - 1)].grad.abs().max() > 0
    assert all(p.grad is None for p in model.backbone.trunk.parameters())


def test_blocks_are_averaged_and_weights_scale():
    data = batch(C)
    parts = [assigned(build(guidance=dict(type='MetricGuidance', blocks=(b,)))) for b in (2, 5)]
    both = assigned(build(guidance=dict(type='MetricGuidance', blocks=(5, 2), weight_patch=0.5)))
    torch.manual_seed(1)
    alone = [model(*data, mode='loss') for model in parts]
    joint = both(*data, mode='loss')
    mean = torch.stack([losses['loss_guide_patch'] for losses in alone]).mean()
    torch.testing.assert_close(joint['loss_guide_patch'], mean * 10)
    mean = torch.stack([losses['loss_guide_proto'] for losses in alone]).mean()
    torch.testing.assert_close(joint['loss_guide_proto'], mean)


def test_a_term_without_weight_is_left_out():
    losses = assigned(build(guidance=dict(type='MetricGuidance', weight_proto=0)))(*batch(C), mode='loss')
    assert 'loss_guide_patch' in losses
    assert 'loss_guide_proto' not in losses


@pytest.mark.parametrize('case', ['all ignored', 'one class', 'unassigned'])
def test_poor_batches_give_finite_losses_and_gradients(case):
    model = build()
    if case != 'unassigned':
        assigned(model)
    x, samples = batch(C)
    for sample in samples:
        sample.gt_sem_seg.data = torch.full_like(sample.gt_sem_seg.data, 255 if case == 'all ignored' else 2)
    losses = model(x, samples, mode='loss')
    total(losses).backward()
    assert total(losses).isfinite()
    if case != 'one class':
        assert losses['loss_guide_patch'].item() == losses['loss_guide_proto'].item() == 0.0
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_guidance_is_float32_under_autocast():
    model = assigned(build())
    data = batch(C)
    torch.manual_seed(1)
    exact = model(*data, mode='loss')
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16):
        low = model(*data, mode='loss')
    for name in ('loss_guide_patch', 'loss_guide_proto'):
        assert low[name].dtype == torch.float32
        assert low[name].item() == pytest.approx(exact[name].item(), rel=0.05)


def test_nothing_is_kept_without_guidance():
    """No tap outside of training with guidance on."""
    model = assigned(build())
    calls = []
    for attention in model.backbone._attentions.values():
        attention._tap = lambda *a: calls.append(a)
    x, samples = batch(C)
    model.eval()
    model(x, samples, mode='predict')
    assert not calls
    model.train().guidance.weight_patch = model.guidance.weight_proto = 0
    model(x, samples, mode='loss')
    assert not calls


def test_class_means_are_collected_while_training():
    model = assigned(build())
    x, samples = batch(C)
    with torch.no_grad(), model.backbone.record((DEPTH - 1,)) as activations:
        model.backbone(x)
    model(x, samples, mode='loss')
    fractions = patch_class_fractions(torch.stack([s.gt_sem_seg.data for s in samples]), 16, C)
    pooled, present = class_prototypes(
        activations[DEPTH - 1].attn_out.flatten(0, 1)[None], fractions.flatten(0, 1)[None]
    )
    part = model.guidance.assignments[0]
    torch.testing.assert_close(part.class_means[present[0]], pooled[0][present[0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.weights, fractions.sum((0, 1)))


def test_warm_up_looks_at_the_trunk_alone():
    model = build()
    data = batch(C)
    model.eval().collect_prototypes(*data)
    first = model.guidance.assignments[0].class_means.clone()
    assert first.any()
    other = build()
    with torch.no_grad():
        for tokens in other.backbone.prompts.tokens.values():
            tokens.normal_()
    other.eval().collect_prototypes(*data)
    assert torch.equal(first, other.guidance.assignments[0].class_means)


def test_construction_needs_neither_data_nor_weights():
    model = MODELS.build(segmentor_cfg(C, pretrained='not/there.pth', allow_random=False))
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        assert twin(batch(C)[0], mode='tensor').shape == (2, C, 4, 4)


@pytest.mark.parametrize('head', ['EncoderDecoder'])
def test_stock_segmentor_takes_the_backbone(head):
    cfg = {k: v for k, v in segmentor_cfg(C).items() if k != 'guidance'} | dict(type=head)
    total(MODELS.build(cfg).train()(*batch(C), mode='loss')).backward()


@pytest.mark.parametrize(
    ('guidance', 'options', 'message'),
    [
        (dict(sample_space='values'), {}, 'sample_space'),
        (dict(prompt_space='attn_out'), {}, 'prompt_space'),
        (dict(proto_space='values'), {}, 'proto_space'),
        (dict(weight_patch=-1), {}, 'weights'),
        (dict(blocks=()), {}, 'empty'),
        (dict(blocks=(6,)), {}, r'guidance\.blocks'),
        (dict(blocks=(2,)), dict(prompts=dict(num=2, blocks=(5,))), r'prompted \(deep\) are \[5\]'),
        ({}, dict(tuning='vpt_shallow'), 'are none'),
        ({}, dict(tuning='frozen'), 'are none'),
        (dict(num_classes=7), {}, 'num_classes=7'),
    ],
)
def test_bad_guidance_is_named(guidance, options, message):
    with pytest.raises(ValueError, match=message):
        build(guidance=dict(type='MetricGuidance', **guidance), **options)


def test_guidance_needs_a_prompted_backbone():
    cfg = segmentor_cfg(C)
    cfg['backbone'] = dict(type='ResNetV1c', depth=18)
    with pytest.raises(TypeError, match='ResNetV1c'):
        MODELS.build(cfg)


def test_missing_hook_is_said_once(monkeypatch):
    said = []
    monkeypatch.setattr('mmseg_davpt.guidance.guidance.print_log', lambda message, *_: said.append(message))
    model, data = build(), batch(C)
    model(*data, mode='loss')
    model(*data, mode='loss')
    assert len(said) == 1
    assert 'PromptAssignmentHook' in said[0]
    assigned(build())(*data, mode='loss')
    assert len(said) == 1


@pytest.mark.parametrize(
    ('arch', 'changes', 'names'),
    [
        ('test_vit', {}, None),
        ('vit_tiny_patch16_224', {}, None),  # 127.5, as here
        ('deit_tiny_patch16_224', {}, ['127.5', '123.675', '58.395']),
        ('deit_tiny_patch16_224', dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]), None),
        ('test_vit', dict(bgr_to_rgb=False), ['bgr_to_rgb=False', '127.5']),
        ('test_vit', dict(mean=None, std=None), ['mean=None', '127.5']),
    ],
)
def test_other_statistics_than_the_weights_are_named(monkeypatch, arch, changes, names):
    said = []
    monkeypatch.setattr('mmseg_davpt.models.segmentor.print_log', lambda message, **_: said.append(message))
    cfg = segmentor_cfg(C, arch=arch)
    cfg.decode_head.in_channels = 64 if arch == 'test_vit' else 192
    cfg.data_preprocessor.update(changes)
    MODELS.build(cfg)
    assert (said == []) if names is None else all(name in said[0] for name in [arch, *names])


@pytest.mark.parametrize('slide_batch', [None, 1, 3, 100])
@pytest.mark.parametrize('size', [(64, 64), (70, 113), (40, 130), (150, 64)])
@pytest.mark.parametrize('images', [1, 2])
def test_sliding_windows_equal_mmseg_s(slide_batch, size, images):
    """mmseg's own sequential result; windows overlap, the last one is moved back, a small image is one window."""
    cfg = segmentor_cfg(C)
    cfg.test_cfg = dict(mode='slide', crop_size=(64, 48), stride=(40, 31))
    if slide_batch is not None:
        cfg.test_cfg.slide_batch = slide_batch
    model = MODELS.build(cfg).double().eval()
    x, samples = batch(C, size, images)
    with torch.no_grad():
        found = model.slide_inference(x.double(), [sample.metainfo for sample in samples])
        expected = EncoderDecoder.slide_inference(model, x.double(), [dict(sample.metainfo) for sample in samples])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_slide_batch_bounds_the_windows_at_a_time():
    cfg = segmentor_cfg(C)
    cfg.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(32, 32), slide_batch=4)
    model, seen = MODELS.build(cfg).eval(), []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    x, samples = batch(C, (96, 96), 1)
    with torch.no_grad():
        model.predict(x, samples)
    assert seen == [4, 4, 1]
