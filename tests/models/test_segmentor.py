"""Guidance in the stock EncoderDecoder."""

import copy

import oracles
import pytest
import torch
from conftest import DEPTH, batch, segmentor_cfg
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS

from mmseg_davpt import WeightsError, class_prototypes, patch_class_fractions
from mmseg_davpt.models import PromptedViT
from mmseg_davpt.models.prototype_init import PrototypeInit

C = 5


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(segmentor_cfg(C, **options)).train()


def assigned(model, classes=C):
    for item in model.guidance.assignments:
        item.assignment[:classes] = torch.arange(classes) % len(item.centroids)
    return model


def kept(model):
    """Copies of all buffers and parameters, to compare with later."""
    return {name: value.clone() for name, value in model.state_dict().items()}


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
    tuning = 'davpt' if guidance else 'vpt_deep'
    model = build(guidance=guidance, tuning=tuning, prompts=dict(num=3))
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('guidance')})
    losses, state = step(model, data)
    expected_losses, expected = step(reference.train(), data)
    assert losses.keys() == expected_losses.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize('center', [False, True])
def test_losses_are_the_formula(center):
    """Both terms against the loop over the formula, on tokens recorded from the model; one class is absent."""

    def centered(rows):
        mean = torch.stack([z for z, _ in rows]).mean(dim=0)
        return [(z - mean if center else z, c) for z, c in rows]

    model = assigned(build(guidance=dict(type='MetricGuidance', center_prototypes=center))).double()
    for parameter in model.backbone.trunk.parameters():  # biases too: projected, an absent class is not zero
        parameter.data.normal_(std=0.3)
    x, samples = batch(C)
    for sample in samples:
        sample.gt_sem_seg.data[sample.gt_sem_seg.data == 2] = 255
    with model.backbone.record((DEPTH - 1,)) as activations:
        model.backbone(x.double())
    recorded, item = activations[DEPTH - 1], model.guidance.assignments[0]
    gt = torch.stack([sample.gt_sem_seg.data for sample in samples])
    fractions = torch.from_numpy(oracles.class_fractions(gt[:, 0], (16, 16), C))
    losses = model.guidance(activations, fractions.float())
    prompts = recorded.project(recorded.prompts, 'query').detach()
    rows = [(z, c) for image in oracles.prototypes(recorded.attn_out.detach(), fractions) for c, z in enumerate(image)]
    rows = centered([(torch.from_numpy(z), c) for z, c in rows if z is not None])
    expected = oracles.proxy_anchor(
        torch.stack([z for z, _ in rows]), torch.tensor([c for _, c in rows]), prompts, item.assignment
    )
    assert losses['loss_guide_patch'].item() == pytest.approx(0.05 * expected, rel=1e-5)
    queries = (
        recorded.project(recorded.tokens, 'query').flatten(0, 1)[None].detach()
    )  # every token projected, then averaged
    rows = [
        (torch.from_numpy(z), c)
        for c, z in enumerate(oracles.prototypes(queries, fractions.flatten(0, 1)[None])[0])
        if z is not None
    ]
    rows = centered(rows)
    expected = oracles.proxy_anchor(
        torch.stack([z for z, _ in rows]), torch.tensor([c for _, c in rows]), prompts, item.assignment
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
    models = [assigned(build(guidance=dict(type='MetricGuidance', blocks=(b,)))) for b in (2, 5)]
    both = assigned(build(guidance=dict(type='MetricGuidance', blocks=(5, 2), weight_patch=0.5)))
    torch.manual_seed(1)
    alone = [model(*data, mode='loss') for model in models]
    joint = both(*data, mode='loss')
    mean = torch.stack([losses['loss_guide_patch'] for losses in alone]).mean()
    torch.testing.assert_close(joint['loss_guide_patch'], mean * 10)
    mean = torch.stack([losses['loss_guide_proto'] for losses in alone]).mean()
    torch.testing.assert_close(joint['loss_guide_proto'], mean)


def test_a_term_without_weight_is_left_out():
    losses = assigned(build(guidance=dict(type='MetricGuidance', weight_proto=0)))(*batch(C), mode='loss')
    assert 'loss_guide_patch' in losses
    assert 'loss_guide_proto' not in losses


@pytest.mark.parametrize('case', ['all ignored', 'one class', 'class without a prompt'])
def test_poor_batches_give_finite_losses_and_gradients(case):
    model = assigned(build())
    if case == 'class without a prompt':
        model.guidance.assignments[0].assignment[2] = -1
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


def test_nothing_is_recorded_without_guidance(monkeypatch):
    """Neither in inference nor with both weights zero."""
    model = assigned(build())
    calls = []
    monkeypatch.setattr('mmseg_davpt.tuning.attention.BlockActivations', lambda *args: calls.append(args))
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
    item = model.guidance.assignments[0]
    torch.testing.assert_close(item.class_means[present[0]], pooled[0][present[0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(item.weights, fractions.sum((0, 1)))


def test_losses_in_eval_mode_collect_nothing():
    model = assigned(build()).eval()
    before = kept(model.guidance)
    losses = model(*batch(C), mode='loss')
    assert losses['loss_guide_patch'] > 0
    for name, value in model.guidance.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_step_that_overflows_leaves_no_trace():
    """As in float16: a forward gives inf, GradScaler skips the step; later steps and refreshes work."""
    model, data = assigned(build()), batch(C)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)

    def training_step():
        optimizer.zero_grad()
        scaler.scale(total(model(*data, mode='loss'))).backward()
        scaler.step(optimizer)
        scaler.update()

    training_step()
    before = {name: value for name, value in kept(model).items() if not name.startswith('decode_head.')}  # batch norm

    def overflow(_, args):
        return torch.full_like(args[0], float('inf')), *args[1:]

    handle = model.backbone.trunk.blocks[DEPTH - 2].register_forward_pre_hook(overflow)
    training_step()
    handle.remove()
    assert scaler.get_scale() == 2.0  # skipped
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
    item = model.guidance.assignments[0]
    assert item.skipped.item() == 1
    item.refresh(seed=0)
    assert (item.assignment >= 0).all()
    assert total(model(*data, mode='loss')).isfinite()


def test_pure_bfloat16_model_trains():
    """``model.bfloat16()`` instead of autocast: losses near those of float32, gradients for all prompts."""
    model, (x, samples) = assigned(build()), batch(C)
    torch.manual_seed(1)
    exact = model(x, samples, mode='loss')
    torch.manual_seed(1)
    losses = model.bfloat16()(x.bfloat16(), samples, mode='loss')
    for name in ('loss_guide_patch', 'loss_guide_proto'):
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.05)
    total(losses).backward()
    for tokens in model.backbone.prompts.tokens.values():
        assert tokens.grad.isfinite().all()
        assert tokens.grad.any()
    assert model.guidance.assignments[0].sums.dtype == torch.float32


@pytest.mark.parametrize('ignore_index', [7, 255])
def test_labels_that_the_head_ignores_have_no_fraction(ignore_index):
    """7 is within the range of the classes: only the head's option tells that it is no class."""
    cfg = segmentor_cfg(8)
    cfg.decode_head.ignore_index = ignore_index
    model, (_, samples) = MODELS.build(cfg), batch(8, ignore=0)
    gt = torch.stack([sample.gt_sem_seg.data for sample in samples])
    assert (gt == 7).any()
    expected = oracles.class_fractions(gt[:, 0], (16, 16), 8)
    if ignore_index == 7:
        expected[..., 7] = 0
    torch.testing.assert_close(model.class_fractions(samples), torch.from_numpy(expected).float())


def test_warm_up_uses_the_trunk_alone():
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


class TestPrototypeInit:
    """Guided block: the last one, where classes (0, 3), (1, 4) and 2 share prompts 0, 1 and 2."""

    def build(self):
        return assigned(build(prompts=dict(num=3, init='prototype'))).eval()

    def test_guided_prompts_are_the_means_of_their_classes(self):
        model, (x, samples) = self.build(), batch(C)
        fractions = oracles.class_fractions(torch.stack([sample.gt_sem_seg.data[0] for sample in samples]), (16, 16), C)
        inputs = []
        block = model.backbone.trunk.blocks[DEPTH - 1]
        handle = block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        with torch.no_grad(), model.backbone.without_tuning():
            model.backbone(x)
        handle.remove()
        means = oracles.class_means(inputs[0][:, model.backbone.num_prefix_tokens :], fractions)
        init = PrototypeInit(model)
        init.collect(x, samples)
        init.write(seed=0)
        tokens = model.backbone.prompts.tokens[str(DEPTH - 1)].detach()
        for prompt, classes in enumerate([(0, 3), (1, 4), (2,)]):
            expected = torch.from_numpy(sum(means[c] for c in classes) / len(classes)).float()
            torch.testing.assert_close(tokens[prompt], expected, rtol=1e-4, atol=1e-4)

    def test_one_forward_pass_serves_both(self):
        """The class means of the assignment and of the prompts equal those of two separate passes."""
        data, passes = batch(C), []
        joint, separate = self.build(), self.build()
        joint.backbone.register_forward_pre_hook(lambda *_: passes.append(1))
        both, alone = PrototypeInit(joint), PrototypeInit(separate)
        both.collect(*data, blocks=joint.guidance.blocks)
        assert len(passes) == 1
        separate.collect_prototypes(*data)
        alone.collect(*data)
        assert torch.equal(joint.guidance.assignments[0].sums, separate.guidance.assignments[0].sums)
        for index, means in both.means.items():
            assert means.sums.any()
            assert torch.equal(means.sums, alone.means[index].sums)

    def test_needs_guidance(self):
        with pytest.raises(ValueError, match="init='prototype' needs a model with prompts and guidance"):
            PrototypeInit(build(guidance=False, tuning='vpt_deep', prompts=dict(init='prototype')))


def test_construction_needs_neither_data_nor_weights():
    model = MODELS.build(segmentor_cfg(C, pretrained='not/there.pth', allow_random=False))
    twin = copy.deepcopy(model).eval()
    with pytest.raises(WeightsError, match='has random weights'), torch.no_grad():  # but segmenting does
        twin(batch(C)[0], mode='tensor')


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
        (dict(weight_patch=-1), {}, 'weight_patch'),
        (dict(blocks=()), {}, 'empty'),
        (dict(blocks=(6,)), {}, r'guidance\.blocks'),
        (dict(blocks=(2,)), dict(prompts=dict(num=2, blocks=(5,))), r'deep prompts are \[5\]'),
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


def test_missing_hook_is_an_error_in_the_first_step():
    with pytest.raises(RuntimeError, match="dict\\(type='PromptAssignmentHook'\\) to custom_hooks"):
        build()(*batch(C), mode='loss')


@pytest.mark.parametrize('guidance', [False, dict(type='MetricGuidance', weight_patch=0, weight_proto=0), True])
def test_guided_tuning_needs_guidance(monkeypatch, guidance):
    """Without it, the run would be plain VPT under the name of a guided method."""
    monkeypatch.setattr(PromptedViT, 'expects_guidance', True, raising=False)
    if guidance:  # weights of 0 count: the name is there
        build(guidance=guidance)
        return
    with pytest.raises(ValueError, match=r"tuning='davpt' is a guided method: add guidance=.*tuning='vpt_deep'"):
        build(guidance=False, tuning='davpt')


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
    messages = []
    monkeypatch.setattr('mmseg_davpt.models.segmentor.print_log', lambda message, **_: messages.append(message))
    cfg = segmentor_cfg(C, arch=arch)
    cfg.decode_head.in_channels = 64 if arch == 'test_vit' else 192
    cfg.data_preprocessor.update(changes)
    MODELS.build(cfg)
    assert (messages == []) if names is None else all(name in messages[0] for name in [arch, *names])


@pytest.mark.parametrize('slide_batch', [None, 1, 3, 100])
@pytest.mark.parametrize('size', [(64, 64), (70, 113), (40, 130), (150, 64)])
@pytest.mark.parametrize('images', [1, 2])
def test_sliding_windows_equal_mmseg_s(slide_batch, size, images):
    """As mmseg's sequential code; windows overlap, the last one is moved back, a small image is one window."""
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


@pytest.mark.parametrize(('crop_size', 'stride'), [((32, 32), (48, 32)), ((32, 32), (32, 33))])
def test_windows_that_leave_gaps_are_refused(crop_size, stride):
    """mmseg would average over no window: nan."""
    cfg = segmentor_cfg(C)
    cfg.test_cfg = dict(mode='slide', crop_size=crop_size, stride=stride)
    with pytest.raises(ValueError, match=r'test_cfg\.stride=.*test_cfg\.crop_size=\(32, 32\)'):
        MODELS.build(cfg)
    cfg.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(64, 64))
    model = MODELS.build(cfg).eval()
    model.test_cfg.update(crop_size=crop_size, stride=stride)  # after construction
    x, samples = batch(C, (96, 96), 1)
    with pytest.raises(ValueError, match=r'test_cfg\.stride='), torch.no_grad():
        model.predict(x, samples)


def test_windows_need_a_size():
    cfg = segmentor_cfg(C)
    cfg.test_cfg = dict(mode='slide', stride=(32, 32))
    with pytest.raises(ValueError, match=r'test_cfg\.crop_size'):
        MODELS.build(cfg)
