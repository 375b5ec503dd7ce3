"""Attention and its companions in C++, built on first use for the CPU at hand: `tokenmill_cpu::*`."""
