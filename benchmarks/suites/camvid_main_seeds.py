# More seeds, for the gain of the guidance: --only 'VPT-Deep, gates' DA-VPT DA-VPT+
# (benchmarks/results/comparison.md).
_base_ = './camvid_main.py'
seeds = (0, 1, 2, 3, 4, 5)
baseline = 'VPT-Deep, gates'
