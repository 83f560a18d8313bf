# More seeds of what the guidance is worth: --only 'VPT-Deep, gates' DA-VPT DA-VPT+ (docs/evidence.md).
_base_ = './camvid_main.py'
seeds = (0, 1, 2, 3, 4, 5)
baseline = 'VPT-Deep, gates'
