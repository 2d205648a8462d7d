"""How the model is prompted: special tokens, prompt templates, query formats, packed rows."""
