# A smaller head, closer to the size of the prompts: 256 channels instead of 512, no auxiliary head.
_base_ = '../davpt_upernet_ade20k.py'
model = dict(decode_head=dict(channels=256), auxiliary_head=None)
