"""Attention to prompts against the written-out softmax."""

import pytest
import torch
from conftest import segmentor_cfg
from mmseg.registry import MODELS

from mmseg_davpt.reports import attention_to_prompts


@pytest.mark.parametrize('tuning', ['davpt', 'davpt_residual'])
def test_shares_of_attention_are_those_of_the_softmax(tuning):
    """Against the written-out softmax of one head after the other; residual prompts have a softmax of their own."""
    model = MODELS.build(segmentor_cfg(tuning=tuning, prompts=dict(num=3))).double().eval()
    block, prompts = model.backbone.trunk.blocks[5], model.backbone.prompts
    x = torch.randn(1, 1 + 6, 64, dtype=torch.float64)
    q, k, _ = block.attn.qkv(x).chunk(3, dim=-1)
    _, k_p, _ = block.attn.qkv(block.norm1(prompts(5))).chunk(3, dim=-1)
    heads, width = block.attn.num_heads, 64 // block.attn.num_heads
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        keys = torch.cat([k_p[:, rows], k[0, :, rows]]) if tuning == 'davpt' else k_p[:, rows]
        scores = q[0, 1:, rows] @ keys.T / width**0.5
        expected += scores.softmax(dim=-1)[:, :3] / heads
    torch.testing.assert_close(attention_to_prompts(block, x, None, None)[0], expected)
