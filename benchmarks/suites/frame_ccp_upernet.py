# Frame D of docs/results.md: CCP, 33 classes for 20 prompts, light UPerNet. The rate of neck and head was chosen on the
# selection slice of CamVid (camvid_search_upernet.py); the rates in the trunk are those of frame A.
_base_ = './frame_ccp_linear.py'
config = 'configs/davpt-residual_vit-s14_upernet_400it_ccp-224x168.py'
__head = 4e-3
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
common = {'optim_wrapper.optimizer.lr': __head, __lr_mult: 2e-3 / __head}
methods = {'full': {__lr_mult: 2e-5 / __head}}
seeds = (0, 1, 2)
