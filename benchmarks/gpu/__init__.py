"""The engine on one GPU beside transformers, on models with random weights: nothing is downloaded."""
