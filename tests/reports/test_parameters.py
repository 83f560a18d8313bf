"""The table of parameters."""

from conftest import DEPTH, DIMS, segmentor_cfg
from mmseg.registry import MODELS

from mmseg_davpt.reports import count_parameters, format_report


def test_report_adds_up():
    model = MODELS.build(segmentor_cfg(tuning='davpt_plus', prompts=dict(num=3)))
    counts = count_parameters(model)
    assert counts['prompts'] == (DEPTH * 3 * DIMS, DEPTH * 3 * DIMS)
    assert counts['bias'][0] == DEPTH * 2 * DIMS
    assert counts['frozen trunk'][0] == 0
    assert sum(every for _, every in counts.values()) == sum(p.numel() for p in model.parameters())
    assert sum(tuned for tuned, _ in counts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts['heads'][0] == sum(p.numel() for p in model.decode_head.parameters())
    report = format_report(model)
    trunk = sum(p.numel() for p in model.backbone.trunk.parameters())
    assert f'{100 * DEPTH * 3 * DIMS / trunk:.3f}' in report
