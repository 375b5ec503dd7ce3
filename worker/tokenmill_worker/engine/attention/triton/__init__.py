"""Attention on a GPU: Triton kernels over pages, FlashAttention for whole prompts. Importing this needs no triton."""
