"""One Hugging Face model, driven by the engine: probe, proof, prefill and branches."""
