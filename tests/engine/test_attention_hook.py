"""``AttentionMassHook`` on a model that is wrapped for distributed training."""

from types import SimpleNamespace

from conftest import batch, segmentor_cfg
from mmengine.logging import MessageHub
from mmengine.registry import MODEL_WRAPPERS
from mmseg.registry import MODELS
from torch import nn

from mmseg_davpt.engine import AttentionMassHook


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
