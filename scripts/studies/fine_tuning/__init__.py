"""Fine-tuning of a small model of photographs: LoRA, SIMS by LoRA, and rewards."""
