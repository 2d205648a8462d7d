"""What the estimates assume of GPUs, networks, disks and data, with where it is known from."""

from __future__ import annotations

# Peak of an A100 for bfloat16 matrix products: 312 TFLOP/s (data sheet). Training of large language models reaches an
# MFU of 40 to 55 % (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
# Megatron-LM", 2021, table 1; Chowdhery et al., "PaLM", 2022, table 3); rows of 1,000 tokens are at the lower end.
PEAK_TFLOPS, SUSTAINED = 312.0, 0.40
# GB/s per GPU and direction: NVLink within a node of eight A100 (300 by the data sheet), one 200 Gb/s InfiniBand port
# per GPU between nodes (25); collectives reach about 80 % of these.
GPUS_PER_NODE, NVLINK, NETWORK = 8, 240.0, 20.0
MEMORY_BANDWIDTH = 2.0e12  # bytes/s of an A100 with 80 GB
# Approximate token counts with LLaMA's tokenizer: the template up to the image; a question; its answer; a class name
# and comma in the query; a class name, [SEG] or [NEG], and comma in the answer.
PREFIX_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 45, 20, 10
QUERY_TOKENS_PER_CLASS, ANSWER_TOKENS_PER_CLASS = 3, 4
# COCO train2017: 118,287 JPEG images, 18 GB. Annotations add little, except label images (10 to 40 kB).
DISK_BYTES = 155_000
# An image of ADE20K shows 10.5 classes in the mean (Zhou et al., 2017); few show more than this.
MASKS_PER_IMAGE = 16

# Assumed, as disks differ by orders of magnitude: an opening on a network disk takes 5 ms, and its server answers
# 5,000 a second for all nodes together.
OPEN_MS, SERVER_OPENS = 5.0, 5000
# Measured by benchmarks/shards.py: files opened for a sample (image and label, or image twice), and how many samples
# of 640x480 one loading process draws in a second on a busy core, without waiting.
FILES_PER_SAMPLE, LOADER_RATE = 2.0, 15.0
# Images of the recipe's data sets: COCO's train2017 and train2014, which is most of it; ADE20K, Cityscapes, SAIAPR.
NUM_IMAGES = 245_000
