"""torch.compile and bfloat16 on a whole training step: the same step."""

import pytest
import torch
from conftest import batch, segmentor_cfg
from mmseg.registry import MODELS


def segmentor(**backbone):
    model = MODELS.build(segmentor_cfg(**backbone)).train()
    for part in model.guidance.assignments:
        part.assignment.copy_(torch.arange(len(part.assignment)) % 3)
    return model


def step(model, inputs, data_samples):
    """Losses and gradients."""
    model.zero_grad()
    torch.manual_seed(0)  # dropout of the head
    losses = {name: loss for name, loss in model.loss(inputs, data_samples).items() if 'loss' in name}
    sum(losses.values()).backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


@pytest.mark.parametrize(
    ('tuning', 'gate'),
    [
        ('davpt', False),
        ('davpt', True),
        ('davpt_plus', False),
        ('lora', False),
    ],
)
def test_backbone_compiles_without_a_graph_break(tuning, gate):
    """A guided training step, and inference; ``fullgraph`` fails at the first break."""
    if tuning == 'lora':
        pytest.importorskip('peft')
        tuning = dict(prompts=True, lora=dict(targets=('q', 'v'), rank=2))
    model, data = segmentor(tuning=tuning, prompts=dict(num=3, gate=gate)), batch()
    losses, gradients = step(model, *data)
    with torch.no_grad():
        maps = model.eval().backbone(data[0])
    torch._dynamo.reset()
    model.train().backbone.compile(backend='aot_eager', fullgraph=True)
    compiled_losses, compiled_gradients = step(model, *data)
    torch.testing.assert_close(compiled_losses, losses)
    assert all(loss > 0 for loss in losses.values()) and 'loss_guide_patch' in losses
    torch.testing.assert_close(compiled_gradients, gradients)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().backbone(data[0]), maps)


def test_losses_in_bfloat16_are_within_one_percent():
    model, data = segmentor(), batch()
    losses, _ = step(model, *data)
    with torch.autocast('cpu', torch.bfloat16):
        low, _ = step(model, *data)
    for name, loss in losses.items():
        assert low[name] != loss  # bfloat16 was used
        torch.testing.assert_close(low[name].float(), loss, rtol=1e-2, atol=0)
