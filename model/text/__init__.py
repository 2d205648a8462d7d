"""How the model is spoken to: special tokens, prompt templates, query formats, packed rows."""
