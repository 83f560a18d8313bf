"""``AttentionMassHook`` on a model that is wrapped for distributed training."""

from types import SimpleNamespace

import torch
from conftest import batch, segmentor_cfg
from mmengine.logging import MessageHub
from mmengine.registry import MODEL_WRAPPERS
from mmseg.registry import MODELS
from torch import nn

from mmseg_davpt.engine import AttentionMassHook
from mmseg_davpt.reports import attention_to_prompts


def test_wrapped_model_is_unwrapped(monkeypatch):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    monkeypatch.setitem(MODEL_WRAPPERS.module_dict, 'Wrapper', Wrapper)
    model = MODELS.build(segmentor_cfg())
    inputs, samples = batch()
    data = [dict(inputs=[((image + 3) * 40).byte() for image in inputs], data_samples=samples)]
    hub = MessageHub('attention')
    runner = SimpleNamespace(model=Wrapper(model), iter=0, val_loop=SimpleNamespace(dataloader=data), message_hub=hub)
    AttentionMassHook().before_train(runner)
    assert 0 < hub.get_info('attention_before')['to_prompts'] < 100


def test_shares_of_attention_are_those_of_the_softmax():
    """Against the written-out softmax of one head after the other."""
    model = MODELS.build(segmentor_cfg()).double().eval()
    block, prompts = model.backbone.trunk.blocks[5], model.backbone.prompts
    x = torch.randn(1, 1 + 6, 64, dtype=torch.float64)
    q, k, _ = block.attn.qkv(x).chunk(3, dim=-1)
    _, k_p, _ = block.attn.qkv(block.norm1(prompts(5))).chunk(3, dim=-1)
    heads, width = block.attn.num_heads, 64 // block.attn.num_heads
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        scores = q[0, 1:, rows] @ torch.cat([k_p[:, rows], k[0, :, rows]]).T / width**0.5
        expected += scores.softmax(dim=-1)[:, :3] / heads
    torch.testing.assert_close(attention_to_prompts(block, x, None, None)[0], expected)
