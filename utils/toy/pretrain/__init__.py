"""The recipe of the toy base weights: a tiny CLIP, SAM and LLaVA that stand for the published ones."""
