# Frame C of docs/results.md: CCP, 33 classes for 20 prompts, linear head.
_base_ = './frame_camvid_linear.py'
config = 'configs/davpt-residual_vit-s14_linear_400it_ccp-224x168.py'
seeds = (0, 1, 2)
